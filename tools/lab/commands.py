"""``uvirtio`` without a start of Python for each command: one process that has everything loaded, and forks.

An emulated CPU takes seconds to start Python and load a package, and the demo and the tests run many commands. So
a process loads the package once, for the first command. For each it forks, and the child is that command: its
arguments, output, session and signals, ``uvirtio.cli.main()`` as the program calls it. Of an interpreter's
own exit it has what is seen from outside: it waits for threads, runs what atexit has, and flushes its output.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

_LONGEST = 65536


class Command:
    """A command that was started; the little of subprocess.Popen that its users need."""

    def __init__(self, commands: Commands, pid: int, stdout: IO[str], stderr: IO[str] | None) -> None:
        self._commands = commands
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._commands.ended(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; TimeoutError when it still runs after ``timeout`` seconds."""
        if self.returncode is None:
            self.returncode = self._commands.ended(self.pid, timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} runs for more than {timeout:g} s")
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Read both outputs to their ends, and wait: what was not read before. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        texts = ["", ""]

        def read(place: int, stream: IO[str]) -> None:
            texts[place] = stream.read()

        streams = [(place, one) for place, one in enumerate((self.stdout, self.stderr)) if one and not one.closed]
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutError(f"process {self.pid} writes for more than {timeout:g} s")
        self.wait(max(1.0, deadline - time.monotonic()))
        return texts[0], texts[1]

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it still runs, and close its output."""
        self.kill()
        self.wait(30.0)
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


class Commands:
    """The users' end. One thread at a time."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self._line = line
        self.pid = pid  # of the process that forks
        self._ended: dict[int, int] = {}

    @classmethod
    def fork(cls) -> Commands:
        """From this very process, with what it has loaded, while there is one thread and no device open."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                near.close()
                _be_the_commands(far)
            finally:
                os._exit(1)  # whatever happens: this is not our parent
        far.close()
        return cls(near, pid)

    @classmethod
    def spawn(cls) -> Commands:
        """From a new interpreter, whatever this one has open and loaded."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = subprocess.Popen(
            [sys.executable, "-m", "lab.commands", str(far.fileno())],
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            start_new_session=True,
        )
        far.close()
        child.returncode = 0  # waited for by close(), not by Popen
        return cls(near, child.pid)

    def start(
        self, *words: str, merged: bool = True, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Command:
        """Start ``uvirtio`` with these words, in a session of its own. ``merged``: stderr goes to stdout.

        ``env`` and ``cwd`` are as subprocess.Popen has them: without them, those of the process that forks.
        """
        pipes = [os.pipe() for _ in range(1 if merged else 2)]
        ends = [far for _, far in pipes]
        try:
            asked = {"words": words, "env": None if env is None else dict(env), "cwd": cwd}
            socket.send_fds(self._line, [json.dumps(asked).encode()], ends)
        finally:
            for end in ends:
                os.close(end)
        while "started" not in (message := self._message(None) or {}):
            self._note(message)
        streams = [os.fdopen(near, errors="replace") for near, _ in pipes]
        return Command(self, message["started"], streams[0], None if merged else streams[1])

    def run(self, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run ``uvirtio`` with these words to its end, as subprocess.run does. Raises TimeoutError."""
        command = self.start(*words, merged=False)
        assert command.stderr is not None
        texts = {command.stdout: b"", command.stderr: b""}
        deadline = time.monotonic() + timeout
        try:
            waiting = {stream.fileno(): stream for stream in texts}
            poller = _poller(*waiting)
            while waiting:
                ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    raise TimeoutError(f"uvirtio {' '.join(words)} runs for more than {timeout:g} s")
                for fd, _ in ready:
                    piece = os.read(fd, _LONGEST)
                    texts[waiting[fd]] += piece
                    if not piece:
                        poller.unregister(fd)
                        del waiting[fd]
            code = command.wait(max(1.0, deadline - time.monotonic()))
        finally:
            command.close()
        out, err = (text.decode(errors="replace") for text in texts.values())
        return subprocess.CompletedProcess(["uvirtio", *words], code, out, err)

    def ended(self, pid: int, timeout: float) -> int | None:
        """The exit code of a command that was started, or None if it still runs after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while pid not in self._ended:
            message = self._message(max(0.0, deadline - time.monotonic()))
            if message is None:
                return None
            self._note(message)
        return self._ended[pid]

    def close(self) -> None:
        """End the process that forks."""
        self._line.close()
        os.waitpid(self.pid, 0)

    def _message(self, timeout: float | None) -> dict[str, Any] | None:
        if timeout is not None and not _poller(self._line.fileno()).poll(timeout * 1000):
            return None
        data = self._line.recv(_LONGEST)
        if not data:
            raise RuntimeError("the process that starts the commands has ended")
        message = json.loads(data)
        assert isinstance(message, dict)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._ended[message["ended"]] = message["code"]


def _poller(*fds: int) -> select.poll:
    """Return what waits until one of these can be read, or has ended."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller


# --- the other end ------------------------------------------------------------------------------------------


def _load() -> None:
    """What every command would import first; none of it touches a device."""
    from uvirtio import device, opening  # noqa: F401
    from uvirtio.backends import vfio_pci  # noqa: F401
    from uvirtio.binding import bind, discover, journal, plan, restore, rules  # noqa: F401
    from uvirtio.cli import app, parser
    from uvirtio.drivers import balloon, input, mem, rng  # noqa: F401

    parser.make_app(app.make_tree())
    with contextlib.suppress(ImportError):  # what typer 0.29 converts numbers and choices with, and imports late
        import_module("pydantic").TypeAdapter(int)


def _be_the_commands(line: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our user's own Ctrl-C is for our user
    atexit._clear()  # what a parent has registered is the parent's to do
    loaded = False
    running: dict[int, int] = {}  # a descriptor that tells of its end -> the process
    while True:
        for ready, _ in _poller(line.fileno(), *running).poll():
            if ready != line.fileno():
                pid = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                line.send(json.dumps({"ended": pid, "code": code}).encode())
                continue
            message, files, _, _ = socket.recv_fds(line, _LONGEST, 2)
            if not message:
                os._exit(0)
            if not loaded:
                _load()
                gc.freeze()  # a collection in a child would write to every page that it shares with us
                loaded = True
            pid = os.fork()
            if pid == 0:
                line.close()
                for other in running:
                    os.close(other)
                _be_the_command(files, **json.loads(message))
            for number in files:
                os.close(number)
            running[os.pidfd_open(pid)] = pid
            line.send(json.dumps({"started": pid}).encode())


def _be_the_command(output: list[int], words: list[str], env: dict[str, str] | None, cwd: str | None) -> NoReturn:
    """As if the program had been started: the same descriptors, arguments, and signals."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if cwd is not None:
        os.chdir(cwd)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    for number, place in ((os.open(os.devnull, os.O_RDONLY), 0), (output[0], 1), (output[-1], 2)):
        os.dup2(number, place)
    for number in {*output} - {0, 1, 2}:
        os.close(number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they live as long as the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["uvirtio", *words]
    code = 1
    try:
        from uvirtio.cli import main

        code = main()
    except BaseException:  # noqa: BLE001 - nothing of what our parent was in the middle of may go on here
        traceback.print_exc()
    leave(code)


def leave(code: int) -> NoReturn:
    """End as an interpreter does, but for its last step: taking every object apart.

    That writes to each page that the child shares with its parent, and on an emulated CPU takes three times as
    long as the usual command does. multiprocessing ends the processes that it forks in the same way.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as the interpreter has it
    os._exit(code)


if __name__ == "__main__":
    _be_the_commands(socket.socket(fileno=int(sys.argv[1])))
