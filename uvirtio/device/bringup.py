"""The decisions of the initialisation sequence (3.1.1): which features are taken, and how the rings are made.

``Device.start`` runs the steps in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from uvirtio.device.queue import QUEUE_SIZE_MAX, QueueSpec
from uvirtio.errors import FeatureMissing, QueueError, UsageError
from uvirtio.interfaces.runtime import HasAdminQueues
from uvirtio.memory.fence import Fence
from uvirtio.spec import features as f
from uvirtio.spec.ring import MAX_SIZE, is_power_of_two
from uvirtio.typed import TYPE_CHECKING, NamedTuple
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.split import make_split

if TYPE_CHECKING:
    from uvirtio.device.keywords import RingChoice
    from uvirtio.interfaces.memory import DmaSpace
    from uvirtio.interfaces.runtime import QueueLayout
    from uvirtio.interfaces.transport import Transport
    from uvirtio.virtqueue.interface import Virtqueue

RING_FEATURES = f.mask(
    f.INDIRECT_DESC,
    f.EVENT_IDX,
    f.RING_PACKED,
    f.IN_ORDER,
    f.NOTIFICATION_DATA,
    f.NOTIF_CONFIG_DATA,
    f.RING_RESET,
)

LEGACY_FEATURES = f.mask(f.ANY_LAYOUT)
"""Accepted where a legacy interface offers it (6.3): chains may then be laid out as on a modern one (2.7.4)."""

Observer = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step of the sequence; the step runs inside the context it returns."""

GiveBack = Callable[[bool], None]
"""Called first when the device is left; the argument says whether the device still works."""

ADMIN_QUEUE = "adminq"
"""The name of the administration queue, where there is one."""


def unobserved(_step: str) -> AbstractContextManager[None]:
    """The default observer: does nothing."""
    return nullcontext()


class Negotiated(NamedTuple):
    """The outcome of the feature negotiation; each field is a mask of feature bits, 128 bits wide."""

    offered: int
    features: int
    unsteady: int
    """Bits that only one of two readings offered."""
    wanted: int
    """Bits that would have been accepted if they had been offered, whatever else they need."""


def negotiate(
    transport: Transport,
    address: str,
    type_name: str,
    *,
    wanted: int,
    required: int,
    dependencies: Iterable[f.Needs],
    ring: RingChoice,
    without: Sequence[str],
    platform_order: bool,
    admin: bool,
) -> Negotiated:
    """Read the features that the device offers, and write those that the driver accepts (3.1.1 (4), 2.2).

    Args:
        transport: Where the features are read and written.
        address: The device's address, for errors.
        type_name: The device type, which defines the bits 0 to 23 and 50 to 127.
        wanted: The driver's allow-list of device-type feature bits.
        required: Bits without which the driver cannot work.
        dependencies: Which bit needs which others.
        ring: The ring format that was asked for.
        without: Feature bits that are not accepted, by name or number.
        platform_order: Whether this process has barriers that a device on a bus obeys (ORDER_PLATFORM).
        admin: Whether an administration queue is wanted (ADMIN_VQ).

    Returns:
        What was offered and what was accepted.

    Raises:
        FeatureMissing: A required bit is not offered; nothing was written.
        UsageError: ``without`` has a word that is no bit of this type, or one that the driver cannot do without.
    """
    legacy = transport.legacy
    withheld = withhold(type_name, without)
    first, again = transport.device_features(), transport.device_features()
    # Where the offer changes between the readings, only bits of both count; FEATURES_OK decides.
    offered = first & again
    # 2.2.3: a legacy interface has neither VERSION_1 nor any other bit above 31.
    must = required if legacy else required | f.mask(f.VERSION_1)
    if ring == "packed":
        must |= f.mask(f.RING_PACKED)
    if must & withheld:
        raise UsageError(
            f"the driver cannot do without {_named(type_name, must & withheld)}",
            seen=", ".join(without),
            expected="bits that are not required (2.2.1)",
            remedy="leave it out of --without, or of open(..., without=[...])",
        )
    missing = must & ~offered
    if missing:
        names = ", ".join(bit.name for bit in f.names(type_name, missing))
        changes = first != again
        raise FeatureMissing(
            f"{address} does not offer {names}" + " at both of two readings" * changes,
            seen=f"{first:#x}, then {again:#x}" if changes else f"{offered:#x}",
            expected=f"{_named(type_name, must)} (2.2.1)",
            remedy=_OFFER_CHANGES if changes else _without(missing, transport, packed=ring == "packed"),
            about="offer" if changes else None,
        )
    # 2.2.1: from allow-lists only, so that an unknown bit is never acknowledged.
    ours = wanted | required | RING_FEATURES
    ours |= LEGACY_FEATURES if legacy else f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
    if ring == "split":
        ours &= ~f.mask(f.RING_PACKED)
    if platform_order:
        ours |= f.mask(f.ORDER_PLATFORM)  # 6.1: only with barriers that a device on a bus obeys
    if admin:
        ours |= f.mask(f.ADMIN_VQ)
    ours &= ~withheld
    ours &= transport.features_allowed | f.DEVICE_TYPE_MASK
    features = f.resolve(offered, ours, dependencies)
    transport.set_driver_features(features)
    return Negotiated(offered, features, first ^ again, ours)


def withhold(type_name: str, without: Iterable[str]) -> int:
    """The feature word of the bits that are named.

    Args:
        type_name: The device type.
        without: Names of the standard, or numbers.

    Raises:
        UsageError: One is no feature bit of this type.
    """
    word = 0
    for text in without:
        number = f.numbered(type_name, text)
        if number is None:
            raise UsageError(
                f"{text!r} is not a feature bit of {type_name}",
                seen=text,
                expected=", ".join(bit.name for bit in f.names(type_name, f.known(type_name))),
                remedy="write the name of the standard, or the number of the bit",
            )
        word |= f.mask(number)
    return word


_OFFER_CHANGES = "this is a fault of the device: what it offers must not change while it is negotiated (2.2)"


def _named(type_name: str, word: int) -> str:
    return ", ".join(f"{bit.name} (bit {bit.bit})" for bit in f.names(type_name, word))


def _without(missing: int, transport: Transport, *, packed: bool) -> str:
    """The remedy for feature bits that are not offered: only what this transport can do."""
    other = transport.other_interface
    if transport.legacy and missing & ~f.LEGACY_MASK:
        return f"the legacy interface has only bits 0 to 31; {other}"
    if missing & f.mask(f.VERSION_1):
        return f"a device without VERSION_1 is a legacy device: {other or 'here it has no legacy interface'}"
    if packed and missing == f.mask(f.RING_PACKED):
        return "leave --ring packed out (ring=), or have the device offer it (QEMU: packed=on)"
    return "this driver needs these bits: enable them where the device is configured"


class RingMaker(NamedTuple):
    """Makes the rings of one device in the format, and with the options, that were negotiated."""

    address: str
    transport: Transport
    dma: DmaSpace
    features: int
    fence: Fence
    platform_fence: Fence | None

    def make_all(self, specs: Sequence[QueueSpec], made: list[Virtqueue]) -> list[tuple[QueueSpec, Virtqueue]]:
        """Make the rings of those queues that the device has.

        Args:
            specs: The queues that the driver wants.
            made: Each ring is appended as soon as it exists, so that the caller can close it if a later one
                fails.

        Returns:
            Each queue that exists, with its ring.

        Raises:
            QueueError: A required queue does not exist, or has a size that the format does not allow.
            MemlockExceeded: RLIMIT_MEMLOCK is too small to pin the memory of a ring.
        """
        pairs: list[tuple[QueueSpec, Virtqueue]] = []
        for spec in specs:
            layout = self.transport.queue_layout(spec.index)
            if layout.size_max == 0:
                if spec.required:
                    raise QueueError(
                        f"{self.address} has no {spec.name} (queue {spec.index})",
                        seen=f"queue_size 0, {self.transport.num_queues} queues",
                        expected="a queue (4.1.5.1.3)",
                        remedy=f"the driver needs {spec.name}; check how many queues the device has",
                        about="num_queues" if spec.index >= self.transport.num_queues else "queue_size 0",
                    )
                continue
            ring = self.make(spec, layout)
            made.append(ring)
            pairs.append((spec, ring))
        return pairs

    def make(self, spec: QueueSpec, layout: QueueLayout) -> Virtqueue:
        """Make the ring of one queue.

        Args:
            spec: The queue that the driver wants.
            layout: What the device allows for it: its largest size, and where its parts may lie.

        Returns:
            The ring, split or packed as negotiated.

        Raises:
            QueueError: Its size is none that the format allows (2.7, 2.8).
            MemlockExceeded: RLIMIT_MEMLOCK is too small to pin its memory.
        """
        packed, most = self._has(f.RING_PACKED), layout.size_max
        if most > MAX_SIZE or not (packed or is_power_of_two(most)):
            raise QueueError(
                f"the size of {spec.name} (queue {spec.index}) is no "
                f"{'number' if packed else 'power of two'} up to 32768",
                seen=most,
                expected="1 to 32768 (2.8)" if packed else "a power of two (2.7)",
                about="queue_size first",
            )
        # 2.7.2: a legacy queue has one fixed size.
        size = most if layout.size_fixed else min(most, spec.size, QUEUE_SIZE_MAX)
        options = RingOptions(
            fence=self.fence,
            order=self.platform_fence if self._has(f.ORDER_PLATFORM) else None,
            indirect=self._has(f.INDIRECT_DESC),
            event_idx=self._has(f.EVENT_IDX),
            in_order=self._has(f.IN_ORDER),
            # 2.7.8.1: many devices fill in a wrong length on the legacy interface.
            clamp_used_len=self.transport.legacy or spec.clamp_used_len,
            one_region=layout.one_region,
        )
        if not packed:
            return make_split(spec.index, size, self.dma, options)
        from uvirtio.virtqueue.packed import make_packed  # here: a split ring wants none of it

        return make_packed(spec.index, size, self.dma, options)

    def _has(self, bit: int) -> bool:
        return bool(self.features >> bit & 1)


def admin_queue(transport: Transport, features: int) -> list[QueueSpec]:
    """One administration queue where ADMIN_VQ was negotiated, else none: one keeps commands in order (2.13.2)."""
    if not features >> f.ADMIN_VQ & 1 or not isinstance(transport, HasAdminQueues):
        return []
    return [QueueSpec(index, ADMIN_QUEUE, size=16) for index in transport.admin_queues()[:1]]
