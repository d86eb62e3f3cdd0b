"""Network cards over vhost-vdpa that are not QEMU's: the kernel's simulator, and DPDK's. Each returns frames."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import uvirtio
from tests.bodies.net import SINK
from tests.vm import vduse
from tests.vm.conforming import conforms
from uvirtio.conform.implementation import Implementation
from uvirtio.diag import diagnose
from uvirtio.drivers.net import Net, mac_of
from uvirtio.errors import NotSupported
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f

MACHINE = "vp-vdpa"
"""It has the simulator's modules, and DPDK."""

PER_QUEUE, POLLING = InterruptMode.PER_QUEUE, InterruptMode.POLLING
MAC = mac_of("52:54:11:22:33:44")
"""No byte of it is 0: the simulator compares addresses as strings, up to the first."""


@pytest.fixture
def simulated() -> Iterator[str]:
    """The address of a simulated card, made again: it keeps an address that was set, whatever resets it."""
    for module in ("vhost_vdpa", "vdpa_sim_net"):
        vduse.run("modprobe", module)
    vduse.run("vdpa", "dev", "add", "name", "simnet", "mgmtdev", "vdpasim_net", "mac", MAC.hex(":"))
    try:
        vduse.hand_over("simnet", "vhost_vdpa")
        yield "vdpa:simnet"
    finally:
        vduse.run("vdpa", "dev", "del", "simnet")


def returned(net: Net, frames: list[bytes]) -> list[bytes]:
    """What comes back when these are sent."""
    net.send_all(frames, timeout=10)
    found: list[bytes] = []
    while len(found) < len(frames) and (more := net.receive(timeout=1)):
        found += [bytes(frame) for frame in more]
    return found


@pytest.mark.spec("NET-02", "NET-03", "NET-32")
@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING], ids=lambda mode: mode.value)
def test_what_is_sent_to_its_own_address_comes_back(simulated: str, mode: InterruptMode) -> None:
    rng = random.Random(11)
    with uvirtio.open(simulated, interrupts=[mode]) as device:
        assert not f.has(device.offered, f.RING_PACKED)  # docs/vdpa.md says so
        for _ in range(2):  # again on the same device
            with Net(device) as net:
                assert net.mac == MAC and net.link and net.config.mtu == 1500
                most = net.max_frame - 4  # of a frame without a tag
                lengths = [14, 60, most, *rng.choices(range(14, most), k=60)]
                sent = [MAC + MAC + SINK + rng.randbytes(length - 14) for length in lengths]
                back = [frame for at in range(0, len(sent), 7) for frame in returned(net, sent[at : at + 7])]
                assert back == sent
                assert (net.counts.received, net.counts.dropped, net.findings) == (len(sent), 0, {})
                assert device.transport.interrupt_mode is mode
                if mode is PER_QUEUE:
                    net.rely_on_interrupts()
                    returned(net, sent[:1])
                    device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


def test_the_address_is_set_and_frames_to_others_stay_away(simulated: str) -> None:
    other = mac_of("52:54:11:22:33:55")
    with uvirtio.open(simulated) as device, Net(device) as net:
        to_other = other + MAC + SINK + bytes(46)
        assert returned(net, [to_other]) == []
        net.set_mac(other)
        assert net.mac == net.config.mac == other
        assert returned(net, [to_other]) == [to_other]
        with pytest.raises(NotSupported):
            net.add_vlan(5)
        net.set_mac(MAC)
        broadcast = b"\xff" * 6 + MAC + SINK + bytes(46)
        assert returned(net, [to_other, broadcast]) == [broadcast]


def test_diag_passes(simulated: str) -> None:
    # It answers before a driver sleeps, so that no interrupt is due.
    report = diagnose(simulated, timeout=10, interrupts=[POLLING])
    steps = {step.name: step for step in report.steps}
    assert report.verdict in ("pass", "warn"), [step for step in report.steps if step.verdict == "fail"]
    assert steps["data path"].verdict == "pass"
    assert "2 frames received" in steps["data path"].detail


def test_it_obeys_but_for_what_is_known(simulated: str, record_property: Callable[[str, object], None]) -> None:
    conforms(simulated, Implementation("vdpasim_net", platform.release()), record_property)


# --- VDUSE ------------------------------------------------------------------------------------------------------


@pytest.mark.spec("NET-02", "NET-03", "NET-32")
def test_what_is_sent_to_a_card_of_another_process_comes_back(tmp_path: Path) -> None:
    # conform is not run on it: DPDK polls, on the one CPU of the VM, so that what is late may be ours.
    rng = random.Random(13)
    with vduse.card("vdusenet", tmp_path) as address:
        vduse.hand_over("vdusenet", "vhost_vdpa")
        with uvirtio.open(address, interrupts=[PER_QUEUE], timeout=10) as device, Net(device) as net:
            assert not device.has(f.RING_PACKED)  # docs/vdpa.md says so
            assert net.link and list(device.queues) == [0, 1]
            most = net.max_frame - 4
            lengths = [60, most, *rng.choices(range(60, most), k=300)]  # more than once round the ring
            sent = [net.mac + net.mac + SINK + rng.randbytes(length - 14) for length in lengths]
            back = [frame for at in range(0, len(sent), 30) for frame in returned(net, sent[at : at + 30])]
            assert back == sent
            assert (net.counts.dropped, net.findings) == (0, {})
