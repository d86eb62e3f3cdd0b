"""What of the contracts a program has while it drives a device: plain values, and abilities that are asked for.

The contracts themselves (``memory``, ``backend``, ``transport`` and so on) are for people and type checkers. What
opens and drives a device imports them for the type checker alone, so that they take no memory there; each has its
part of what is here, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.typed import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.interfaces.events import Event


Step = tuple[int, int, int | None]
"""One access to registers: the offset and the width, in bytes, and the value to write; None: it is a read."""


class SharedRegion(NamedTuple):
    """A shared memory region of the device (2.10): its id, and its length in bytes."""

    shmid: int
    length: int


class QueueLayout(NamedTuple):
    """What a transport knows of a queue before memory is allocated for it."""

    size_max: int
    """The maximum queue size, in entries; 0: the queue does not exist."""

    size_fixed: bool = False
    """Legacy PCI: the size cannot be reduced."""

    one_region: bool = False
    """Legacy: descriptors, available and used ring in one contiguous region, used aligned to 4096 (2.7.2)."""


class Causes(NamedTuple):
    """The causes of the interrupts that were just taken."""

    config: bool = False
    """The configuration changed, or the device needs a reset (2.3)."""

    queues: bool = False
    """A queue may have used buffers."""

    removal: bool = False
    """The device is being removed (hot-unplug)."""

    spurious: bool = False
    """An interrupt was taken, and the device names no cause."""


USED = Causes(queues=True)
"""What most interrupts say: one was taken, for used buffers alone. Transports may return this very object."""


@runtime_checkable
class Exchanges(Protocol):
    """Registers for which several accesses cost no more than one, since a round trip costs most of it."""

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make accesses in their order, and return what the reads among them read.

        Args:
            steps: The accesses. None depends on what another one reads.

        Raises:
            Misuse: One is outside the window, not aligned, or its value is too wide; none was made.
            DeviceGone: The device was removed.
            Closed: After ``close()``.
        """
        ...


@runtime_checkable
class LimitedSpace(Protocol):
    """Optional ability of a ``DmaSpace``: its memory counts against RLIMIT_MEMLOCK, and it tells by how much."""

    def lack(self, size: int) -> Exception | None:
        """Return MemlockExceeded if this much in all, what it has included, exceeds the limit; None if not.

        Args:
            size: Bytes.
        """
        ...


@runtime_checkable
class WatchesWords(Protocol):
    """Optional ability of a ``Block``: it notes what a ring reads of it, one access after the other."""

    def watched(self, offset: int, words: memoryview) -> memoryview:
        """Return what stands for ``words``: an object with the same items, whose reads are noted.

        Args:
            offset: Where the words begin in the block, in bytes.
            words: A view of the block.
        """
        ...


@runtime_checkable
class WatchesEvents(Protocol):
    """Optional ability of a ``VdpaNode``: it notes what comes through the eventfds that its transport makes."""

    def watched_event(self, name: str, event: Event) -> Event:
        """Return what stands for a call.

        Args:
            name: What to call it in the record.
            event: The eventfd; closed together with what is returned.
        """
        ...

    def watched_doorbell(self, name: str, doorbell: Any) -> Any:
        """Return what stands for a kick.

        Args:
            name: What to call it in the record.
            doorbell: The eventfd; closed together with what is returned.
        """
        ...


@runtime_checkable
class ResetsQueues(Protocol):
    """Optional ability of a ``Transport`` with RING_RESET among its features: resetting single queues."""

    def start_queue_reset(self, index: int) -> None:
        """Start the reset of one queue (2.6.1)."""
        ...

    def queue_is_reset(self, index: int) -> bool:
        """Whether that reset is complete; then the queue's doorbell is released and it can be enabled again."""
        ...


@runtime_checkable
class ConfirmsAbsence(Protocol):
    """Optional ability of a ``Transport``: a second register says whether there is a device at all.

    A status of all ones alone is what a faulty device may show that still writes to memory. Where the transport
    has no such register, memory has to be safe in another way: the kernel unmaps it (vDPA), or it is a file of its
    own (vhost-user).
    """

    def is_absent(self) -> bool:
        """Read that register, which is of use when the status reads all ones."""
        ...


@runtime_checkable
class HasAdminQueues(Protocol):
    """Optional ability of a ``Transport`` with ADMIN_VQ among its features: administration virtqueues."""

    def admin_queues(self) -> range:
        """Return the indices of the administration virtqueues (2.13); empty unless ADMIN_VQ was negotiated."""
        ...


@runtime_checkable
class HasQueueEvents(Protocol):
    """Optional ability of a ``Transport``: some of its events say nothing but that buffers were used.

    Where such an event alone has fired, taking it is all that ``causes`` would do, and ``USED`` what it would say.
    """

    def queue_events(self) -> Sequence[Event]:
        """Return these among ``events()``, which stay the same until the interrupts are connected again."""
        ...


@runtime_checkable
class GuestMachine(Protocol):
    """Optional ability of a back end's object: its device is in a guest machine that this process runs.

    No operating system runs in that guest, so the drivers may use all of its memory.
    """

    id: str
    """The machine's own name of the device: ``/machine/peripheral/ID`` in QEMU's object tree."""

    @property
    def ram(self) -> int:
        """Guest memory in bytes, without what a virtio-mem device plugs."""
        ...

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of the machine's monitor (QMP) and return its result.

        Args:
            command: Its name.
            **arguments: Its arguments.

        Raises:
            QemuFailed: The machine refuses the command.
            DeviceGone: The machine has ended.
            DeviceTimeout: The machine does not respond.
            Closed: The machine was closed.
        """
        ...


@runtime_checkable
class Hurries(Protocol):
    """Optional ability of a back end's object: accesses of the device are answered by a process, within a time."""

    def hurry(self, deadline: float | None) -> float | None:
        """Give the accesses of this thread a deadline before that of the back end.

        Args:
            deadline: A time of ``time.monotonic()``; None: that of the back end.

        Returns:
            The deadline before.
        """
        ...


@runtime_checkable
class Ends(Protocol):
    """Optional ability of a back end's object: the device is a process, which can be seen to have ended."""

    @property
    def ended(self) -> bool:
        """Whether it has ended: nothing writes to memory any more."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """Optional ability of a ``PciFunction``: a guardian process resets its device when this process is killed."""

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Set where the device status is: the guardian writes 0 there and reads it back.

        Args:
            bar: Number of the BAR, 0 to 5.
            offset: Place in the BAR, in bytes.
            width: Width of the register, in bytes.
        """
        ...


@runtime_checkable
class WithoutIommu(Protocol):
    """Optional ability of a back end's object: no IOMMU restricts the DMA of its device."""

    warning: str
    """What that means, for people."""


@runtime_checkable
class Witnesses(Protocol):
    """Optional ability of a back end's object: it notes what goes on above it, for a record that people read."""

    def note(self, text: str) -> None:
        """Note a line of text."""
        ...

    def watch(self, queue: Any) -> None:
        """Note the chains of a queue from now on.

        Args:
            queue: A ``uvirtio.device.Queue`` that was enabled just now.
        """
        ...


def after_removal(backend: object) -> str:
    """Return what to do when the device behind ``backend`` is gone, for the remedy of DeviceGone."""
    if isinstance(backend, GuestMachine):
        return "its machine runs without it: plug in another device, or start another machine"
    if getattr(backend, "bus", None) == "vhost-user":
        return "start its back end again, then open the device again"
    if not _in_sysfs(backend):
        return "open it again: that makes another device"
    return "uvirtio list shows what is left"


def inspection(backend: object) -> str:
    """Return how to look at the device behind ``backend``: ``inspect`` reads sysfs, where not every device is."""
    return "uvirtio inspect" if _in_sysfs(backend) else "uvirtio diag -v"


def after_reset_timeout(backend: object, address: str) -> str:
    """Return what to do when a device does not finish its reset (2.4.2), for the remedy of ResetTimeout.

    Only a PCI function may have another reset than that of the device status.

    Args:
        backend: What the back end of the device provides.
        address: The device, as the command line takes it.
    """
    if isinstance(backend, GuestMachine):
        return "QEMU's device model hangs, and has no other reset: end its machine, and start another one"
    bus = getattr(backend, "bus", None)
    if bus == "pci" and getattr(backend, "has_reset", False):
        consent = " --unsafe-dma" if isinstance(backend, WithoutIommu) else ""
        return f"try a function-level reset: uvirtio reset {address} --flr{consent}, or Device.reset(flr=True)"
    if bus == "vhost-user":
        return "the back end's process hangs: end it, start it again, and open the device again"
    if bus == "vdpa":
        return "vhost-vdpa has no other reset: see the kernel's log for what its parent device says"
    what = "a virtio-mmio window" if bus == "mmio" else "this function"
    return f"{what} has no other reset: whatever provides the device (the host, of a guest) has to reset it"


def _in_sysfs(backend: object) -> bool:
    """Whether the device is one of this machine, and not one of another program or made of Python."""
    return not str(getattr(backend, "address", "")).startswith(("qemu:", "scripted:", "vhost-user:"))
