"""Feature bits (2.2, 6): all 128, with their names, ranges and dependencies.

A *word* is the whole bitmap as one integer, bit 0 lowest. Bit *numbers* are in the enums; ``bit(n)`` makes
the mask. Names are the standard's without their ``VIRTIO_..._F_`` prefix. Where the kernel's header and the
standard differ (BALLOON_F_REPORTING), the standard's name is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from uvirtio.errors import Misuse

MAX_BITS: Final = 128  # what the transports carry today: four words of 32 bits (2.2, 4.1.4.3)
ALL: Final = (1 << MAX_BITS) - 1
LEGACY_MASK: Final = 0xFFFFFFFF  # a legacy interface has bits 0 to 31 only (4.1.4.10)


class Reserved(IntEnum):
    """The device-independent bits (6), and those of the legacy interface (6.3)."""

    NOTIFY_ON_EMPTY = 24  # 6.3, legacy only
    ANY_LAYOUT = 27  # 6.3, legacy only
    INDIRECT_DESC = 28  # 6
    EVENT_IDX = 29  # 6
    UNUSED = 30  # 6.3: QEMU's probe for broken drivers, not to be negotiated
    VERSION_1 = 32  # 6
    ACCESS_PLATFORM = 33  # 6
    RING_PACKED = 34  # 6
    IN_ORDER = 35  # 6
    ORDER_PLATFORM = 36  # 6
    SR_IOV = 37  # 6
    NOTIFICATION_DATA = 38  # 6
    NOTIF_CONFIG_DATA = 39  # 6
    RING_RESET = 40  # 6
    ADMIN_VQ = 41  # 6
    SUSPEND = 43  # 6


NOTIFY_ON_EMPTY: Final = Reserved.NOTIFY_ON_EMPTY
ANY_LAYOUT: Final = Reserved.ANY_LAYOUT
INDIRECT_DESC: Final = Reserved.INDIRECT_DESC
EVENT_IDX: Final = Reserved.EVENT_IDX
VERSION_1: Final = Reserved.VERSION_1
ACCESS_PLATFORM: Final = Reserved.ACCESS_PLATFORM
RING_PACKED: Final = Reserved.RING_PACKED
IN_ORDER: Final = Reserved.IN_ORDER
ORDER_PLATFORM: Final = Reserved.ORDER_PLATFORM
SR_IOV: Final = Reserved.SR_IOV
NOTIFICATION_DATA: Final = Reserved.NOTIFICATION_DATA
NOTIF_CONFIG_DATA: Final = Reserved.NOTIF_CONFIG_DATA
RING_RESET: Final = Reserved.RING_RESET
ADMIN_VQ: Final = Reserved.ADMIN_VQ
SUSPEND: Final = Reserved.SUSPEND

LEGACY_ONLY: Final = frozenset({NOTIFY_ON_EMPTY, ANY_LAYOUT, Reserved.UNUSED})
"""Bits that have a meaning on a legacy interface alone (6.3)."""


class Net(IntEnum):
    """5.1.3; GSO, GUEST_RSC4 and GUEST_RSC6 are legacy (5.1.3.2)."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GSO = 6
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    DEVICE_STATS = 50
    HASH_TUNNEL = 51
    VQ_NOTF_COAL = 52
    NOTF_COAL = 53
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56
    HASH_REPORT = 57
    GUEST_HDRLEN = 59
    RSS = 60
    RSC_EXT = 61
    STANDBY = 62
    SPEED_DUPLEX = 63
    RSS_CONTEXT = 64
    GUEST_UDP_TUNNEL_GSO = 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 66
    HOST_UDP_TUNNEL_GSO = 67
    HOST_UDP_TUNNEL_GSO_CSUM = 68
    OUT_NET_HEADER = 69


class Blk(IntEnum):
    """5.2.3; BARRIER and SCSI are legacy (5.2.3.1)."""

    BARRIER = 0
    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    SCSI = 7
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17


class Console(IntEnum):
    """5.3.3."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


class Balloon(IntEnum):
    """5.5.3."""

    MUST_TELL_HOST = 0
    STATS_VQ = 1
    DEFLATE_ON_OOM = 2
    FREE_PAGE_HINT = 3
    PAGE_POISON = 4
    PAGE_REPORTING = 5


class Rpmsg(IntEnum):
    """No text in the standard; Linux's drivers/rpmsg/virtio_rpmsg_bus.c."""

    NS = 0


class Scsi(IntEnum):
    """5.6.3."""

    INOUT = 0
    HOTPLUG = 1
    CHANGE = 2
    T10_PI = 3


class NineP(IntEnum):
    """No text in the standard; <linux/virtio_9p.h>."""

    MOUNT_TAG = 0


class Gpu(IntEnum):
    """5.7.3."""

    VIRGL = 0
    EDID = 1
    RESOURCE_UUID = 2
    RESOURCE_BLOB = 3
    CONTEXT_INIT = 4
    BLOB_ALIGNMENT = 5


class Rtc(IntEnum):
    """5.23.3."""

    ALARM = 0


class Vsock(IntEnum):
    """5.10.3."""

    STREAM = 0
    SEQPACKET = 1
    NO_IMPLIED_STREAM = 2


class Crypto(IntEnum):
    """5.9.3."""

    REVISION_1 = 0
    CIPHER_STATELESS_MODE = 1
    HASH_STATELESS_MODE = 2
    MAC_STATELESS_MODE = 3
    AEAD_STATELESS_MODE = 4
    AKCIPHER_STATELESS_MODE = 5


class Iommu(IntEnum):
    """5.13.3."""

    INPUT_RANGE = 0
    DOMAIN_RANGE = 1
    MAP_UNMAP = 2
    BYPASS = 3
    PROBE = 4
    MMIO = 5
    BYPASS_CONFIG = 6


class Mem(IntEnum):
    """5.15.3."""

    ACPI_PXM = 0
    UNPLUGGED_INACCESSIBLE = 1
    PERSISTENT_SUSPEND = 2


class Sound(IntEnum):
    """5.14.3."""

    CTLS = 0


class Fs(IntEnum):
    """5.11.3."""

    NOTIFICATION = 0


class Pmem(IntEnum):
    """5.19.3."""

    SHMEM_REGION = 0


class Scmi(IntEnum):
    """5.17.3."""

    P2A_CHANNELS = 0
    SHARED_MEMORY = 1


class I2c(IntEnum):
    """5.16.3."""

    ZERO_LENGTH_REQUEST = 0


class Can(IntEnum):
    """5.20.3."""

    CAN_CLASSIC = 0
    CAN_FD = 1
    RTR_FRAMES = 2
    LATE_TX_ACK = 3


class Bt(IntEnum):
    """No text in the standard; <linux/virtio_bt.h>."""

    VND_HCI = 0
    MSFT_EXT = 1
    AOSP_EXT = 2
    CONFIG_V2 = 3


class Gpio(IntEnum):
    """5.18.3."""

    IRQ = 0


DEVICE_BITS: Final[dict[str, tuple[type[IntEnum], str]]] = {
    "net": (Net, "5.1.3"),
    "blk": (Blk, "5.2.3"),
    "console": (Console, "5.3.3"),
    "balloon": (Balloon, "5.5.3"),
    "rpmsg": (Rpmsg, ""),
    "scsi": (Scsi, "5.6.3"),
    "9p": (NineP, ""),
    "gpu": (Gpu, "5.7.3"),
    "rtc": (Rtc, "5.23.3"),
    "vsock": (Vsock, "5.10.3"),
    "crypto": (Crypto, "5.9.3"),
    "iommu": (Iommu, "5.13.3"),
    "mem": (Mem, "5.15.3"),
    "sound": (Sound, "5.14.3"),
    "fs": (Fs, "5.11.3"),
    "pmem": (Pmem, "5.19.3"),
    "scmi": (Scmi, "5.17.3"),
    "i2c": (I2c, "5.16.3"),
    "can": (Can, "5.20.3"),
    "bt": (Bt, ""),
    "gpio": (Gpio, "5.18.3"),
}
"""The bits of each device type, and their section. Other types define none (rng 5.4.3, input 5.8.3)."""

_LEGACY_SECTIONS: Final[dict[tuple[str, int], str]] = {
    ("net", Net.GSO): "5.1.3.2",
    ("blk", Blk.BARRIER): "5.2.3.1",
    ("blk", Blk.SCSI): "5.2.3.1",
}

# Bits of one type before 1.0, where a device-independent bit is now (5.1.3.2).
_NET_LEGACY_RSC: Final = {41: "GUEST_RSC4", 42: "GUEST_RSC6"}


def bit(number: int) -> int:
    """Return the mask with only bit ``number`` set."""
    return 1 << number


def mask(*numbers: int) -> int:
    """Return the word in which exactly the bits ``numbers`` are set."""
    word = 0
    for number in numbers:
        word |= 1 << number
    return word


def has(word: int, number: int) -> bool:
    """Return whether bit ``number`` is set in ``word``."""
    return bool(word >> number & 1)


def bits(word: int) -> list[int]:
    """Return the numbers of the bits set in ``word``, lowest first."""
    return [number for number in range(word.bit_length()) if word >> number & 1]


class Kind(Enum):
    """The ranges of feature bits (2.2)."""

    DEVICE = "device"  # 0 to 23, 41, 42, 50 to 127: the device type's
    RING = "ring"  # 24 to 40, 43: queues and negotiation
    FUTURE = "future"  # 44 to 49, 128 and up: reserved


def kind(number: int) -> Kind:
    """Return the range of bit ``number`` (2.2).

    ADMIN_VQ is 41, which 2.2 counts among the device types' bits; chapter 6 defines it for all types, so it is
    a ring bit here.
    """
    if number == ADMIN_VQ:
        return Kind.RING
    if number <= 23 or number == 42 or 50 <= number < MAX_BITS:
        return Kind.DEVICE
    if number <= 40 or number == 43:
        return Kind.RING
    return Kind.FUTURE


DEVICE_TYPE_MASK: Final = mask(*(number for number in range(MAX_BITS) if kind(number) is Kind.DEVICE))
"""The bits that belong to the device type, whatever the type."""


class FeatureBit(NamedTuple):
    """One feature bit of a device type."""

    bit: int
    name: str
    """The standard's name; ``bit N`` where it has none."""
    section: str
    """The section that defines it; empty where none does."""
    kind: Kind

    @property
    def known(self) -> bool:
        """Whether the standard or the kernel names the bit."""
        return self.name != f"bit {self.bit}"


def feature(type_name: str, number: int) -> FeatureBit:
    """Look up a feature bit.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        number: The bit.

    Returns:
        What the bit means for this type.
    """
    owner = kind(number)
    if owner is Kind.DEVICE and type_name in DEVICE_BITS:
        family, section = DEVICE_BITS[type_name]
        for entry in family:
            if entry.value == number:
                return FeatureBit(number, entry.name, _LEGACY_SECTIONS.get((type_name, number), section), owner)
    if owner is Kind.DEVICE and type_name == "net" and number in _NET_LEGACY_RSC:
        return FeatureBit(number, _NET_LEGACY_RSC[number], "5.1.3.2", owner)
    for reserved in Reserved:
        if reserved.value == number:
            return FeatureBit(number, reserved.name, "6.3" if reserved in LEGACY_ONLY else "6", owner)
    return FeatureBit(number, f"bit {number}", "", owner)


def names(type_name: str, word: int) -> list[FeatureBit]:
    """Look up every bit that is set in a word.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        word: The feature bits.

    Returns:
        The bits, lowest first, including those without a name.

    Raises:
        Misuse: ``word`` is negative.
    """
    if word < 0:
        raise Misuse("a feature word is not negative", seen=word, expected="0 or more")
    return [feature(type_name, number) for number in bits(word)]


def numbered(type_name: str, text: str) -> int | None:
    """The number of a feature bit that is written as a name of this type or as a number; None: there is none.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        text: ``EVENT_IDX``, ``event_idx``, ``VIRTIO_F_EVENT_IDX``, ``29`` or ``0x1d``.
    """
    plain = text.strip().upper().replace("-", "_")
    if plain.isascii() and plain[:1].isdigit():
        try:
            number = int(plain, 0)
        except ValueError:
            return None
        return number if number < MAX_BITS else None
    plain = re.sub(rf"^VIRTIO_(F|RING_F|{re.escape(type_name.upper())}_F)_", "", plain)
    return next((bit for bit in bits(known(type_name)) if feature(type_name, bit).name == plain), None)


class Decoded(NamedTuple):
    """The bits of a word by range (2.2)."""

    device: list[FeatureBit]
    """Those of the device type."""
    ring: list[FeatureBit]
    """Those of queues and negotiation."""
    future: list[FeatureBit]
    """Reserved ones."""


def decode(type_name: str, word: int) -> Decoded:
    """Look up every bit that is set in a word, by range.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        word: The feature bits.

    Raises:
        Misuse: ``word`` is negative.
    """
    found = names(type_name, word)
    return Decoded(
        device=[entry for entry in found if entry.kind is Kind.DEVICE],
        ring=[entry for entry in found if entry.kind is Kind.RING],
        future=[entry for entry in found if entry.kind is Kind.FUTURE],
    )


def known(type_name: str) -> int:
    """Return the word of all bits that have a name for this type: its own and the device-independent ones."""
    family = DEVICE_BITS.get(type_name)
    own = mask(*family[0]) if family else 0
    return own | mask(*Reserved)


# --- dependencies --------------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """A dependency: ``bit`` may be accepted only together with at least one of ``any_of`` (2.2.1)."""

    bit: int
    any_of: tuple[int, ...]


def _needs(number: int, *any_of: int) -> Needs:
    return Needs(number, any_of)


RESERVED_DEPENDS: Final[tuple[Needs, ...]] = tuple(
    # A legacy interface has no word above the first (4.1.4.10): everything from 33 on needs VERSION_1.
    _needs(number, VERSION_1)
    for number in range(33, MAX_BITS)
)

DEPENDS: Final[dict[str, tuple[Needs, ...]]] = {
    # 5.1.3.1
    "net": (
        _needs(Net.GUEST_TSO4, Net.GUEST_CSUM),
        _needs(Net.GUEST_TSO6, Net.GUEST_CSUM),
        _needs(Net.GUEST_ECN, Net.GUEST_TSO4, Net.GUEST_TSO6),
        _needs(Net.GUEST_UFO, Net.GUEST_CSUM),
        _needs(Net.GUEST_USO4, Net.GUEST_CSUM),
        _needs(Net.GUEST_USO6, Net.GUEST_CSUM),
        _needs(Net.GUEST_UDP_TUNNEL_GSO, Net.GUEST_TSO4),
        _needs(Net.GUEST_UDP_TUNNEL_GSO, Net.GUEST_TSO6),
        _needs(Net.GUEST_UDP_TUNNEL_GSO, Net.GUEST_USO4),
        _needs(Net.GUEST_UDP_TUNNEL_GSO, Net.GUEST_USO6),
        _needs(Net.GUEST_UDP_TUNNEL_GSO_CSUM, Net.GUEST_UDP_TUNNEL_GSO),
        _needs(Net.HOST_TSO4, Net.CSUM),
        _needs(Net.HOST_TSO6, Net.CSUM),
        _needs(Net.HOST_ECN, Net.HOST_TSO4, Net.HOST_TSO6),
        _needs(Net.HOST_UFO, Net.CSUM),
        _needs(Net.HOST_USO, Net.CSUM),
        _needs(Net.HOST_UDP_TUNNEL_GSO, Net.HOST_TSO4),
        _needs(Net.HOST_UDP_TUNNEL_GSO, Net.HOST_TSO6),
        _needs(Net.HOST_UDP_TUNNEL_GSO, Net.HOST_USO),
        _needs(Net.HOST_UDP_TUNNEL_GSO_CSUM, Net.HOST_UDP_TUNNEL_GSO),
        _needs(Net.CTRL_RX, Net.CTRL_VQ),
        _needs(Net.CTRL_RX_EXTRA, Net.CTRL_VQ),  # 5.1.4.2, a SHOULD
        _needs(Net.CTRL_VLAN, Net.CTRL_VQ),
        _needs(Net.CTRL_GUEST_OFFLOADS, Net.CTRL_VQ),  # 5.1.6.5.6: its commands go through the control queue
        _needs(Net.GUEST_ANNOUNCE, Net.CTRL_VQ),
        _needs(Net.MQ, Net.CTRL_VQ),
        _needs(Net.CTRL_MAC_ADDR, Net.CTRL_VQ),
        _needs(Net.NOTF_COAL, Net.CTRL_VQ),
        _needs(Net.VQ_NOTF_COAL, Net.CTRL_VQ),
        _needs(Net.RSC_EXT, Net.HOST_TSO4, Net.HOST_TSO6),
        _needs(Net.RSS, Net.CTRL_VQ),
        _needs(Net.RSS_CONTEXT, Net.CTRL_VQ),
        _needs(Net.RSS_CONTEXT, Net.RSS),
        _needs(Net.HASH_TUNNEL, Net.CTRL_VQ),
        _needs(Net.HASH_TUNNEL, Net.RSS, Net.HASH_REPORT),
        _needs(Net.HASH_REPORT, Net.CTRL_VQ),  # 5.1.4.2, a SHOULD
        _needs(Net.DEVICE_STATS, Net.CTRL_VQ),  # 5.1.6.5: they come through the control queue
    ),
    "blk": (_needs(Blk.CONFIG_WCE, Blk.FLUSH),),  # 5.2.5.2: a device offers the first only with the second
    # 5.5.3.1: a driver whose free pages keep an initial value takes reporting only with poison. This is for such
    # a driver; one that expects nothing of the contents of its pages passes dependencies of its own.
    "balloon": (_needs(Balloon.PAGE_REPORTING, Balloon.PAGE_POISON),),
    "gpu": (_needs(Gpu.CONTEXT_INIT, Gpu.VIRGL),),  # 5.7.3
    "crypto": tuple(  # 5.9.3.1
        _needs(number, Crypto.REVISION_1)
        for number in (
            Crypto.CIPHER_STATELESS_MODE,
            Crypto.HASH_STATELESS_MODE,
            Crypto.MAC_STATELESS_MODE,
            Crypto.AEAD_STATELESS_MODE,
            Crypto.AKCIPHER_STATELESS_MODE,
        )
    ),
    "can": (_needs(Can.RTR_FRAMES, Can.CAN_CLASSIC),),  # 5.20.3.1
}
"""The dependencies of each device type (2.2.1). Those common to all types are in ``RESERVED_DEPENDS``."""


def dependencies(type_name: str) -> tuple[Needs, ...]:
    """Return all dependencies of a device type: those of every device, and its own."""
    return RESERVED_DEPENDS + DEPENDS.get(type_name, ())


_OF_DRIVERS: Final[dict[str, frozenset[int]]] = {
    "net": frozenset({Net.CTRL_RX_EXTRA, Net.HASH_REPORT, Net.CTRL_GUEST_OFFLOADS, Net.DEVICE_STATS}),
    "balloon": frozenset({Balloon.PAGE_REPORTING}),
}
"""The bits whose dependency a driver should keep, and that no device has to."""


def device_dependencies(type_name: str) -> tuple[Needs, ...]:
    """Return the dependencies that a device of this type has to keep in its offer (2.2.2).

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
    """
    left = _OF_DRIVERS.get(type_name, frozenset())
    return tuple(rule for rule in dependencies(type_name) if rule.bit not in left)


def resolve(offered: int, wanted: int, dependencies: Iterable[Needs] = RESERVED_DEPENDS) -> int:
    """Choose the feature bits to accept (2.2.1): offered and wanted, without those whose dependency is not met.

    Dropping one bit can break the dependency of another, so this repeats until nothing changes; every round but
    the last drops at least one bit.

    Args:
        offered: The word that the device offers.
        wanted: The word that the driver supports.
        dependencies: Which bit needs which.

    Returns:
        The word to accept.
    """
    rules = tuple(dependencies)
    taken = offered & wanted
    while True:
        dropped = mask(*(rule.bit for rule in rules if has(taken, rule.bit) and not taken & mask(*rule.any_of)))
        if not dropped:
            return taken
        taken &= ~dropped


def needed(type_name: str, rule: Needs) -> str:
    """The names of the bits that a dependency asks for one of, as ``CTRL_VQ`` or ``GUEST_TSO4 or GUEST_TSO6``."""
    return " or ".join(feature(type_name, bit).name for bit in rule.any_of)


def unmet(word: int, dependencies: Iterable[Needs] = RESERVED_DEPENDS) -> list[Needs]:
    """Return the dependencies that ``word`` breaks; a device that offers such a word is at fault (2.2.2)."""
    return [rule for rule in dependencies if has(word, rule.bit) and not word & mask(*rule.any_of)]
