"""Count the loads and stores that Python code makes to one place of memory, and the fences that it executes.

A child process runs the code; this process traces it with ptrace. For accesses it sets x86 debug registers:
each instruction that touches the watched bytes stops the child once. For fences it steps through the child's
instructions one by one. Needs x86-64 Linux and permission to ptrace a child; :class:`Unavailable` says what
is missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

PEEKTEXT, PEEKUSER, POKEUSER, CONT, SINGLESTEP, SETOPTIONS = 1, 3, 6, 7, 9, 0x4200  # <linux/ptrace.h>
EXITKILL = 0x00100000
DEBUG_REGISTERS = 848  # offsetof(struct user, u_debugreg), <sys/user.h> of x86-64
INSTRUCTION_POINTER = 128  # offsetof(struct user, regs.rip)

WRITE, READ_OR_WRITE = 1, 3  # the R/W field of DR7 (Intel SDM, 17.2.4)
LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}  # and its LEN field

PLACES = (0, 1, 3, 7)
"""Bytes that tell a width: an access of 1, 2, 4 or 8 bytes touches the first 1, 2, 3 or 4 of them."""

SECONDS = 30

_CHILD = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, signal.SIGKILL)
if libc.ptrace(0, 0, None, None):
    sys.exit(f"PTRACE_TRACEME: {os.strerror(ctypes.get_errno())}")
def stop(kill=os.kill, me=os.getpid(), what=signal.SIGSTOP):
    kill(me, what)
"""


class Unavailable(Exception):
    """This machine cannot watch memory."""


@dataclass
class Seen:
    """What one piece of code did to the watched bytes."""

    loads: int = 0
    stores: int = 0
    widths: list[int] = field(default_factory=list)
    """The width of each access in bytes, in order."""


class Watch:
    """The debug registers of a stopped child."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

    def request(self, what: int, place: int = 0, value: int = 0) -> int:
        ctypes.set_errno(0)
        answer: int = self._libc.ptrace(what, self._pid, place, value)
        if answer == -1 and ctypes.get_errno():
            raise Unavailable(f"ptrace request {what}: {os.strerror(ctypes.get_errno())}")
        return answer

    def put(self, register: int, value: int) -> None:
        self.request(POKEUSER, DEBUG_REGISTERS + 8 * register, value)

    def take_status(self) -> int:
        """DR6: which watchpoints were hit; cleared, since the CPU never does."""
        status = self.request(PEEKUSER, DEBUG_REGISTERS + 8 * 6) & 0xF
        self.put(6, 0)
        return status

    def next_instruction(self) -> bytes:
        """The first 16 bytes at the instruction pointer."""
        where = self.request(PEEKUSER, INSTRUCTION_POINTER)
        words = (self.request(PEEKTEXT, where + at) for at in (0, 8))
        return b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words)

    def arm(self, *points: tuple[int, int, int]) -> None:
        """Watch (address, R/W, length), one for each of the four registers."""
        self.put(7, 0)
        control = 0
        for number, (address, access, length) in enumerate(points):
            self.put(number, address)
            control |= 1 << 2 * number | (access | LENGTH[length] << 2) << (16 + 4 * number)
        self.put(7, control)


def observe(setup: str, probes: Mapping[str, tuple[str, str]], width: int = 4) -> dict[str, Seen]:
    """Run probes in a child and watch each.

    ``setup`` is Python that runs first. A probe is (code, address): Python to run, and an expression for the
    address that is watched meanwhile. ``width`` bytes from there count; each probe runs twice, once to tell
    loads from stores and once to tell widths, so it must be repeatable. Raises Unavailable.
    """
    # Compiled before the watch is on, so that only the probe itself runs between two stops.
    lines = [_CHILD, setup]
    for number, (code, address) in enumerate(probes.values()):
        lines.append(f"code{number} = compile({code!r}, 'probe', 'exec'); where{number} = {address}")
    lines.append("print(*[" + ", ".join(f"where{number}" for number in range(len(probes))) + "], flush=True)")
    lines.append("stop()")
    for number in range(len(probes)):
        lines.append(f"exec(code{number}); stop(); exec(code{number}); stop()")
    with _child(lines) as child:
        return _trace(child, list(probes), width)


def fences(setup: str, codes: Mapping[str, str]) -> dict[str, int]:
    """Step through pieces of code; how many instructions of each are full fences. Raises Unavailable."""
    lines = [_CHILD, setup]
    for number, code in enumerate(codes.values()):
        lines.append(f"code{number} = compile({code!r}, 'probe', 'exec')")
    lines.append("stop()")
    for number in range(len(codes)):
        # Once before, so that nothing is resolved or warmed up while we count.
        lines.append(f"exec(code{number}); stop(); exec(code{number}); stop()")
    with _child(lines) as child:
        watch = _attach(child)
        found = {}
        for name in codes:
            assert not _hits(child, watch)
            found[name] = 0
            watch.request(SINGLESTEP)
            while (why := _stopped(child)) == signal.SIGTRAP:
                found[name] += _is_fence(watch.next_instruction())
                watch.request(SINGLESTEP)
            assert why == signal.SIGSTOP, f"signal {why}"
        return found


def _is_fence(code: bytes) -> bool:
    """Whether an x86-64 instruction is a full fence: LOCK, XCHG with memory, or MFENCE (Intel SDM 3, 9.2.5)."""
    at = 0
    while code[at] in b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65":
        at += 1
    if code[at] == 0xF0 or code[at : at + 3] == b"\x0f\xae\xf0":
        return True
    if 0x40 <= code[at] <= 0x4F:
        at += 1
    return code[at] in (0x86, 0x87) and code[at + 1] < 0xC0


@contextmanager
def _child(lines: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A traced Python that runs these lines; killed at the end, and after SECONDS."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(f"this is how x86-64 Linux is traced, and not {platform.machine()}")
    child = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(SECONDS, child.kill)
    timer.start()
    try:
        yield child
    finally:
        timer.cancel()
        child.kill()
        if child.returncode is None:
            child.wait()
        for pipe in (child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()


def _attach(child: subprocess.Popen[str]) -> Watch:
    """The child at its first stop()."""
    watch = Watch(child.pid)
    while (why := _stopped(child)) != signal.SIGSTOP:
        watch.request(CONT, 0, why)
    watch.request(SETOPTIONS, 0, EXITKILL)
    return watch


def _stopped(child: subprocess.Popen[str]) -> int:
    """Wait for the next stop of the child; its signal."""
    _, status = os.waitpid(child.pid, 0)
    if os.WIFSTOPPED(status):
        return os.WSTOPSIG(status)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.stderr is not None
    said = child.stderr.read().strip()
    if "PTRACE_TRACEME" in said:
        raise Unavailable(said)
    raise AssertionError(f"the watched child ended with {child.returncode}: {said}")


def _trace(child: subprocess.Popen[str], names: list[str], width: int) -> dict[str, Seen]:
    watch = _attach(child)
    assert child.stdout is not None
    addresses = [int(word) for word in child.stdout.readline().split()]
    found: dict[str, Seen] = {}
    for name, address in zip(names, addresses, strict=True):
        seen = found[name] = Seen()
        watch.arm((address, WRITE, width), (address, READ_OR_WRITE, width))
        for hit in _hits(child, watch):
            if hit & 1:
                seen.stores += 1
            else:
                seen.loads += 1
        watch.arm(*((address + place, READ_OR_WRITE, 1) for place in PLACES))
        seen.widths = [1 << hit.bit_count() - 1 for hit in _hits(child, watch)]
    return found


def _hits(child: subprocess.Popen[str], watch: Watch) -> list[int]:
    """Let the child run to its next stop(); DR6 at each watchpoint on the way."""
    hits = []
    watch.request(CONT)
    while (why := _stopped(child)) == signal.SIGTRAP:
        hits.append(watch.take_status())
        watch.request(CONT)
    assert why == signal.SIGSTOP, f"signal {why}"
    return hits
