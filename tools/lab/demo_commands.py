"""Commands for the demo without a start of Python for each: one process that has everything loaded, and forks.

An emulated CPU takes seconds to start Python and load a package, and the demo runs some twenty commands. So a
process loads the package once; for each ``uvirtio ...`` it forks, and the child is that command: its arguments,
its output, its signals, ``uvirtio.cli.main()`` as the installed program calls it, and an interpreter's own exit.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import NoReturn

_LONGEST = 65536


class Commands:
    """The demo's end: starts commands, one at a time."""

    def __init__(self) -> None:
        """Fork the process that forks. To be made first, while there is one thread and nothing is open."""
        self._socket, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _be_the_commands(far)
        far.close()

    def start(self, words: list[str]) -> tuple[int, int]:
        """Start ``uvirtio`` with these words; its process, and the end of a pipe with all that it prints."""
        output, far = os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(words).encode()], [far])
        finally:
            os.close(far)
        return int(self._socket.recv(_LONGEST)), output

    def wait(self, timeout: float) -> int | None:
        """The exit code of the command that was started, or None if it still runs after ``timeout`` seconds."""
        self._socket.settimeout(timeout)
        try:
            return int(self._socket.recv(_LONGEST))
        except TimeoutError:
            return None
        finally:
            self._socket.settimeout(None)

    def close(self) -> None:
        """End the process that forks; it waits for the command that runs."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def _load() -> None:
    """What every command would import first; none of it touches a device."""
    from uvirtio import device, opening  # noqa: F401
    from uvirtio.backends import vfio_pci  # noqa: F401
    from uvirtio.binding import bind, discover, journal, plan, rules  # noqa: F401
    from uvirtio.cli import app
    from uvirtio.drivers import balloon, input, mem, rng  # noqa: F401

    app.make_app()


def _be_the_commands(line: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the demo's own Ctrl-C is for the demo
    _load()
    while True:
        message, (*files,), _, _ = socket.recv_fds(line, _LONGEST, 1)
        if not message:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            line.close()
            _be_the_command(json.loads(message), files[0])
        for number in files:
            os.close(number)
        line.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        line.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be_the_command(words: list[str], output: int) -> NoReturn:
    """As if the program had been started: the same descriptors, arguments, signals, and way out."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they live as long as the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["uvirtio", *words]
    from uvirtio.cli import main

    sys.exit(main())
