"""Somebody else's scripted server of all four protocols: npm's `@copilotkit/aimock`, as a process.

`python -m tests.aimock` installs it with npm into the user's cache, never among the sources; in CI the tests do so. It
shows what the vendors' formats look like to somebody who has not read our code. It refuses nothing: for that there are
the strict servers.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Self

PACKAGE = "@copilotkit/aimock@1.43.0"
_CLI = "node_modules/@copilotkit/aimock/dist/cli.js"


class Missing(Exception):
    """It cannot be started here; the text says why."""


def find(*, install: bool) -> Path:
    """The server's entry point.

    Args:
        install: Whether npm may fetch it where it is not there yet: 12 MB.

    Raises:
        Missing: It is not there, and may not or cannot be.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nitinol-tests", "aimock-1.43.0")
    if shutil.which("node") is None:
        raise Missing("Node.js, which aimock runs on, is not installed")
    if not (home / _CLI).is_file():
        if not install:
            raise Missing("aimock is not installed; run: python -m tests.aimock")
        _install(home)
    return home / _CLI


def _install(home: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Missing("npm, which installs aimock, is not installed")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:  # so that nobody finds half of it
        command = [npm, "install", "--prefix", folder, "--no-audit", "--no-fund", "--no-save", PACKAGE]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
        except subprocess.TimeoutExpired:
            raise Missing(f"npm did not install {PACKAGE} within 90 s") from None
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise Missing(f"npm did not install {PACKAGE}: {said[-1]}")
        home.mkdir(exist_ok=True)
        try:
            Path(folder, "node_modules").rename(home / "node_modules")
        except OSError:
            if not (home / _CLI).is_file():  # else somebody else was quicker
                raise


class Aimock:
    """The server in a process of its own, for the length of a `with`.

    Args:
        entry: From `find`.
        folder: Where the fixtures are written.
        fixtures: What it answers, in its own words; the first that matches wins.
    """

    def __init__(self, entry: Path, folder: Path, fixtures: Iterable[Mapping[str, Any]]) -> None:
        self._entry = entry
        self._fixtures = folder / "fixtures.json"
        self._fixtures.write_text(json.dumps({"fixtures": list(fixtures)}))
        self.url = ""

    def __enter__(self) -> Self:
        options = ["-p", "0", "-h", "127.0.0.1", "-f", str(self._fixtures), "--validate-on-load", "--log-level", "info"]
        self._process = subprocess.Popen(
            ["node", str(self._entry), *options, "--journal-max", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        said: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=_tell, args=(self._process.stdout, said), daemon=True)
        self._reader.start()
        lines: list[str] = []
        while "listening on" not in (line := said.get(timeout=30)):
            lines.append(line)
            if not line:
                self.__exit__()
                raise AssertionError(f"aimock did not start: {''.join(lines)}")
        self.url = line.rpartition("listening on ")[2].strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def received(self, model: str) -> list[dict[str, Any]]:
        """The bodies it was sent for a model, in order, each as it understood it: in the words of chat completions."""
        with urllib.request.urlopen(f"{self.url}/__aimock/journal", timeout=30) as response:
            told: list[dict[str, Any]] = json.load(response)
        bodies: list[dict[str, Any]] = [entry["body"] for entry in told if entry.get("body")]
        return [body for body in bodies if body.get("model") == model]


def _tell(stream: IO[str], said: queue.Queue[str]) -> None:
    for line in stream:  # to the end: a full pipe would hold the server up
        said.put(line)
    said.put("")


if __name__ == "__main__":
    print(find(install=True))
