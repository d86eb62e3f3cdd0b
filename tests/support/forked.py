"""pytest and Python programs, from a process that has loaded what they import: that takes most of a short run.

That process is an interpreter of its own with nothing else in it, and each run is a fork of it: arguments, working
directory, environment and output are the run's, and so is all that it changes. uvirtio.pytest_plugin is not loaded
before: pytest rewrites its assertions when it imports it, and says so where it comes too late.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from lab.commands import leave

CHECKOUT = Path(__file__).resolve().parents[2]
_LONGEST = 1 << 20
_PR_SET_PDEATHSIG = 1
_USED = ("scripted", "opening", "conform.run", "evidence.collect", "evidence.files", "qemu")
"""Of uvirtio, what most of the runs use."""


def pytest(
    arguments: list[str], folder: Path, env: dict[str, str], timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=folder, env=env)``, with its output.

    What environment variables tell an interpreter at its start holds as it is here, but that the checkout is where
    uvirtio comes from. Raises TimeoutExpired; RuntimeError and TimeoutError where no run can be started.
    """
    return _server(os.getpid()).run("", arguments, folder, env, timeout)


def program(
    path: Path, arguments: list[str], folder: Path, env: dict[str, str], timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """The same for ``[sys.executable, path, *arguments]``."""
    return _server(os.getpid()).run(str(path), arguments, folder, env, timeout)


@functools.cache
def _server(pid: int) -> _Server:
    """The one of this process: that of a parent may be in the middle of a run."""
    server = _Server()
    atexit.register(server.close)
    return server


class _Server:
    """The users' end. One run at a time."""

    def __init__(self) -> None:
        self._line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(far.fileno())],
            pass_fds=[far.fileno()],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        far.close()

    def run(
        self, program: str, arguments: list[str], folder: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            asked = {"program": program, "arguments": arguments, "folder": str(folder), "env": env}
            socket.send_fds(self._line, [json.dumps(asked).encode()], [out.fileno(), err.fileno()])
            try:
                pid = self._answer(60.0)
            except TimeoutError:
                self._line.close()  # what it answers late is no answer to the next run
                raise
            try:
                code = self._answer(timeout)
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                self._answer(60.0)
                raise subprocess.TimeoutExpired([program or "pytest", *arguments], timeout) from None
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess([program or "pytest", *arguments], code, *texts)

    def close(self) -> None:
        """End the process that forks."""
        self._line.close()
        self._child.wait(30)

    def _answer(self, timeout: float) -> int:
        self._line.settimeout(timeout)
        data = self._line.recv(_LONGEST)
        if not data:
            raise RuntimeError("the process that forks pytest has ended")
        return int(json.loads(data))


def _load() -> None:
    """What every run would import first."""
    from _pytest import config

    for name in (*config.default_plugins, *(f"uvirtio.{name}" for name in _USED)):
        import_module(name if "." in name else f"_pytest.{name}")


def _serve(line: socket.socket) -> NoReturn:
    _ends_with_its_parent()
    _load()
    gc.freeze()  # a collection in a child would write to every page that it shares with us
    while True:
        message, files, _, _ = socket.recv_fds(line, _LONGEST, 2)
        if not message:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            _be_the_program(files, **json.loads(message))
        for number in files:
            os.close(number)
        line.send(json.dumps(pid).encode())
        line.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _ends_with_its_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_the_program(
    output: list[int], program: str, arguments: list[str], folder: str, env: dict[str, str]
) -> NoReturn:
    """As if it had been started: its descriptors, arguments, folder, environment and ``sys.path``."""
    code: Any = 1
    try:
        os.setsid()
        _ends_with_its_parent()
        for number, place in zip(output, (1, 2), strict=True):
            os.dup2(number, place)
        os.closerange(3, 1024)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.path[0] = str(Path(program).parent) if program else folder
        sys.argv = [program or "pytest", *arguments]
        if program:
            runpy.run_path(program, run_name="__main__")
            code = 0
        else:
            code = int(import_module("pytest").console_main())
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001 - nothing of our parent's may go on here
        traceback.print_exc()
    leave(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
