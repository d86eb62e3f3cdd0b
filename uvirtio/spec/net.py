"""The network device (5.1). Offsets, widths and sizes in bytes; Ethernet addresses have 6 of them."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 1

# Queues (5.1.2): receiveqN is 2 * (N - 1), transmitqN the one behind it, controlq the one behind all pairs.
RECEIVEQ: Final = 0
TRANSMITQ: Final = 1
CONTROLQ: Final = 2
"""Where the control queue is unless MQ is negotiated."""
PAIRS_MAX: Final = 0x8000  # 5.1.6.5.6

# Configuration (5.1.4).
CONFIG: Final[Layout] = (
    F("mac", 0, 6),  # with MAC
    F("status", 6, 2),  # with STATUS
    F("max_virtqueue_pairs", 8, 2),  # with MQ or RSS
    F("mtu", 10, 2),  # with MTU
    F("speed", 12, 4),  # with SPEED_DUPLEX
    F("duplex", 16, 1),
    F("rss_max_key_size", 17, 1),  # with RSS or HASH_REPORT
    F("rss_max_indirection_table_length", 18, 2),  # with RSS
    F("supported_hash_types", 20, 4),  # with RSS or HASH_REPORT
)

STATUS_LINK_UP: Final = 1
STATUS_ANNOUNCE: Final = 2
SPEED_MAX: Final = 0x7FFF_FFFF
"""In Mbit/s; what is above is unknown (5.1.4.2)."""

# Ethernet (IEEE 802.3).
MAC_SIZE: Final = 6
MACS_SIZE: Final = 12
ETHERNET_HEADER: Final = 14
VLAN_TAG: Final = 4
ETHERTYPE_VLAN: Final = 0x8100
MTU_DEFAULT: Final = 1500
BROADCAST: Final = b"\xff" * 6
VLANS: Final = 4096

# The header in front of each frame (5.1.6).
HEADER: Final[Layout] = (
    F("flags", 0, 1),
    F("gso_type", 1, 1),
    F("hdr_len", 2, 2),
    F("gso_size", 4, 2),
    F("csum_start", 6, 2),
    F("csum_offset", 8, 2),
    F("num_buffers", 10, 2),
)
HEADER_SIZE: Final = 12
HEADER_SIZE_SHORT: Final = 10  # on a legacy interface without MRG_RXBUF, where num_buffers is not there (5.1.6.1)

FRAME_MIN: Final = 60
"""Bytes to which shorter frames are padded on Ethernet (IEEE 802.3, without the checksum at the end)."""
FRAME_MAX: Final = 65550
"""Bytes of the longest frame: a packet of 65535 bytes that is to be cut, and its Ethernet header with one over."""


class HeaderFlag(IntFlag):
    """``flags`` of the header (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class Gso(IntEnum):
    """``gso_type`` of the header (5.1.6), without its ECN bit."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


GSO_ECN: Final = 0x80


# The control queue (5.1.6.5): class and command in 2 bytes, data, one byte for the device's answer.
CONTROL_HEADER_SIZE: Final = 2
ACK_SIZE: Final = 1


class Ack(IntEnum):
    """The device's answer to a command (5.1.6.5)."""

    OK = 0
    ERR = 1


class Control(IntEnum):
    """Classes of commands (5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6
    HASH_TUNNEL = 7
    STATS = 8
    RSS_CONTEXT = 9


class RxMode(IntEnum):
    """Commands of the class RX (5.1.6.5.1): what is received, whatever the tables say. One byte: 1 on, 0 off."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


MAC_TABLE_SET: Final = 0  # 5.1.6.5.2: twice le32 and as many addresses, unicast before multicast
MAC_ADDR_SET: Final = 1
VLAN_ADD: Final = 0  # 5.1.6.5.3: le16
VLAN_DEL: Final = 1
ANNOUNCE_ACK: Final = 0  # 5.1.6.5.4: no data
MQ_VQ_PAIRS_SET: Final = 0  # 5.1.6.5.6: le16
MQ_RSS_CONFIG: Final = 1  # 5.1.6.5.7
GUEST_OFFLOADS_SET: Final = 0  # 5.1.6.5.9: le64
