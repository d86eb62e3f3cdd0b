"""What other programs and the kernel answer, past their greetings: QMP, qtest, vhost-user, netlink, vDPA, uevents.

All that the other side will ever say is on the socket before the first question, and then its end: no thread, and
the same at every run.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fuzzers.target import Feed, Lie, Target
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.vhost_user import VhostUserNode, spec
from uvirtio.backends.vhost_vdpa.node import VhostVdpaNode
from uvirtio.binding import vdpa_netlink
from uvirtio.errors import UvirtioError
from uvirtio.host import uevents
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel

_TIMEOUT = 5.0
"""Seconds; the end of the stream comes first."""
_NOWHERE = Roots.under("/nonexistent")


@contextmanager
def _said(data: bytes) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket at whose other end all this was said, and then hung up."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        yield near, far


class QmpAnswers(Target):
    """QEMU's control protocol."""

    name = "qmp"
    about = "QMP after its greeting: answers, errors and events, in lines of JSON"
    weight = 50_000
    modules = ("backends/qemu/qmp", "backends/qemu/connection", "backends/qemu/queries")
    most = 4000
    tokens = (
        b'{"return":',
        b'{"error":',
        b'"id":1',
        b'"id":2',
        b'"class":"GenericError"',
        b'{"event":',
        b"}\n",
        b"{}",
        b'"DEVICE_DELETED"',
        b'"data":{"device":"a"}',
        b"[",
        b'{"a":',
        b"\n",
        b"null",
        b"1e999",
        b"\xff\xfe",
        b'"desc":',
        b"Infinity",
        b'"\\ud800"',
    )
    _GREETING = (
        b'{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}\n'
        b'{"return":{},"id":1}\n'
    )

    def seeds(self) -> Iterable[bytes]:
        yield self._GREETING + b'{"return":{"status":"running"},"id":2}\n{"return":[],"id":3}\n'
        yield (
            self._GREETING
            + b'{"event":"DEVICE_DELETED","data":{"device":"x"},"timestamp":{}}\n'
            + (b'{"error":{"class":"GenericError","desc":"no"},"id":2}\n')
        )
        yield b'{"QMP":{"version":{"qemu":{"micro":1e999,"minor":2,"major":7}}}}\n'
        yield self._GREETING + b'{"return":{"micro":1,"qemu":{"major":8}},"id":2}\n{"id":3,"return":"a\\nb"}\n'

    def run(self, data: bytes) -> Hashable:
        with _said(data) as (near, _):
            client = Qmp(near, timeout=_TIMEOUT, why=lambda: "it was played")
            try:
                client.greet(_TIMEOUT)
                first = client.execute("query-status")
                client.events("DEVICE_DELETED")
                second = client.execute("qom-list", path="/")
            finally:
                client.close()
        return type(first).__name__, type(second).__name__, len(client.deleted)


class QtestAnswers(Target):
    """QEMU's register accesses."""

    name = "qtest"
    about = "qtest: answers to reads and writes, and interrupt lines between them"
    weight = 50_000
    modules = ("backends/qemu/qtest",)
    most = 600
    tokens = (
        b"OK\n",
        b"OK 0x12\n",
        b"FAIL Unknown command\n",
        b"IRQ raise 3\n",
        b"IRQ lower 3\n",
        b"ERR ",
        b"0x",
        b"\n",
        b"IRQ ",
        b"raise ",
        b"9" * 12,
    )

    def seeds(self) -> Iterable[bytes]:
        yield b"OK 0x0000000000000012\nIRQ raise 5\nOK\nOK 0x1\nOK\nOK 0x7\nOK\nOK\nOK\nIRQ lower 5\n"

    def run(self, data: bytes) -> Hashable:
        with _said(data) as (near, _):
            client = Qtest(near, timeout=_TIMEOUT, why=lambda: "it was played")
            try:
                value = client.read(4, 0xE000_0000)
                client.write(2, 0xE000_0000, 0xFFFF)
                client.exchange([(0xCF8, 4, 0x8000_0000), (0xCFC, 2, None)], ports=True)
                client.post([(0, 4, 1), (4, 4, 2)])
                client.intercept("ioapic")
                client.drain()
            finally:
                client.close()
            if value < 0:
                raise Lie(f"a register reads as {value}")
            return client.irq_line(5).level


class _Played:
    """A ``Daemon`` whose one connection was made already."""

    pid = 0
    program = "/nonexistent"
    serves_one = True
    exited = True

    def __init__(self, connected: socket.socket) -> None:
        self._connected: socket.socket | None = connected

    def take_connected(self) -> socket.socket | None:
        made, self._connected = self._connected, None
        return made

    def autopsy(self) -> str:
        return "it was played"

    def close(self) -> None:
        return None


def _reply(request: int, payload: bytes) -> bytes:
    return spec.HEADER.pack(request, spec.VERSION | spec.REPLY, len(payload)) + payload


_U64 = struct.Struct("<Q")


class VhostUserReplies(Target):
    """Replies of a vhost-user back end."""

    name = "vhost-user"
    about = (
        "vhost-user after the first message: features, protocol features, queues, configuration, acknowledgements"
    )
    weight = 8_000
    modules = ("backends/vhost_user/",)
    most = 900
    tokens = (
        *(spec.HEADER.pack(request, spec.VERSION | spec.REPLY, 8) for request in (1, 15, 17, 24, 36, 3)),
        *map(_U64.pack, (1 << 32 | 1 << 30, 0, 8, 0x20F)),
    )

    def seeds(self) -> Iterable[bytes]:
        features = _reply(spec.Request.GET_FEATURES, _U64.pack(1 << 32 | 1 << 30 | 1 << 29))
        for bits in (0, 1 << 0 | 1 << 3 | 1 << 9, 1 << 9 | 1 << 0):
            protocol = _reply(spec.Request.GET_PROTOCOL_FEATURES, _U64.pack(bits))
            acks = _reply(spec.Request.SET_PROTOCOL_FEATURES, _U64.pack(0))
            owner = _reply(spec.Request.SET_OWNER, _U64.pack(0))
            queues = _reply(spec.Request.GET_QUEUE_NUM, _U64.pack(4))
            config = _reply(spec.Request.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(range(60)))
            for kind in (b"\0", b"\2"):
                yield kind + features + protocol + acks + owner + queues + config + features + features
                yield kind + features + protocol + queues + config + features + acks
                yield kind + features + protocol + owner + queues + config * 3

    def run(self, data: bytes) -> Hashable:
        feed = Feed(data)
        device_id = (2, 1, 4, 8, 26)[feed.byte() % 5]
        with _said(feed.rest()) as (near, _):
            node = VhostUserNode(
                "/nonexistent",
                device_id,
                address="vhost-user:2:/nonexistent",
                timeout=_TIMEOUT,
                roots=_NOWHERE,
                slots=bool(data[:1] > b"\x80"),
                daemon=_Played(near),
            )
            with node:
                length = node.get_config_size()
                if length and len(node.get_config(0, length)) != length:
                    raise Lie("a configuration of another length")
                queues = node.get_vqs_count()
                node.set_features(node.get_features())
                for index in range(min(queues, 2)):
                    node.set_vring_num(index, node.get_vring_size(index) or 8)
                    node.set_vring_base(index, 0)
                    node.get_vring_base(index)
                node.set_status(0)
            return length, min(queues, 9)


def _attribute(kind: int, data: bytes) -> bytes:
    text = struct.pack("=HH", 4 + len(data), kind) + data
    return text + bytes(-len(text) % 4)


def _message(kind: int, body: bytes) -> bytes:
    text = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body
    return text + bytes(-len(text) % 4)


class NetlinkAnswers(Target):
    """The kernel's answers about vDPA devices, and its uevents."""

    name = "netlink"
    about = "generic netlink's answers about vDPA devices, and uevents of the kernel"
    weight = 300_000
    modules = ("binding/vdpa_netlink", "host/uevents")
    most = 500
    tokens = (
        _attribute(4, b"vdpa0\0"),
        _attribute(5, struct.pack("=I", 4)),
        _message(3, bytes(4)),
        b"ACTION=add\0",
        _message(2, struct.pack("=i", -1)),
        b"add@/devices/x\0",
        b"SUBSYSTEM=pci\0",
        b"DEVPATH=/devices/x\0",
        b"SEQNUM=9\0",
        b"\0",
    )

    def seeds(self) -> Iterable[bytes]:
        family = _message(0x10, bytes(4) + _attribute(2, b"vdpa\0") + _attribute(1, struct.pack("=H", 0x1D)))
        device = _message(
            0x1D,
            bytes(4)
            + _attribute(1, b"pci\0")
            + _attribute(2, b"0000:03:00.0\0")
            + _attribute(4, b"vdpa0\0")
            + _attribute(5, struct.pack("=I", 4)),
        )
        yield bytes([len(family)]) + family + device + _message(3, bytes(4))
        yield b"\0add@/devices/pci0000:00/0000:00:01.0\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=pci\0SEQNUM=7\0"

    def run(self, data: bytes) -> Hashable:
        first, rest = data[:1], data[1:]
        if not first or first == b"\0":
            found = uevents.parse(rest)
            return None if found is None else (found.name == "", found.action == "add")
        datagrams = [rest[: first[0]], rest[first[0] :]]

        def talk(request: bytes) -> Iterator[bytes]:
            if datagrams:
                yield datagrams.pop(0)
            raise TimeoutError("no more")

        made = vdpa_netlink.devices(talk)
        return len(made), any(one.device_id is None for one in made.values())


class VdpaAnswers(Target):
    """What a vhost-vdpa node's ioctls answer."""

    name = "vdpa"
    about = "a vhost-vdpa node's ioctls: any result, any error"
    weight = 4_000
    modules = ("backends/vhost_vdpa/",)
    most = 400

    def seeds(self) -> Iterable[bytes]:
        yield bytes(64)
        yield b"\0" + b"\x01" * 200

    def run(self, data: bytes) -> Hashable:
        feed = Feed(data)

        def ioctl(fd: int, request: int, argument: Any) -> int:
            kind = feed.byte()
            if kind > 200:
                raise OSError(kind - 190, os.strerror(kind - 190))
            if request >> 30 & 2 and isinstance(argument, bytearray):
                answer = feed.take(min(feed.byte(), len(argument)))
                argument[: len(answer)] = answer
            elif request >> 30 & 2:
                answer = feed.take(ctypes.sizeof(argument))
                ctypes.memmove(ctypes.addressof(argument), answer, len(answer))
            return 0

        closed: list[int] = []
        kernel = Kernel(ioctl=ioctl, open=lambda path, flags: 9999, close=closed.append)
        node = VhostVdpaNode(9999, "/dev/vhost-vdpa-0", "vdpa0", _NOWHERE, kernel)
        steps: tuple[Callable[[], object], ...] = (
            node.set_owner,
            node._agree,
            node.get_device_id,
            node.get_features,
            node.get_config_size,
            lambda: node.get_config(0, min(node.get_config_size(), 256)),
            node.get_vqs_count,
            node.get_vring_num,
            lambda: node.get_vring_size(0),
            lambda: node.set_features(1 << 32 | 1 << 64),
            node.get_status,
            lambda: node.get_vring_base(1),
            node.suspend,
            node.resume,
            lambda: node.set_config(0, b"abc"),
        )
        ends = []
        try:
            for step in steps:
                try:
                    value = step()
                except UvirtioError as error:
                    ends.append(error.code)
                else:
                    if isinstance(value, int) and value < 0:
                        raise Lie(f"{value} came of an ioctl")
        finally:
            node.close()
        if closed != [9999]:
            raise Lie("the node was not closed once")
        return tuple(ends[:3]), len(ends)
