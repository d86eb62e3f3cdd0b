"""Devices as the kernel's vDPA management interface reports them; most of all, their types.

sysfs shows a vDPA device's type only while virtio_vdpa is bound to it, and opening the node would reset it. The
generic netlink family ``vdpa`` (<linux/vdpa.h>) answers any user, changes nothing, and is what ``vdpa dev
show`` queries; that tool of iproute2 knows the names of only two types, though.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_NETLINK_GENERIC = 16
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
_VDPA_CMD_DEV_GET = 5
_MGMTDEV_BUS_NAME, _MGMTDEV_DEV_NAME, _DEV_NAME, _DEV_ID, _DEV_MAX_VQS, _DEV_MAX_VQ_SIZE = 1, 2, 4, 5, 7, 8
_HEADER, _GENERIC, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
_NESTED = 0x3FFF
"""Mask of an attribute's type: the two bits above it are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""

_TIMEOUT = 1.0
_MESSAGES = 4096

Talk = Callable[[bytes], Iterator[bytes]]
"""Sends one request and yields the datagrams that answer it, to the last one or an OSError."""


@dataclass(frozen=True, slots=True)
class VdpaDevice:
    """One vDPA device as the kernel describes it; None for an attribute that it left out."""

    name: str
    device_id: int | None
    parent: str | None
    """The management device: ``vduse``, ``pci/0000:03:00.0``."""
    max_vqs: int | None
    max_vq_size: int | None


def devices(talk: Talk | None = None) -> dict[str, VdpaDevice]:
    """All vDPA devices by name. A malformed answer of the kernel is no exception.

    Call it only where the vdpa module is loaded: the request would make the kernel load it.

    Args:
        talk: Sends a request and yields the answers; None: a netlink socket.

    Returns:
        Name -> device; empty where the kernel cannot be asked.
    """
    try:
        if talk is not None:
            return _devices(talk)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as link:
            link.settimeout(_TIMEOUT)
            link.bind((0, 0))
            return _devices(lambda request: _ask(link, request))
    except (OSError, struct.error, ValueError):
        return {}


def _ask(link: socket.socket, request: bytes) -> Iterator[bytes]:
    link.send(request)
    while True:
        yield link.recv(1 << 17)


def _devices(talk: Talk) -> dict[str, VdpaDevice]:
    name = b"vdpa\0"
    for body in _answers(talk, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _attribute(_CTRL_ATTR_FAMILY_NAME, name)):
        family = _number(_attributes(body).get(_CTRL_ATTR_FAMILY_ID))
        break
    else:
        return {}
    if family is None:
        return {}
    found = {}
    for body in _answers(talk, family, _VDPA_CMD_DEV_GET, b"", dump=True):
        fields = _attributes(body)
        device = _text(fields.get(_DEV_NAME))
        if device is not None:
            found[device] = VdpaDevice(
                device,
                _number(fields.get(_DEV_ID)),
                "/".join(
                    filter(None, (_text(fields.get(_MGMTDEV_BUS_NAME)), _text(fields.get(_MGMTDEV_DEV_NAME))))
                )
                or None,
                _number(fields.get(_DEV_MAX_VQS)),
                _number(fields.get(_DEV_MAX_VQ_SIZE)),
            )
    return found


def _answers(talk: Talk, family: int, command: int, attributes: bytes, *, dump: bool = False) -> Iterator[bytes]:
    """The bodies of the messages that answer one request.

    Raises:
        OSError: The kernel refused it.
        ValueError: A message is cut short.
    """
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    payload = _GENERIC.pack(command, 1, 0) + attributes
    request = _HEADER.pack(_HEADER.size + len(payload), family, flags, 1, 0) + payload
    seen = 0
    for datagram in talk(request):
        at = 0
        while at + _HEADER.size <= len(datagram):
            length, kind, _flags, _sequence, _port = _HEADER.unpack_from(datagram, at)
            if length < _HEADER.size or at + length > len(datagram):
                raise ValueError("a netlink message that is cut short")
            body = datagram[at + _HEADER.size : at + length]
            at += -(-length // 4) * 4
            seen += 1
            if kind == _NLMSG_DONE or seen > _MESSAGES:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(-int.from_bytes(body[:4], "little", signed=True), "the kernel's answer")
            yield body[_GENERIC.size :]
            if not dump:
                return


def _attribute(kind: int, data: bytes) -> bytes:
    text = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data
    return text + bytes(-len(text) % 4)


def _attributes(body: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found[kind & _NESTED] = body[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found


def _number(data: bytes | None) -> int | None:
    return int.from_bytes(data, "little") if data is not None and len(data) in (2, 4) else None


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.split(b"\0", 1)[0].decode("utf-8", errors="replace")
