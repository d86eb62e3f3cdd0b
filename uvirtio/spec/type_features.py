"""The feature bits of each device type (chapter 5), and their dependencies: the tables behind ``spec.features``.

``features`` imports them when they are first asked for, since the enums take 3 ms to make, and a device without
bits of its own (rng) is ready in ten times as many.
"""

from __future__ import annotations

from enum import IntEnum

from uvirtio.spec.needs import Needs
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


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

LEGACY_SECTIONS: Final[dict[tuple[str, int], str]] = {
    ("net", Net.GSO): "5.1.3.2",
    ("blk", Blk.BARRIER): "5.2.3.1",
    ("blk", Blk.SCSI): "5.2.3.1",
}


def _needs(number: int, *any_of: int) -> Needs:
    return Needs(number, any_of)


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

OF_DRIVERS: Final[dict[str, frozenset[int]]] = {
    "net": frozenset({Net.CTRL_RX_EXTRA, Net.HASH_REPORT, Net.CTRL_GUEST_OFFLOADS, Net.DEVICE_STATS}),
    "balloon": frozenset({Balloon.PAGE_REPORTING}),
}
"""The bits whose dependency a driver should keep, and that no device has to."""
