"""Capabilities of this process (capabilities(7)): which it has, and giving up those that it does not need.

What is given up here does not come back: not by a setuid program or one with file capabilities that is started
later (no_new_privs), nor by being user 0 (the bounding set). A descriptor keeps what it was opened with, which is
why frame numbers can be read from a pagemap that was opened before (its opener's rights count).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Collection

from uvirtio.errors import NotSupported, OperationFailed, UsageError
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

# fmt: off
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)
# fmt: on
"""By number, without CAP_: <linux/capability.h>, in which a later kernel may have more."""

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38  # <linux/prctl.h>
_MOST = 64  # bits of a set
_HALF = 0xFFFFFFFF
_SETPCAP = NAMES.index("SETPCAP")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def name(number: int) -> str:
    """The name of a capability: ``CAP_SYS_ADMIN``; ``CAP_63`` for one that is not known."""
    return f"CAP_{NAMES[number] if number < len(NAMES) else number}"


def number(name: str) -> int:
    """The number of a capability by its name.

    Raises:
        UsageError: There is none of that name.
    """
    bare = name.upper().removeprefix("CAP_")
    if bare in NAMES:
        return NAMES.index(bare)
    raise UsageError(
        f"there is no capability {name}", seen=name, expected="one of capabilities(7)", remedy="CAP_IPC_LOCK"
    )


def held() -> frozenset[str]:
    """The capabilities that this thread has in its permitted set: those that it has, or can have in effect."""
    return frozenset(name(one) for one in _bits(_get()[1]))


def limit_to(keep: Collection[str]) -> frozenset[str]:
    """Give up all capabilities but some, for good, and set no_new_privs. What is not held is not gained.

    Args:
        keep: The names of those to keep.

    Returns:
        The names of those that were given up.

    Raises:
        NotSupported: Other threads of this process would keep theirs.
        UsageError: There is no capability of such a name.
        OperationFailed: The kernel, or a filter of system calls, refuses; what it does not refuse is given up.
    """
    kept = sum(1 << number(one) for one in keep)
    _check_alone()
    libc = ctypes.CDLL(None, use_errno=True)
    refused: list[str] = []

    def tried(call: str, result: int) -> bool:
        if result != 0:
            refused.append(f"{call}: {os.strerror(ctypes.get_errno())}")
        return result == 0

    if not _has_no_new_privs():
        tried("PR_SET_NO_NEW_PRIVS", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    before = _get()
    effective, permitted, _ = before
    if effective >> _SETPCAP & 1:
        for one in (one for one in range(_MOST) if not kept >> one & 1):
            bounding = libc.prctl(_PR_CAPBSET_READ, one, 0, 0, 0)
            if bounding < 0 and ctypes.get_errno() == errno.EINVAL:
                break  # the kernel has no more of them
            if bounding and not tried("PR_CAPBSET_DROP", libc.prctl(_PR_CAPBSET_DROP, one, 0, 0, 0)):
                break
    left = permitted & kept
    if before != (left, left, 0):  # or nothing is asked of a filter that would refuse
        halves = (_Sets(left >> shift & _HALF, left >> shift & _HALF, 0) for shift in (0, 32))
        tried("capset(2)", libc.capset(ctypes.byref(_Header(_VERSION, 0)), (_Sets * 2)(*halves)))
    if refused or _get() != (left, left, 0):
        has = sorted(held() - {name(one) for one in _bits(kept)})
        raise OperationFailed(
            "not all rights were given up",
            seen=f"{'; '.join(refused) or 'no effect'}; still held: {', '.join(has) or 'no capability'}",
            expected=f"{', '.join(sorted(keep)) or 'no capability'} held, and no_new_privs",
            remedy="allow capset and prctl in the filter of system calls (systemd: SystemCallFilter=capset prctl),"
            " or start the program without these capabilities (CapabilityBoundingSet=, NoNewPrivileges=yes)",
        )
    return frozenset(name(one) for one in _bits(permitted & ~left))


def _has_no_new_privs() -> bool:
    """Whether it is set already, as it is where an ordinary user has set a filter of system calls."""
    status = sysfs.read(Roots().proc / "self/status") or ""
    return any(line.split() == ["NoNewPrivs:", "1"] for line in status.splitlines())


def _check_alone() -> None:
    """Check that no other thread would keep what this one gives up: capset(2) is about one thread."""
    names = sysfs.listed(Roots().proc / "self/task")
    count = len(names) if names else threading.active_count()
    if count != 1:
        raise NotSupported(
            "capabilities are given up by a process of one thread only",
            seen=f"{count} threads, of which the others would keep theirs",
            expected="1 thread",
            remedy="give them up before threads are started",
        )


def _get() -> tuple[int, int, int]:
    """The effective, permitted and inheritable sets of this thread, as bits."""
    sets = (_Sets * 2)()
    _call(ctypes.CDLL(None, use_errno=True).capget(ctypes.byref(_Header(_VERSION, 0)), sets))
    low, high = sets
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _bits(value: int) -> list[int]:
    return [one for one in range(_MOST) if value >> one & 1]


def _call(result: int) -> None:
    if result != 0:
        raise OperationFailed(
            "the kernel does not tell which capabilities there are",
            seen=os.strerror(ctypes.get_errno()),
            expected="capget(2)",
            remedy="look for a filter of system calls (seccomp)",
        )
