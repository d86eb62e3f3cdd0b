"""The network driver on QEMU's card, with this process at the other end of the cable (``-netdev stream``)."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bodies.net import arp_request, packets
from uvirtio.drivers.net import Net
from uvirtio.errors import BadFrame, DeviceGone, NetStalled
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import net as spec

PACKED = ["", ",packed=on"]


class Cable:
    """The other end: each frame behind its length in 4 bytes, in network order (QEMU's stream and socket)."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(10)

    def send(self, frames: list[bytes]) -> None:
        self.socket.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def receive(self, count: int) -> list[bytes]:
        return [self._exactly(int.from_bytes(self._exactly(4), "big")) for _ in range(count)]

    def _exactly(self, count: int) -> bytes:
        made = b""
        while len(made) < count:
            more = self.socket.recv(count - len(made))
            assert more, "QEMU closed the stream"
            made += more
        return made


@contextmanager
def cable(tmp_path: Path, device: str, **options: Any) -> Iterator[tuple[Machine, Net, Cable]]:
    path = tmp_path / "cable"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    arguments = ["-netdev", f"stream,id=cable,server=off,addr.type=unix,addr.path={path}"]
    with listener, Machine("q35", [f"{device},netdev=cable"], arguments=arguments) as machine:
        listener.settimeout(10)
        connection, _ = listener.accept()
        function = machine.functions[0]
        with connection, identify(function.address, function) as opened, Net(opened, **options) as net:
            yield machine, net, Cable(connection)


def take(net: Net, count: int) -> list[bytes]:
    """This many frames, by the fast way."""
    found: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        if net.wait(timeout=1):
            found += net.take()
    return found


@pytest.mark.spec("NET-31", "NET-32")
@pytest.mark.parametrize("packed", PACKED)
def test_frames_of_every_length_come_whole(tmp_path: Path, packed: str) -> None:
    rng = random.Random(3)
    lengths = [1, 14, 60, 1514, 2035, 2036, 2037, 4084, 9018, spec.FRAME_MAX, *[64] * 400]
    with cable(tmp_path, f"virtio-net-pci{packed}") as (_, net, other):
        sent = [rng.randbytes(length) for length in lengths]
        for receive in (lambda: take(net, len(sent)), lambda: _received(net, len(sent))):
            sender = threading.Thread(target=other.send, args=(sent,))
            sender.start()
            assert receive() == sent
            sender.join(timeout=10)
        # One byte more than any frame has: dropped and counted, and what follows comes.
        other.send([bytes(spec.FRAME_MAX + 1), sent[0]])
        assert take(net, 1) == sent[:1]
        assert net.dropped == {"longer than a frame can be": 1}
        assert net.findings == {}


def _received(net: Net, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count and (more := net.receive(timeout=5)):
        found += map(bytes, more)
    return found


@pytest.mark.spec("NET-08", "NET-09", "NET-29")
def test_without_merged_buffers(tmp_path: Path) -> None:
    with cable(tmp_path, "virtio-net-pci,mrg_rxbuf=off,host_mtu=3000") as (_, net, other):
        assert net.max_frame == 3018
        sent = [random.Random(1).randbytes(length) for length in (60, 3014, 3018, 61)]
        other.send(sent)
        assert take(net, 4) == sent
        net.send_all(sent[:2])
        assert other.receive(2) == sent[:2]
        with pytest.raises(BadFrame):
            net.send(sent[2:3])  # longer than the MTU allows, and no tag in it


def test_a_peer_that_does_not_read_breaks_nothing(tmp_path: Path) -> None:
    frames = [bytes(12) + spec.ETHERTYPE_VLAN.to_bytes(2, "big") + bytes([n % 251]) * 1400 for n in range(3000)]
    with cable(tmp_path, "virtio-net-pci") as (_, net, other):
        begin = time.monotonic()
        with pytest.raises(NetStalled) as stalled:
            net.send_all(frames, timeout=0.3)
        assert time.monotonic() - begin < 5
        assert 0 < stalled.value.sent < len(frames)
        with pytest.raises(NetStalled):
            net.flush(timeout=0.1)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(other.receive(len(frames))))
        reader.start()
        net.send_all(frames[stalled.value.sent :], timeout=10)
        net.flush(timeout=20)  # what stays in the ring is told with its indices
        reader.join(timeout=20)
        assert not reader.is_alive() and got == frames
        other.send(frames[:1])
        assert take(net, 1) == frames[:1]


def test_a_second_start_is_as_the_first(tmp_path: Path) -> None:
    with cable(tmp_path, "virtio-net-pci") as (_, net, other):
        net.close()
        with Net(net.device) as again:
            other.send([b"a" * 60])
            assert take(again, 1) == [b"a" * 60]
            again.send_all([b"c" * 60])
            assert other.receive(1) == [b"c" * 60]
            assert (again.counts.sent, again.counts.received) == (1, 1)


def test_a_card_goes_away_while_it_is_listened_to() -> None:
    with Machine("q35", [], root_ports=1) as machine:
        function = machine.plug("virtio-net-pci")
        device = machine.open(function)
        net = Net(device)
        net.send_all([arp_request(net.mac)] * 20)  # enough for the fast way, whose views are kept
        assert len(take(net, 20)) == 20
        threading.Timer(0.2, machine.qmp, ("quit",)).start()
        with pytest.raises(DeviceGone):
            net.receive(timeout=10)
        net.close()
        device.close()


@pytest.mark.qemu_since(10, 0)  # a hub, which earlier ones are not asked for
def test_two_cards_on_a_cable(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    hub = ["-netdev", "hubport,id=a,hubid=0", "-netdev", "hubport,id=b,hubid=0"]
    hub += ["-object", f"filter-dump,id=dump,netdev=a,file={witness}"]
    cards = [f"virtio-net-pci,netdev={name},mac=52:54:00:00:00:0{name}" for name in "ab"]
    with Machine("q35", cards, arguments=hub) as machine, machine.open(0) as one, machine.open(1) as two:
        with Net(one, max_frame=9000) as left, Net(two) as right:
            sent = [right.mac + left.mac + b"\x88\xb5" + random.randbytes(n) for n in (0, 46, 1500, 2023, 8986)]
            left.send_all(sent)
            assert take(right, len(sent)) == sent
            right.send_all([sent[1]])
            assert take(left, 1) == [sent[1]]
        assert packets(witness) == [*sent, sent[1]]
