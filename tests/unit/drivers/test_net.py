"""The network driver (5.1) on a scripted card: what it sends, what it believes, and what it refuses to send."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.device.test_deadlines import VirtualClock
from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.net import Frame, Gso, Header, HeaderFlag, Net, RxMode, mac_of, mac_text
from uvirtio.drivers.net.driver import rarp
from uvirtio.errors import (
    BadFrame,
    BadSize,
    ConfigError,
    DeviceTimeout,
    NetRefused,
    NetStalled,
    NotSupported,
    ProtocolError,
    RingCorruption,
    UsageError,
    UvirtioError,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted import ScriptedDevice, ScriptedLegacy, hostile_cases
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.scripted.net import FEATURES, MAC, STATION_MAC
from uvirtio.scripted.net import Net as Card
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec import pci

N = f.Net
OFFLOADS = f.mask(
    *(N.CSUM, N.GUEST_CSUM, N.GUEST_TSO4, N.GUEST_TSO6, N.HOST_TSO4, N.HOST_TSO6, N.HOST_ECN, N.HOST_USO),
    N.CTRL_GUEST_OFFLOADS,
)
ASK = b"\xff" * 6 + MAC + b"\x08\x06" + bytes.fromhex("0001080006040001") + MAC + bytes(10) + bytes((10, 0, 2, 2))
PACKED = f.mask(f.RING_PACKED)


def offer(*extra: int, features: int = FEATURES) -> int:
    return RING_FEATURES | features | f.mask(*extra)


@contextmanager
def driven(
    model: Card,
    *,
    timeout: float = 30.0,
    scripted: Callable[..., ScriptedDevice] = ScriptedDevice,
    without: Any = (),
    interrupts: Any = tuple(InterruptMode),
    build: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[tuple[ScriptedDevice, Device, Net]]:
    """The driver on the model; at the end everything was left in order, and no rule was broken."""
    made = scripted(model, **(build or {}))
    opened = opening.identify("0000:00:04.0", made, timeout=timeout, interrupts=interrupts, without=without)
    with opened as device, Net(device, **options) as net:
        yield made, device, net
    made.assert_left()


def frames_of(seed: int, *lengths: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(length) for length in lengths]


# --- frames ---------------------------------------------------------------------------------------------------


WAYS = [
    pytest.param({}, {}, id="split"),
    pytest.param({"build": {"features": offer(f.RING_PACKED)}}, {}, id="packed"),
    pytest.param({"build": {"features": offer(f.IN_ORDER)}}, {}, id="in-order"),
    pytest.param({"build": {"features": FEATURES | f.mask(f.VERSION_1)}}, {}, id="bare"),
    pytest.param({"interrupts": [InterruptMode.POLLING]}, {}, id="polling"),
    pytest.param({}, {"features": FEATURES & ~f.mask(N.MRG_RXBUF)}, id="unmerged"),
    pytest.param({"build": {"contiguous_limit": 4096}, "max_frame": 9000}, {}, id="scattered"),
    pytest.param({"scripted": ScriptedLegacy}, {}, id="legacy"),
    pytest.param(
        {"scripted": ScriptedLegacy}, {"features": FEATURES & ~f.mask(N.MRG_RXBUF)}, id="legacy-unmerged"
    ),
    pytest.param({"scripted": ScriptedLegacy, "without": ["ANY_LAYOUT"]}, {}, id="legacy-apart"),
    pytest.param(
        {"scripted": ScriptedLegacy, "without": ["ANY_LAYOUT", "INDIRECT_DESC"]},
        {"features": FEATURES & ~f.mask(N.MRG_RXBUF)},
        id="legacy-apart-chained",
    ),
]


@pytest.mark.spec("NET-15", "NET-16", "NET-17", "NET-29", "NET-31", "NET-32", "NET-L03", "NET-L04", "NET-L05")
@pytest.mark.parametrize(("how", "card"), WAYS)
def test_frames_go_and_come_whole(how: dict[str, Any], card: dict[str, Any]) -> None:
    model = Card(**card)
    model.answers = False
    with driven(model, **how) as (made, _, net):
        # More than the ring has, of one length and of many: slots are used again, their lengths change.
        sent = frames_of(1, *[64] * 200, *range(14, 1515, 37), net.max_frame, *[60] * 30, 1514, 15)
        net.send_all(sent)
        net.flush()
        assert model.sent == sent
        for batch in (frames_of(2, *[64] * 20), frames_of(3, 60, 1514, 61), frames_of(4, *[1500] * 12), [b"x"]):
            assert model.inject(*batch) == len(batch)
            assert net.take() == batch
            model.inject(*batch[:9])
            assert list(map(bytes, net.receive(timeout=1))) == batch[:9]
        assert net.receive(timeout=0) == []
        assert (net.findings, net.dropped) == ({}, {})
        assert net.counts.sent_bytes == sum(map(len, sent))
        assert made.violations == []


def test_a_question_is_answered_and_the_books_are_kept() -> None:
    with driven(Card()) as (_, device, net):
        net.send_all([ASK])
        (answer,) = net.receive(timeout=1)
        assert bytes(answer)[:12] == MAC + STATION_MAC and len(answer) == 60
        assert answer.data.readonly and answer.header == Header()
        assert (net.counts.sent, net.counts.received, net.counts.received_bytes) == (1, 1, 60)
        assert "1 frames sent, 1 received" in repr(net)
        assert device.counters.interrupts_taken == 0


@pytest.mark.parametrize("without", [(), ("EVENT_IDX",)])
def test_interrupts_are_asked_for_by_a_wait_alone(without: Sequence[str]) -> None:
    model = Card()
    model.answers = False
    with driven(model, without=without) as (_, device, net):
        for _ in range(3):
            model.inject(ASK)
            assert not device.service() and net.take() == [ASK]

        def pulse() -> None:
            device.pulse = None
            model.inject(ASK)

        device.pulse = pulse
        assert net.wait(timeout=20) and device.counters.interrupts_taken == 1
        assert net.take() == [ASK]
        model.inject(ASK)
        assert not device.service() and net.take() == [ASK]
        net.rely_on_interrupts()
        for _ in range(2):
            model.inject(ASK)
            assert device.service() and net.take() == [ASK]


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("packed", [False, True])
def test_any_traffic_comes_in_order_and_whole(packed: bool, data: st.DataObject) -> None:
    """Frames of any length either way, in batches of any size, on a small ring; the card merges buffers."""
    model = Card(queue_size=16)
    model.answers = False
    build = {"features": offer(f.RING_PACKED)} if packed else {}
    sent: list[bytes] = []
    given_: list[bytes] = []
    got: list[bytes] = []
    lengths = st.lists(st.one_of(st.just(64), st.integers(14, 1518)), max_size=40)
    with driven(model, build=build) as (_, _, net):
        for act in data.draw(st.lists(st.sampled_from(["send", "inject", "big", "take", "receive"]), max_size=20)):
            if act == "send":
                batch = frames_of(len(sent), *data.draw(lengths))
                sent += batch[: net.send(batch)]
            elif act in ("inject", "big"):
                sizes = data.draw(lengths) if act == "inject" else [data.draw(st.integers(2000, spec.FRAME_MAX))]
                batch = frames_of(len(given_), *sizes)
                given_ += batch[: model.inject(*batch)]
            elif act == "take":
                got += net.take()
            else:
                got += map(bytes, net.take_frames())
        while more := net.take():
            got += more
        assert got == given_ and model.sent == sent
        assert (net.findings, net.dropped) == ({}, {})


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_buffers_that_come_back_in_another_order_bring_their_frames(packed: bool) -> None:
    """Without IN_ORDER a device may use them in any order (2.7.8, 2.8.6), though most use them in theirs."""
    model = Card()
    model.answers = False
    with driven(model, build={"features": offer(f.RING_PACKED)} if packed else {}) as (_, _, net):
        for batch in range(4):  # so that buffers are given back, too
            frames = frames_of(batch, *[64] * 40)
            model.device.fetch(spec.RECEIVEQ)
            model.buffers[spec.RECEIVEQ].reverse()
            assert model.inject(*frames) == 40
            assert net.take() == frames


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("swapped", [1, 30], ids=["at the front", "behind the last slot"])
def test_two_buffers_that_come_back_the_wrong_way_round_bring_their_frames(packed: bool, swapped: int) -> None:
    """All others are in order, also the first, by which the others are known."""
    model = Card()
    model.answers = False
    with driven(model, build={"features": offer(f.RING_PACKED)} if packed else {}) as (_, _, net):
        if swapped > 1:
            assert model.inject(*frames_of(0, *[64] * 40)) == 40
            net.take()  # 24 slots are left before the last one
        frames = frames_of(1, *[64] * 40)
        model.device.fetch(spec.RECEIVEQ)
        buffers = model.buffers[spec.RECEIVEQ]
        buffers[swapped], buffers[swapped + 1] = buffers[swapped + 1], buffers[swapped]
        assert model.inject(*frames) == 40
        assert net.take() == frames


@pytest.mark.spec("NET-08", "NET-09", "NET-07")
def test_the_mtu_is_kept() -> None:
    model = Card(features=FEATURES & ~f.mask(N.MRG_RXBUF) | f.mask(N.MTU), mtu=9000)
    with driven(model) as (_, device, net):
        assert device.has(N.MTU) and net.config.mtu == 9000 and net.max_frame == 9018
        model.inject(*frames_of(1, 9014))
        assert len(net.take()[0]) == 9014
        tagged = bytes(12) + b"\x81\x00" + bytes(9004)
        short = bytes(14)
        net.send_all([bytes(9014), tagged, short])  # a tag makes each of them be looked at by itself
        for bad in (bytes(9015), tagged + b"x", bytes(13)):
            with pytest.raises(BadFrame):
                net.send([bytes(60), bad])
        assert model.sent[1:] == [tagged, short]
    with pytest.raises(ConfigError, match="MTU"), driven(Card(features=offer(N.MTU), mtu=67)):
        pass


def test_who_may_send_what() -> None:
    with driven(Card(), max_frame=4000) as (_, _, net):
        assert net.max_frame == 4000 and net.can_send(bytes(4000)) and not net.can_send(bytes(4001))
        with pytest.raises(UsageError):
            net.send([bytes(60)], pair=1)
        assert net.send([]) == 0
    for wrong in ({"max_frame": 13}, {"max_frame": spec.FRAME_MAX + 1}, {"pairs": 0}, {"mac": b"\x01" + bytes(5)}):
        with pytest.raises((BadSize, UsageError)), driven(Card(), **wrong):
            pass


# --- a device that lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 65, 0xFFFF])
def test_a_number_of_buffers_that_cannot_be(count: int) -> None:
    model = Card()
    with driven(model) as (_, _, net):
        model.num_buffers = count
        model.inject(*frames_of(1, 60, 61))
        assert net.take() == [] and net.dropped == {"num_buffers is impossible": 2}
        model.num_buffers = None
        model.inject(*frames_of(1, 60))
        assert net.take() == frames_of(1, 60)


def test_pieces_that_never_come_and_pieces_too_many() -> None:
    model = Card()
    with driven(model) as (_, _, net):
        model.num_buffers = 2
        model.inject(b"a" * 60)
        assert net.take() == []  # held until the second piece is there
        model.num_buffers = None
        model.inject(b"b" * 60)
        (joined,) = net.take()
        assert joined == b"a" * 60 + bytes(10) + b"\x01\x00" + b"b" * 60  # what the device says is one frame
        model.num_buffers = 60
        model.inject(*[b"c" * 2000] * 60)  # 60 buffers of one frame: more than any frame has
        net.take()
        assert sum(net.dropped.values()) >= 1 and "longer than a frame can be" in net.dropped
        model.num_buffers = None


@pytest.mark.parametrize("written", [*range(13), 72, 2048])
@pytest.mark.parametrize("merged", [False, True])
def test_a_length_that_cannot_be(written: int, merged: bool) -> None:
    model = Card(features=FEATURES if merged else FEATURES & ~f.mask(N.MRG_RXBUF))
    with driven(model) as (_, _, net):
        model.written = written
        model.inject(*frames_of(1, *[60] * 10))
        found = net.take()
        if written <= 12:
            assert found == [] and net.dropped == {"shorter than its header": 10}
        else:
            assert [one[:60] for one in found] == frames_of(1, *[60] * 10)
            assert {len(one) for one in found} == {written - 12}


def test_more_than_the_buffer_has_breaks_the_ring() -> None:
    model = Card()
    made = ScriptedDevice(model)
    with opening.identify("0000:00:04.0", made) as device, Net(device) as net:
        model.written = 2049
        model.inject(bytes(60))
        with pytest.raises(RingCorruption):
            net.take()
    made.assert_left()


@pytest.mark.spec("NET-34", "NET-37")
def test_flags_that_were_not_agreed_are_counted_and_not_believed() -> None:
    model = Card()
    with driven(model) as (_, _, net):
        model.header_flags = 0xF3
        model.inject(*frames_of(1, *[60] * 12))
        assert [bytes(one) for one in net.receive(timeout=1)] == frames_of(1, *[60] * 12)
        model.inject(*frames_of(1, 60))
        (frame,) = net.receive(timeout=1)
        assert frame.header == Header() and frame.whole() == frame.data
        assert list(net.findings.values()) == [13]


@pytest.mark.parametrize("case", hostile_cases("net"))
def test_every_fault_gives_an_answer_or_an_error(case: str) -> None:
    try:
        with opening.open(case, timeout=0.2) as device, Net(device) as net:
            net.send_all([ASK] * 70, timeout=0.2)
            net.receive(timeout=0.05)
            net.set_rx_mode(RxMode.PROMISC, True, timeout=0.2)
            net.flush(timeout=0.1)
    except UvirtioError as error:
        assert error.code != "UV-ERROR"


# --- offloads -------------------------------------------------------------------------------------------------


CSUM = Header(flags=HeaderFlag.NEEDS_CSUM, csum_start=34, csum_offset=16)
TSO4 = Header(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, hdr_len=54, gso_size=1448, csum_start=34, csum_offset=16)


@pytest.mark.spec("NET-16", "NET-17", "NET-19", "NET-20", "NET-22", "NET-24", "NET-26")
def test_offloads_are_sent_as_agreed() -> None:
    model = Card(features=FEATURES | OFFLOADS)
    with driven(model, offloads=True) as (_, device, net):
        assert net.max_frame == spec.FRAME_MAX
        plain = bytes(60)
        kinds = [
            Header(1, kind, 54, 1448, 34, 16) for kind in (Gso.TCPV4, Gso.TCPV6, Gso.UDP_L4, Gso.TCPV4 | 0x80)
        ]
        net.send_all([plain, Frame(bytes(100), CSUM), *(Frame(bytes(60000), kind) for kind in kinds), plain])
        net.send_all([plain] * 100)  # the same slots again: no header is left in them
        assert [header[0] for header in model.headers] == [0, 1, 1, 1, 1, 1, *[0] * 101]
        assert model.headers[2][:10] == kinds[0].pack()
        assert set(model.headers[6:]) == {bytes(12)}
        assert device.has(N.GUEST_TSO4)


def test_many_frames_of_one_length_keep_their_headers() -> None:
    model = Card(features=FEATURES | f.mask(N.CSUM))  # without segmentation there are many slots
    frames = [Frame(bytes([number]) * 100, CSUM) for number in range(20)]
    with driven(model, offloads=True) as (_, _, net):
        assert net.send(frames) == 20, "at once"
        assert [header[:10] for header in model.headers] == [CSUM.pack()] * 20
        assert model.sent == [frame.data for frame in frames]


@pytest.mark.spec(
    "NET-17", "NET-19", "NET-20", "NET-21", "NET-22", "NET-23", "NET-25", "NET-26", "NET-27", "NET-28"
)
@pytest.mark.parametrize(
    "header",
    [
        CSUM,
        TSO4,
        Header(HeaderFlag.DATA_VALID),
        Header(HeaderFlag.RSC_INFO),
        Header(1, Gso.TCPV6, 54, 1448, 34, 16),
        Header(1, Gso.UDP, 54, 1448, 34, 16),
        Header(1, Gso.UDP_L4, 54, 1448, 34, 16),
        Header(1, Gso.TCPV4 | 0x80, 54, 1448, 34, 16),
        Header(1, 0x7F, 54, 1448, 34, 16),
        Header(1, 0x20 | Gso.TCPV4, 54, 1448, 34, 16),
    ],
)
def test_nothing_is_asked_for_that_was_not_agreed(header: Header) -> None:
    with driven(Card()) as (_, _, net), pytest.raises(BadFrame):
        net.send([Frame(bytes(100), header)])


@pytest.mark.spec("NET-23", "NET-24", "NET-26", "NET-27")
@pytest.mark.parametrize(
    "header",
    [
        Header(1, csum_start=90, csum_offset=9),
        Header(0, Gso.TCPV4, 54, 1448),
        Header(1, Gso.TCPV4, 54, 0, 34, 16),
        Header(1, Gso.TCPV4, 34, 1448, 34, 16),
        Header(1, Gso.TCPV4, 101, 1448, 34, 16),
        Header(1, Gso.UDP, 54, 1448, 34, 16),
        Header(1, Gso.TCPV4 | 0x80, 54, 1448, 34, 16),
    ],
)
def test_a_header_has_to_make_sense(header: Header) -> None:
    model = Card(features=(FEATURES | OFFLOADS) & ~f.mask(N.HOST_ECN))
    with driven(model, offloads=True) as (_, _, net), pytest.raises(BadFrame):
        net.send([Frame(bytes(100), header)])


@pytest.mark.spec("NET-34", "NET-35", "NET-36")
def test_what_is_received_incomplete_is_completed() -> None:
    model = Card(features=FEATURES | OFFLOADS)
    with driven(model, offloads=True) as (_, _, net):
        data = bytearray(frames_of(1, 101)[0])
        header = Header(0xF1, 0, hdr_len=60000, csum_start=34, csum_offset=16)  # an absurd hint, and unknown flags
        model.inject(bytes(data), header=header.pack())
        model.inject(bytes(data), header=Header(HeaderFlag.DATA_VALID, csum_start=9999).pack())
        model.inject(bytes(data), header=Header(1, csum_start=90, csum_offset=10).pack())
        first, second, third = net.receive(timeout=1)
        words = bytes(data[34:]) + b"\0"
        total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
        new = int.from_bytes(first.whole()[50:52], "big")
        # The field held the pseudo header's part of the sum; with its complement the whole is all ones.
        assert (total + new) % 0xFFFF == 0
        assert first.whole()[:50] == data[:50] and first.whole()[52:] == data[52:]
        assert first.header.needs_csum and second.header.data_valid and second.whole() == second.data == data
        with pytest.raises(BadFrame):
            third.whole()


@pytest.mark.spec("NET-30")
def test_large_packets_are_asked_for_with_merged_buffers_alone() -> None:
    with driven(Card(features=(FEATURES | OFFLOADS) & ~f.mask(N.MRG_RXBUF)), offloads=True) as (_, device, _):
        assert device.has(N.GUEST_CSUM) and not device.features & f.mask(N.GUEST_TSO4, N.GUEST_TSO6)
    with driven(Card(features=FEATURES | OFFLOADS)) as (_, device, _):
        assert not device.features & OFFLOADS


@pytest.mark.spec("NET-49")
def test_offloads_are_switched() -> None:
    model = Card(features=FEATURES | OFFLOADS)
    with driven(model, offloads=True) as (_, _, net):
        net.set_offloads(f.mask(N.GUEST_CSUM))
        assert model.commands[-1] == (5, 0, (2).to_bytes(8, "little"))
        for bad in (f.mask(N.GUEST_USO4), f.mask(N.CSUM)):
            with pytest.raises(UsageError):
                net.set_offloads(bad)
    with driven(Card()) as (_, _, net), pytest.raises(NotSupported):
        net.set_offloads(0)


# --- what it is -----------------------------------------------------------------------------------------------


@pytest.mark.spec("NET-01", "NET-02", "NET-03", "NET-04", "NET-05", "NET-14")
def test_without_features_there_is_little() -> None:
    model = Card(features=f.mask(N.CTRL_RX_EXTRA, N.CTRL_MAC_ADDR, N.MQ, N.GUEST_ANNOUNCE))
    asked: list[int] = []
    model.read_config = lambda offset, width: asked.append(offset) or 0  # type: ignore[method-assign, func-returns-value]
    with driven(model, pairs=2, announcements=True) as (_, device, net):
        assert not device.features & f.DEVICE_TYPE_MASK  # each needs CTRL_VQ
        assert list(device.queues) == [0, 1]
        assert net.link and net.config.mac is None and net.config.mtu is None
        assert net.mac == net.mac and net.mac[0] & 3 == 2, "a local address of one station"
        assert asked == [], "no field is there"
        assert not net.announcement_wanted
        net.set_mac(MAC)  # nothing to tell: the card has no address
        assert net.mac == MAC and model.commands == []
        for call in (lambda: net.set_rx_mode(RxMode.PROMISC, True), lambda: net.add_vlan(1), net.set_mac_table):
            with pytest.raises(NotSupported):
                call()
    with driven(Card()) as (_, _, net):
        assert net.mac == net.config.mac == MAC


@pytest.mark.parametrize("length", [0, 6, 8, 12, 17])
def test_fields_that_the_configuration_is_too_short_for(length: int) -> None:
    everything = FEATURES | f.mask(N.MTU, N.SPEED_DUPLEX, N.MQ)
    with driven(Card(features=everything, config_length=length), pairs=2) as (_, device, net):
        there = {N.MAC: 6, N.STATUS: 8, N.MQ: 10, N.MTU: 12, N.SPEED_DUPLEX: 17}
        assert [bit for bit in there if device.has(bit)] == [bit for bit, end in there.items() if end <= length]
        assert device.has(N.CTRL_VQ) is (length > 0)  # without a configuration, without a control queue
        net.send_all([ASK])
        assert len(net.receive(timeout=1)) == 1


@pytest.mark.spec("NET-11", "NET-12")
@pytest.mark.parametrize(
    ("speed", "duplex", "shown"),
    [
        (1000, 1, (1000, True)),
        (0x7FFFFFFF, 0, (0x7FFFFFFF, False)),
        (0x80000000, 2, (None, None)),
        (0xFFFFFFFF, 0xFF, (None, None)),
    ],
)
def test_speed_and_duplex(speed: int, duplex: int, shown: tuple[Any, Any]) -> None:
    model = Card(features=FEATURES | f.mask(N.SPEED_DUPLEX), speed=speed, duplex=duplex)
    with driven(model) as (_, _, net):
        assert (net.config.speed, net.config.full_duplex) == shown
        model.put("speed", 25, interrupt=True)
        assert net.config.speed == 25


@pytest.mark.spec("NET-06")
def test_nothing_is_sent_while_the_link_is_down() -> None:
    model = Card()
    with driven(model) as (_, _, net):
        model.set_link(False)
        assert net.wait_for_link(False, timeout=1) and not net.link
        assert net.send([ASK]) == 0
        with pytest.raises(NetStalled, match="0 of 1") as stalled:
            net.send_all([ASK], timeout=0.02)
        assert stalled.value.sent == 0 and "link down" in stalled.value.seen
        model.set_link(True)
        assert net.wait_for_link(timeout=1)
        net.send_all([ASK])
        assert model.sent == [ASK] and net.link


def test_who_only_sends_sees_the_link_go_down() -> None:
    """Within a hundredth of a second: so often it looks for what the device has to say."""

    def made(model: Card, **how: Any) -> ScriptedDevice:
        device = ScriptedDevice(model, **how)
        device.clock = clock  # type: ignore[attr-defined]
        return device

    clock, model = VirtualClock(), Card()
    with driven(model, scripted=made) as (_, _, net):
        assert net.send([ASK]) == 1
        model.set_link(False)
        clock.sleep(0.01)
        assert net.send([ASK]) == 0 and model.sent == [ASK]


def test_who_does_not_read_is_waited_for_and_breaks_nothing() -> None:
    model = Card()
    with driven(model) as (_, device, net):
        model.hold = True
        with pytest.raises(NetStalled) as stalled:
            net.send_all([ASK] * 100, timeout=0.05)
        assert stalled.value.sent == 64 == net.out and device.broken is None
        with pytest.raises(NetStalled):
            net.flush(timeout=0.02)
        model.release()
        net.flush()
        net.send_all([ASK] * 36)
        assert len(model.sent) == 100 and net.idle
        before = device.counters.interrupts_taken
        net.send_all([ASK] * 30)
        device.service()
        assert device.counters.interrupts_taken == before, "it asks for interrupts while it waits alone"


# --- the control queue ----------------------------------------------------------------------------------------


@pytest.mark.spec("NET-38", "NET-39", "NET-40", "NET-41", "NET-42", "NET-L06", "NET-L07", "NET-L08", "NET-L09")
@pytest.mark.parametrize("how", [{}, {"scripted": ScriptedLegacy, "without": ["ANY_LAYOUT"]}])
def test_commands(how: dict[str, Any]) -> None:
    model = Card()
    stations, groups = [mac_of("52:54:00:00:00:01"), mac_of("52:54:00:00:00:02")], [mac_of("01-00-5E-00-00-01")]
    other = mac_of("52:54:00:00:00:09")
    with driven(model, vlans=True, mac=other, **how) as (_, _, net):
        assert model.commands == [(1, 1, other)] and net.mac == other
        net.set_rx_mode(RxMode.PROMISC, True)
        net.set_rx_mode(RxMode.NOBCAST, False)
        net.set_mac_table(stations, groups)
        net.set_mac_table()
        net.add_vlan(4095)
        net.remove_vlan(5)
        assert model.commands[1:] == [
            (0, 0, b"\1"),
            (0, 5, b"\0"),
            (1, 0, b"\2\0\0\0" + b"".join(stations) + b"\1\0\0\0" + groups[0]),
            (1, 0, bytes(8)),
            (2, 0, b"\xff\x0f"),
            (2, 1, b"\5\0"),
        ]
        for wrong in (
            lambda: net.add_vlan(4096),
            lambda: net.set_mac_table(groups),
            lambda: net.set_mac_table([], stations),
            lambda: net.set_mac_table([stations[0]] * 700),
            lambda: net.set_mac(groups[0]),
            lambda: net.set_mac(b"short"),
        ):
            with pytest.raises(UsageError):
                wrong()
        net.set_mac_table([stations[0]] * 600)
        assert len(model.commands) == 8


@pytest.mark.parametrize(("ack", "error"), [(1, NetRefused), (2, ProtocolError), (0xFF, ProtocolError)])
def test_answers_that_are_not_ok(ack: int, error: type[UvirtioError]) -> None:
    model = Card()
    with driven(model) as (_, device, net):
        model.ack = ack
        with pytest.raises(error):
            net.set_rx_mode(RxMode.PROMISC, True)
        if error is NetRefused:
            model.ack = None
            net.set_rx_mode(RxMode.PROMISC, True)
            assert device.broken is None


def test_a_command_without_an_answer() -> None:
    made = ScriptedDevice(Card(), silent_queues={2})
    opened = opening.identify("0000:00:04.0", made, timeout=0.05)
    with opened as device, Net(device) as net, pytest.raises(DeviceTimeout):
        net.set_rx_mode(RxMode.PROMISC, True)
    made.assert_left()


@pytest.mark.spec("NET-43", "NET-44")
def test_an_announcement() -> None:
    model = Card()
    with driven(model, announcements=True) as (_, _, net):
        net.announce()  # unasked: the frame alone
        assert model.sent == [rarp(MAC)] and model.commands == []
        model.put("status", spec.STATUS_LINK_UP | spec.STATUS_ANNOUNCE, interrupt=True)
        assert net.announcement_wanted
        net.announce()
        assert len(model.sent) == 2 and model.commands == [(3, 0, b"")]
        assert not net.announcement_wanted and net.link


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_an_address_that_is_no_stations_is_refused_before_anything_is_done(mac: str) -> None:
    made = ScriptedDevice(Card())
    with opening.identify("0000:00:04.0", made) as device, pytest.raises(UsageError):
        Net(device, mac=mac_of(mac))
    assert set(made.writes("common", pci.COMMON_DEVICE_STATUS)) <= {0}, "it was never initialised"


def test_a_legacy_address_is_written_byte_by_byte() -> None:
    model = Card(features=f.mask(N.MAC))
    with driven(model, scripted=ScriptedLegacy, mac=mac_of("52:54:00:00:00:07")) as (_, _, net):
        assert mac_text(bytes(model.config[:6])) == "52:54:00:00:00:07" == mac_text(net.mac)
    with pytest.raises(NotSupported), driven(Card(features=f.mask(N.MAC)), mac=mac_of("52:54:00:00:00:07")):
        pass


# --- several pairs --------------------------------------------------------------------------------------------


@pytest.mark.spec("NET-33", "NET-45", "NET-46", "NET-47", "NET-48")
def test_several_pairs() -> None:
    model = Card(features=FEATURES | f.mask(N.MQ), pairs=4)
    with driven(model, pairs=3) as (_, device, net):
        # The card shows 3 queues until MQ is accepted; its control queue is behind all 4 pairs.
        assert sorted(device.queues) == [0, 1, 2, 3, 4, 5, 8] and device.transport.num_queues == 9
        assert net.pairs == 3 and model.commands == [(4, 0, b"\3\0")]
        assert all(model.device.fetch(queue) >= 0 and len(model.buffers[queue]) == 64 for queue in (0, 2, 4))
        net.send([ASK], pair=2)
        net.send([ASK], pair=0)
        assert len(net.receive(timeout=1)) == 2 and net.counts.sent == 2
        model.inject(b"x" * 60, queue=2)
        assert net.take() == [b"x" * 60]
        with pytest.raises(UsageError):
            net.send([ASK], pair=3)
    with driven(Card(features=FEATURES | f.mask(N.MQ), pairs=2), pairs=9) as (_, _, net):
        assert net.pairs == 2


@pytest.mark.spec("NET-L01", "NET-L02", "NET-L10")
def test_several_pairs_over_the_legacy_interface() -> None:
    model = Card(features=FEATURES | f.mask(N.MQ), pairs=2)
    with driven(model, scripted=ScriptedLegacy, pairs=2, vlans=True) as (_, device, net):
        assert net.config.max_pairs == 2 and net.config.status == 1 and sorted(device.queues) == [0, 1, 2, 3, 4]
        net.add_vlan(0x102)
        net.set_mac_table([MAC])
        datas = [command.data for command in model.commands]
        assert datas == [b"\2\0", b"\2\1", b"\1\0\0\0" + MAC + bytes(4)]  # this machine is little-endian
        model.inject(b"x" * 3000, queue=2)
        assert net.take() == [b"x" * 3000], "num_buffers is 2"


def test_pairs_that_are_refused_or_cannot_be() -> None:
    model = Card(features=FEATURES | f.mask(N.MQ), pairs=2)
    model.ack = 1
    with pytest.raises(NetRefused), driven(model, pairs=2):
        pass
    assert model.device.status_now == 0, "it was reset"
    for pairs in (0, 0x8001):
        wrong = Card(features=FEATURES | f.mask(N.MQ), pairs=2, max_virtqueue_pairs=pairs)
        with pytest.raises(ConfigError, match="pairs"), driven(wrong, pairs=2):
            pass
    with driven(model) as (_, device, _):
        assert not device.has(N.MQ) and sorted(device.queues) == [0, 1, 2]
