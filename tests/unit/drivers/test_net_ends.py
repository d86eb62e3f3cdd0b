"""What is around a card: captures, ARP and ping, and a bridge to a socket."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uvirtio import opening
from uvirtio.drivers.net import Net, bridge, pcap
from uvirtio.drivers.net.bridge import Bridge, Datagrams, Stream, open_end
from uvirtio.drivers.net.frame import checksum
from uvirtio.drivers.net.ping import Ping, arp_answer, arp_request, arp_told, echo_request
from uvirtio.errors import (
    BadCapture,
    BadSize,
    ModuleLack,
    OperationFailed,
    PermissionLack,
    UsageError,
    UvirtioError,
)
from uvirtio.scripted import ScriptedDevice
from uvirtio.scripted.net import FEATURES, MAC, STATION_MAC
from uvirtio.scripted.net import Net as Card
from uvirtio.spec import features as f
from uvirtio.spec import net as spec

OURS, THEIRS = IPv4Address("10.0.2.15"), IPv4Address("10.0.2.2")


@contextmanager
def driven(model: Card) -> Iterator[Net]:
    made = ScriptedDevice(model)
    with opening.identify("0000:00:04.0", made, timeout=5) as device, Net(device) as net:
        yield net
    made.assert_left()


# --- captures -------------------------------------------------------------------------------------------------


def test_a_capture_is_read_as_it_was_written() -> None:
    file = io.BytesIO()
    writer = pcap.Writer(file)
    writer.write([b"a" * 60, memoryview(b"b" * 1514)], 1_700_000_000_123_456_789)
    writer.write([b"c"], 1)
    assert writer.frames == 3
    file.seek(0)
    found = list(pcap.read(file, "it"))
    assert found == [(1_700_000_000_123_456_789, b"a" * 60), (1_700_000_000_123_456_789, b"b" * 1514), (1, b"c")]


@pytest.mark.parametrize("order", "<>")
def test_captures_of_others(order: str) -> None:
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 1)
    record = struct.pack(f"{order}IIII", 2, 5, 3, 3) + b"xyz"
    assert list(pcap.read(io.BytesIO(head + record), "it")) == [(2_000_005_000, b"xyz")]
    for cut in (1, 15, 17):
        with pytest.raises(BadCapture, match="middle of a frame"):
            list(pcap.read(io.BytesIO(head + record[:cut]), "it"))


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"", "nothing"),
        (b"GIF89a" * 10, "47494638"),
        (b"\x0a\x0d\x0d\x0a" + bytes(24), "pcapng"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 113), "link type 113"),
        (struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 1, 0, 0, 3, 60), "3 of 60 bytes"),
        (struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 1, 0, 0, 1 << 31, 1 << 31), "2147483648 of"),
    ],
)
def test_what_is_no_capture(data: bytes, seen: str) -> None:
    with pytest.raises(BadCapture) as error:
        list(pcap.read(io.BytesIO(data), "it"))
    assert seen in error.value.seen and error.value.remedy


# --- ARP and ping ---------------------------------------------------------------------------------------------


@pytest.mark.spec("NET-18")
def test_a_ping_is_complete_and_its_answer_is_read() -> None:
    request = echo_request((MAC, OURS), (STATION_MAC, THEIRS), 0x1234, 7, bytes(range(57)))
    assert request[:14] == STATION_MAC + MAC + b"\x08\x00" and len(request) == 14 + 20 + 8 + 57
    assert checksum(request[14:34]) == checksum(request[34:]) == 0
    assert checksum(b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7") == 0x220D  # the example of RFC 1071
    with driven(Card()) as net:
        asked = Ping(net, THEIRS, source=OURS, data_size=1400)
        assert asked.resolve(2) and asked.mac == STATION_MAC
        reply = asked.ask(70000, 2)
        assert reply is not None and (reply.number, reply.size, reply.ttl, reply.intact) == (70000, 1408, 64, True)
        for size in (-1, 1473):
            with pytest.raises(BadSize):
                Ping(net, THEIRS, source=OURS, data_size=size)


def test_nobody_there_and_answers_that_are_none() -> None:
    model = Card()
    with driven(model) as net:
        absent = Ping(net, IPv4Address("10.0.2.77"), source=OURS)
        assert not absent.resolve(0.03) and len(model.sent) == 3
        asked = Ping(net, THEIRS, source=OURS, data_size=8)
        assert asked.resolve(2)
        model.answers = False
        begin = time.monotonic()
        good = bytearray(
            echo_request((STATION_MAC, THEIRS), (MAC, OURS), int.from_bytes(MAC[4:], "big"), 1, bytes(8))
        )
        good[34] = 0
        good[36:38] = checksum(b"\0\0\0\0" + good[38:50]).to_bytes(2, "big")
        for at in (12, 14, 22, 23, 26, 33, 34, 36, 39, 41, 49):  # one byte of it is another
            bad = bytearray(good)
            bad[at] ^= 1
            model.inject(bytes(bad))
        model.inject(bytes(good[:40]), b"z")
        assert asked.ask(1, 0.05) is None
        assert time.monotonic() - begin < 3
        model.inject(bytes(good))
        reply = asked.ask(1, 1)
        assert reply is not None and reply.size == 16 and not reply.intact, "other data than was sent"


def test_at_its_deadline_a_ping_is_over() -> None:
    class Stopped:
        def __init__(self) -> None:
            self.asked = 0

        def monotonic(self) -> float:
            self.asked += 1
            assert self.asked < 1000, "it goes on"
            return 1.0

    model = Card()
    with driven(model) as net:
        asked = Ping(net, THEIRS, source=OURS)
        assert asked.resolve(2)
        model.answers = False
        clock, net.device.clock = net.device.clock, cast(Any, Stopped())
        assert asked.ask(1, 0) is None
        net.device.clock = clock


def test_who_asks_for_our_address_is_answered() -> None:
    model = Card()
    with driven(model) as net:
        model.inject(arp_request(STATION_MAC, THEIRS, OURS))
        assert Ping(net, THEIRS, source=OURS).resolve(2)
        answer = arp_answer(arp_request(STATION_MAC, THEIRS, OURS), MAC, OURS)
        assert answer in model.sent and answer is not None and answer[20:32] == b"\0\2" + MAC + OURS.packed
    assert arp_answer(arp_request(STATION_MAC, THEIRS, THEIRS), MAC, OURS) is None
    assert arp_request(MAC, None, THEIRS)[28:32] == bytes(4), "a probe claims no address"


def test_an_answer_about_an_address_is_of_that_address() -> None:
    answer = arp_answer(arp_request(MAC, OURS, THEIRS), STATION_MAC, THEIRS)
    assert answer is not None and arp_told(answer, THEIRS) == STATION_MAC
    assert arp_told(answer[:42], THEIRS) == STATION_MAC and arp_told(answer[:41], THEIRS) is None
    assert arp_told(answer, OURS) is None
    assert arp_told(arp_request(STATION_MAC, THEIRS, OURS), THEIRS) is None, "a question"


# --- the bridge -----------------------------------------------------------------------------------------------


def framed(*frames: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "big") + one for one in frames)


def carry(bridge: Bridge, done: Callable[[], bool]) -> None:
    """Bridge until it is done; a busy machine needs several turns for it."""
    for _ in range(100):
        if done():
            return
        assert not bridge.run(timeout=0.05)


def test_frames_cross_a_bridge_of_datagrams() -> None:
    model = Card(features=FEATURES | f.mask(f.Net.MTU))
    model.answers = False
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other, open_end(f"fd:{ours.fileno()}") as end, driven(model) as net:
        assert isinstance(end, Datagrams)
        bridge = Bridge(net, end)
        for frame in (b"a" * 60, b"short", b"b" * 1515, b"c" * 5000, b"d" * 1514):
            other.send(frame)
        model.inject(b"e" * 60, b"f" * 1500)
        carry(bridge, lambda: bridge.counts.out == 2 and bridge.counts.back + bridge.counts.back_dropped == 5)
        assert not bridge.run(timeout=0.01)
        assert model.sent == [b"a" * 60, b"d" * 1514]
        assert [other.recv(9000) for _ in range(2)] == [b"e" * 60, b"f" * 1500]
        assert (bridge.counts.out, bridge.counts.back, bridge.counts.back_dropped) == (2, 2, 3)


def test_frames_cross_a_bridge_of_a_stream_until_it_ends() -> None:
    model = Card()
    model.answers = False
    ours, other = socket.socketpair()
    with other, open_end(f"fd:{ours.fileno()}") as end, driven(model) as net:
        ours.close()
        assert isinstance(end, Stream)
        sent = [bytes([number]) * (60 + number) for number in range(200)]
        other.sendall(framed(*sent)[:-1])
        model.inject(b"e" * 60)
        bridge = Bridge(net, end)
        carry(bridge, lambda: bridge.counts.out == 1 and bridge.counts.back == 199)
        assert not bridge.run(timeout=0.01)
        assert model.sent == sent[:-1] and other.recv(100) == framed(b"e" * 60)
        other.sendall(framed(*sent)[-1:])
        other.close()
        assert bridge.run(timeout=5), "the other end is gone"
        assert model.sent == sent and bridge.counts.back == 200


def test_an_end_that_does_not_read_costs_frames_and_no_time() -> None:
    model = Card()
    ours, other = socket.socketpair()
    with other, open_end(f"fd:{ours.fileno()}") as end, driven(model) as net:
        ours.close()
        bridge = Bridge(net, end)
        counts = bridge.counts
        for number in range(1, 41):
            model.inject(*[b"x" * 60000])
            carry(bridge, lambda number=number: counts.out + counts.out_dropped == number)  # type: ignore[misc]
        assert counts.out_dropped > 0 and counts.out + counts.out_dropped == 40


def test_a_card_that_takes_nothing_makes_the_end_wait() -> None:
    model = Card()
    model.answers, model.hold = False, True
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other, Datagrams(os.dup(ours.fileno())) as end, driven(model) as net:
        bridge = Bridge(net, end)
        sent = 0
        other.setblocking(False)
        for _ in range(20):
            try:
                for _ in range(40):
                    other.send(sent.to_bytes(2, "big") * 30)
                    sent += 1
            except BlockingIOError:
                pass
            bridge.run(timeout=0.005)
        carry(bridge, lambda: bridge.counts.back == 64)
        assert not bridge.run(timeout=0.01)
        assert bridge.counts.back == 64 < sent
        model.release()
        carry(bridge, lambda: bridge.counts.back == sent)
        assert bridge.counts.back == sent and bridge.counts.back_dropped == 0
        assert model.sent == [number.to_bytes(2, "big") * 30 for number in range(sent)]


def test_an_end_that_sends_no_frames() -> None:
    for length in (0, spec.FRAME_MAX + 1):
        ours, other = socket.socketpair()
        with other, open_end(f"fd:{ours.fileno()}") as end, driven(Card()) as net:
            ours.close()
            other.sendall(length.to_bytes(4, "big") + bytes(60))
            with pytest.raises(OperationFailed, match="no frames"):
                Bridge(net, end).run(timeout=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tap:",
        "tap:seventeen-letters",
        f"tap:{16 * 'a'}",
        f"unix:{108 * 'a'}",
        "x:0",
        "fd:\u0663",
        "unix:",
        "fd:",
        "fd:x",
        "fd:99999",
        f"fd:{1 << 64}",
        "fd:" + 5000 * "9",
        "eth0",
    ],
)
def test_what_is_no_end(text: str) -> None:
    with pytest.raises(UsageError):
        open_end(text)


def test_an_end_that_cannot_be_read_is_an_error() -> None:
    with Datagrams(os.open("/", os.O_RDONLY)) as end, pytest.raises(OperationFailed, match="read from"):
        end.receive(4)


def test_an_end_whose_other_side_has_closed_gives_no_frame() -> None:
    ours, theirs = os.pipe()
    with Datagrams(ours) as end:
        os.write(theirs, b"frame")
        assert end.receive(4) == [b"frame"] and not end.ended
        os.close(theirs)
        assert end.receive(4) == [] and end.ended


@pytest.mark.parametrize(
    ("opens", "number", "error", "words"),
    [
        (True, errno.ENOENT, ModuleLack, "modprobe tun"),
        (True, errno.EACCES, OperationFailed, "ip tuntap add"),
        (False, errno.EPERM, PermissionLack, "mode tap user USER"),
        (False, errno.EBUSY, OperationFailed, "ip -d link"),
    ],
)
def test_why_there_is_no_tap(
    opens: bool, number: int, error: type[UvirtioError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/net/tun that cannot be opened, and a TAP that the kernel does not give."""
    made: list[int] = []

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    def opened(*_: object) -> int:
        made.append(os.memfd_create("tun"))
        return made[0]

    monkeypatch.setattr(bridge, "os", SimpleNamespace(**vars(os) | {"open": fails if opens else opened}))
    monkeypatch.setattr(bridge, "fcntl", SimpleNamespace(ioctl=fails))
    with pytest.raises(error) as caught:
        open_end("tap:tap7")
    assert words in str(caught.value.remedy) and caught.value.seen
    for number in made:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)


def test_ends_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="nothing can be reached"):
        open_end(f"unix:{tmp_path / 'nothing'}")
    with pytest.raises(OperationFailed):
        open_end("unix:a\0b")
    if os.geteuid():
        with pytest.raises((PermissionLack, ModuleLack, OperationFailed)):
            open_end("tap:uvirtio-test")
