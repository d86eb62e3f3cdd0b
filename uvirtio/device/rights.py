"""What a process needs of its capabilities once its device is open and its driver started: little, or nothing.

Registers, memory and events are reached through descriptors that are open by then. A library never gives up rights
by itself: a program calls ``drop_capabilities``, as the commands that run for long do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uvirtio.device.core import Device
from uvirtio.host import capabilities
from uvirtio.interfaces.memory import KeepsRights


@dataclass(frozen=True, slots=True)
class Rights:
    """What ``drop_capabilities`` gave up and kept."""

    dropped: tuple[str, ...]
    """Names of capabilities that this process had: ``CAP_NET_ADMIN``, sorted."""
    kept: Mapping[str, str]
    """Names of those that it has now, each with why."""

    def __str__(self) -> str:
        many = f"{len(self.dropped)} capabilities given up" if self.dropped else "no capability to give up"
        kept = "; ".join(f"{name}: {why}" for name, why in sorted(self.kept.items()))
        return f"{many}, {f'kept {kept}' if kept else 'none kept'}"


def drop_capabilities(device: Device, *, pins: bool = True, keep: Mapping[str, str] | None = None) -> Rights:
    """Give up the capabilities that driving a device does not need from here on, for good; sets no_new_privs.

    Call it when the driver is started, from the only thread of the process. User 0 stays the owner of its files.

    Args:
        device: A device whose driver is started.
        pins: Whether memory will still be pinned for it, and its frame numbers read: a balloon, queues or bursts
            that are made later, memory that is handed to the device.
        keep: What the program needs for itself: a capability's name and why.

    Returns:
        What was given up and what was kept.

    Raises:
        UsageError: There is no such capability.
        NotSupported: The process has other threads, which would keep their capabilities.
        PagemapHidden: ``pins``, and this process may not read frame numbers.
        OperationFailed: The kernel, or a filter of system calls, refuses; ``seen`` has what is still held, and the
            device can be driven on.
        Closed: No driver of the device is started.
    """
    wanted = dict(keep or {})
    space = device.dma  # a driver that is started has what it opens
    if pins and isinstance(space, KeepsRights):
        wanted.update(space.rights())
    dropped = capabilities.limit_to(wanted)
    has = capabilities.held()
    return Rights(tuple(sorted(dropped)), {name: why for name, why in wanted.items() if name in has})
