"""The processes that this one has started and not waited for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children() -> set[str]:
    """The PIDs of the children of all threads of this process."""
    found = set[str]()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found |= {*(task / "children").read_text().split()}
    return found


def qemus() -> set[str]:
    """The PIDs of those that are a QEMU and live."""
    return {pid for pid in children() if "qemu" in _name_of(pid)}


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:  # its thread has just waited for it
        return ""
