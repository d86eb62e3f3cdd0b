"""The configuration that the front end brings, for types whose back ends have none (no PROTOCOL_F_CONFIG).

A filesystem's tag and a network device's MAC address are not the back end's to know: in a virtual machine the VMM
has them. Here the address does: ``vhost-user:fs,tag=shared:SOCKET``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from uvirtio.spec import features as f
from uvirtio.spec import fs

NET: Final = 1
_LINK_UP: Final = 1  # VIRTIO_NET_S_LINK_UP, 5.1.4

_MULTICAST: Final = 1
"""The bit of a MAC address's first byte that no address of one interface has (IEEE 802)."""


@dataclass(frozen=True, slots=True)
class FieldKey:
    """A key of an address that is a field of the configuration."""

    device_id: int
    pattern: str
    """What its value looks like, as a regular expression without groups."""
    help: str
    wrong: Callable[[str], str]
    """Says what is wrong with a value of this look; empty: nothing."""


def _mac(value: str) -> bytes:
    return bytes(int(part, 16) for part in value.split(":"))


def _wrong_mac(value: str) -> str:
    mac = _mac(value)
    if mac[0] & _MULTICAST:
        return "is the address of a group"
    return "" if any(mac) else "is no address"


def _wrong_tag(value: str) -> str:
    return "" if len(os.fsencode(value)) <= fs.TAG_SIZE else f"has more than {fs.TAG_SIZE} bytes (5.11.4)"


KEYS: Final[dict[str, FieldKey]] = {
    "mac": FieldKey(NET, r"(?i:[0-9a-f]{2}(?::[0-9a-f]{2}){5})", "a MAC address: 52:54:00:12:34:56", _wrong_mac),
    "tag": FieldKey(fs.TYPE, r"[^,:/\x00-\x1f]+", "the name of the filesystem", _wrong_tag),
}
"""The keys that may stand behind the type in an address."""


def wrong(name: str, value: str, device_id: int) -> str:
    """Say what is wrong with a key of an address; empty where nothing is.

    Args:
        name: The key.
        value: Its value.
        device_id: The device's type.
    """
    key = KEYS.get(name)
    if key is None:
        return f"{name}= is not one of {', '.join(f'{known}=' for known in KEYS)}"
    if key.device_id != device_id:
        return f"{name}= is no field of this type"
    if re.fullmatch(key.pattern, value) is None:
        return f"{name}={value} is not {key.help}"
    said = key.wrong(value)
    return f"{name}={value} {said}" if said else ""


def config(given: Mapping[str, str], queues: int) -> bytes:
    """The configuration that the fields of an address make; empty where it has none.

    Args:
        given: The fields, checked by ``wrong``.
        queues: Number of queues of the back end.
    """
    if "mac" in given:
        # 5.1.4: mac, status, max_virtqueue_pairs. Only mac is told by a feature bit.
        return _mac(given["mac"]) + _LINK_UP.to_bytes(2, "little") + (1).to_bytes(2, "little")
    if "tag" in given:
        # 5.11.4: tag, num_request_queues; the first queue is hiprio's.
        return os.fsencode(given["tag"]).ljust(fs.TAG_SIZE, b"\0") + max(1, queues - 1).to_bytes(4, "little")
    return b""


def offered(given: Mapping[str, str]) -> int:
    """The feature bits that say that the fields are there."""
    return f.mask(f.Net.MAC) if "mac" in given else 0


WITHOUT_CONFIG: Final[dict[int, int]] = {
    NET: f.mask(
        f.Net.MTU,
        f.Net.MAC,
        f.Net.STATUS,
        f.Net.MQ,
        f.Net.HASH_REPORT,
        f.Net.RSS,
        f.Net.STANDBY,
        f.Net.SPEED_DUPLEX,
    )
}
"""Feature bits that stand for fields of the configuration, by device ID: hidden where the back end has none."""

FRONT_ENDS: Final[dict[int, int]] = {
    # The control queue is served by the VMM; a back end has the receive and transmit queues alone. Its bits are in
    # the back end's word because a VMM offers its guest nothing that the back end does not know.
    NET: f.mask(
        f.Net.CTRL_GUEST_OFFLOADS,
        f.Net.CTRL_VQ,
        f.Net.CTRL_RX,
        f.Net.CTRL_VLAN,
        f.Net.CTRL_RX_EXTRA,
        f.Net.GUEST_ANNOUNCE,
        f.Net.MQ,
        f.Net.CTRL_MAC_ADDR,
        f.Net.DEVICE_STATS,
        f.Net.VQ_NOTF_COAL,
        f.Net.NOTF_COAL,
        f.Net.HASH_REPORT,
        f.Net.RSS,
        f.Net.RSS_CONTEXT,
    )
}
"""Feature bits of what a VMM does itself and this front end does not, by device ID: hidden."""
