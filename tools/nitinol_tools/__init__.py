"""Tools that touch files and the shell on the model's behalf: `Agent(tools=[read, write, edit, bash])`.

The file tools stay inside the agent's `allowed_paths=` (its `working_directory=` by default). `bash` does not: a shell
goes where its user may go. `nitinol_tools.shell.shell_tool` makes one that runs its commands elsewhere.
"""

from nitinol_tools.files import edit, read, write
from nitinol_tools.shell import bash

__all__ = ["bash", "edit", "read", "write"]
