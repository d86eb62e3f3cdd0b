"""Net on any cell whose card is in QEMU's own network (``user``); the witness is QMP, and a capture of QEMU's."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.bodies import Cell
from uvirtio.drivers.net import Net, RxMode, mac_of, mac_text
from uvirtio.errors import BadFrame, NetStalled
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import net as spec

GATEWAY, GATEWAY_MAC = bytes((10, 0, 2, 2)), mac_of("52:55:0a:00:02:02")
OURS = bytes((10, 0, 2, 15))
SINK = b"\x88\xb5"
"""An EtherType for experiments, which the network does not answer."""


MODES = [
    (RxMode.PROMISC, "promiscuous", True),
    (RxMode.ALLMULTI, "multicast", "all"),
    (RxMode.ALLUNI, "unicast", "all"),
    (RxMode.NOMULTI, "multicast", "none"),
    (RxMode.NOUNI, "unicast", "none"),
]
"""The modes, and what QEMU then shows of its filter."""


def arp_request(mac: bytes, target: bytes = GATEWAY) -> bytes:
    """Who has this address? In 42 bytes."""
    return b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + mac + OURS + bytes(6) + target


def ask(net: Net) -> bytes:
    """The gateway's answer to an ARP request."""
    net.send_all([arp_request(net.mac)])
    return b"".join(bytes(frame) for frame in net.receive(timeout=5))


def packets(path: Path) -> list[bytes]:
    """The frames of a capture that another program wrote (classic pcap)."""
    data = path.read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("<IHHiIII", data)
    assert (magic, link) == (0xA1B2C3D4, 1)
    found, at = [], 24
    while at < len(data):
        _, _, kept, length = struct.unpack_from("<IIII", data, at)
        assert kept == length
        found.append(data[at + 16 : at + 16 + kept])
        at += 16 + kept
    return found


def filters(cell: Cell) -> dict[str, Any]:
    """What the device model lets through."""
    return dict(cell.qmp("query-rx-filter", name=cell.extra["id"])[0])


@pytest.mark.spec("NET-02", "NET-03", "NET-06")
def test_a_question_is_answered(cell: Cell) -> None:
    with cell.open() as device, Net(device) as net:
        assert net.link and net.mac == net.config.mac
        net.rely_on_interrupts()
        for _ in range(3):
            answer = ask(net)
            assert answer[:12] == net.mac + GATEWAY_MAC
            assert answer[20:32] == b"\x00\x02" + GATEWAY_MAC + GATEWAY
        assert net.receive(timeout=0) == []
        assert (net.counts.sent, net.counts.received, net.findings) == (3, 3, {})
        net.flush()
        assert cell.queue(spec.TRANSMITQ)["inuse"] == 0
        if cell.mode is not InterruptMode.POLLING:
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


@pytest.mark.spec("NET-15", "NET-32", "NET-L03")
def test_what_is_sent_is_what_the_host_sees(cell: Cell, tmp_path: Path) -> None:
    rng = random.Random(5)
    capture = tmp_path / "capture"
    with cell.open() as device, Net(device) as net:
        cell.qmp(
            "object-add", **{"qom-type": "filter-dump"}, id="seen", netdev=cell.extra["netdev"], file=str(capture)
        )
        most = net.max_frame
        lengths = [14, 15, 60, most - 4, *rng.choices(range(14, most - 3), k=60), *[64] * 700]
        sent = [net.mac + bytes(6) + SINK + rng.randbytes(length - 14) for length in lengths]
        sent.append(bytes(12) + b"\x81\x00" + rng.randbytes(most - 14))  # tagged, so 4 bytes longer
        net.send_all(sent)
        net.flush()
        for bad in (bytes(13), bytes(most + 1)):
            with pytest.raises(BadFrame):
                net.send([sent[0], bad])
        cell.qmp("object-del", id="seen")
        assert packets(capture) == sent
        assert net.counts.sent == len(sent)


@pytest.mark.spec("NET-41", "NET-42", "NET-43", "NET-44")
def test_the_control_queue(cell: Cell) -> None:
    with cell.open() as device, Net(device, vlans=True, announcements=True) as net:
        mine = mac_of("52:54:00:aa:bb:cc")
        before = filters(cell)
        for mode, name, value in MODES:
            net.set_rx_mode(mode, True)
            assert filters(cell)[name] == value
            net.set_rx_mode(mode, False)
        assert filters(cell) == {**before, "promiscuous": False}
        net.set_rx_mode(RxMode.NOBCAST, False)  # QEMU shows the opposite of it
        net.set_mac(mine)
        net.set_mac_table([mac_of("52:54:00:00:00:01")], [mac_of("01:00:5e:00:00:01")])
        net.add_vlan(5)
        net.add_vlan(6)
        net.remove_vlan(5)
        seen = filters(cell)
        assert seen["main-mac"] == mac_text(mine) == mac_text(net.mac)
        assert seen["unicast-table"] == ["52:54:00:00:00:01"]
        assert seen["multicast-table"] == ["01:00:5e:00:00:01"]
        assert 6 in seen["vlan-table"] and 5 not in seen["vlan-table"]
        cell.qmp("announce-self", initial=50, max=50, rounds=1, step=0)
        device.wait(lambda: net.announcement_wanted, timeout=5, what="the request")
        net.announce()
        assert not net.announcement_wanted
        assert ask(net)[:6] == mine


@pytest.mark.spec("NET-06")
def test_the_link_goes_down_and_up(cell: Cell) -> None:
    with cell.open() as device, Net(device) as net:
        before = device.counters.config_changes
        cell.qmp("set_link", name=cell.extra["id"], up=False)
        assert net.wait_for_link(False, timeout=5)
        assert net.send([arp_request(net.mac)]) == 0
        with pytest.raises(NetStalled, match="took 0 of 1 frames"):
            net.send_all([arp_request(net.mac)], timeout=0.05)
        cell.qmp("set_link", name=cell.extra["id"], up=True)
        assert net.wait_for_link(timeout=5)
        assert net.receive(timeout=0) == []
        if cell.mode is not InterruptMode.POLLING:
            assert device.counters.config_changes >= before + 2
        assert ask(net)[:6] == net.mac
