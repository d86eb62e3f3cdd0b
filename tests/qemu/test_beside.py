"""diag --qmp on real device models: it agrees with a good device, and names a kick and an interrupt that are lost.

What is lost is lost on this side: a doorbell that rings nothing, a vector that is masked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.test_cli import start, uvirtio  # noqa: F401  # fixtures
from uvirtio.device import Device
from uvirtio.diag import Beside, Report, diagnose
from uvirtio.errors import UsageError
from uvirtio.qemu import Machine

Run = Callable[..., tuple[int, str, str]]


class NoDoorbell:
    """Takes every kick, and tells the device of none."""

    def ring(self, value: int) -> None:
        del value


def without_kicks(device: Device) -> None:
    enable = device.transport.enable_queue

    def enabled(*how: int) -> NoDoorbell:
        enable(*how)
        return NoDoorbell()

    device.transport.enable_queue = enabled  # type: ignore[method-assign,assignment]


def without_interrupts(device: Device) -> None:
    """Mask each vector in the MSI-X table after it was set up: QEMU notes it as pending, and sends nothing."""
    connect = device.transport.connect_interrupts

    def connected(*how: Any) -> Any:
        made = connect(*how)
        access = device.transport.backend._access
        for vector in range(access.msix_size):
            access.msix_mask(vector)
        return made

    device.transport.connect_interrupts = connected  # type: ignore[method-assign]


@contextlib.contextmanager
def diagnosed(device: str, spoil: Callable[[Device], None] | None = None, **how: Any) -> Iterator[Report]:
    with Machine("q35", [device]) as machine:
        yield diagnose(machine.functions[0], opened=spoil, beside=Beside(None), **how)


def view(report: Report) -> Any:
    [step] = [step for step in report.steps if step.name == "device's view"]
    return step


@pytest.mark.parametrize("device", ["virtio-rng-pci", "virtio-blk-pci,packed=on", "virtio-keyboard-pci"])
def test_a_good_device_agrees(device: str) -> None:
    with diagnosed(device) as report:
        step = view(report)
        assert (step.verdict, step.cause) == ("pass", None) and report.verdict != "fail", step
        assert report.view is not None and report.view.running and not report.view.disagreements
        assert report.view.path == "/machine/peripheral/dev0/virtio-backend"
        assert all(queue["vring-desc"] for queue in report.view.queues)


@pytest.mark.parametrize("device", ["virtio-rng-pci", "virtio-blk-pci,packed=on"])
def test_a_lost_kick_is_named(device: str) -> None:
    with diagnosed(device, without_kicks, timeout=0.3) as report:
        step = view(report)
        assert (report.verdict, step.verdict) == ("fail", "fail")
        assert report.cause is step.cause and step.cause.id == "lost-kick", step
        assert report.cause.text.startswith("request") and "the kick was lost" in report.cause.text
        assert any("last-avail-idx 0" in line for line in step.cause.evidence), step.cause
        # Without QEMU's word the ring leaves it open: that is the cause of the step that failed.
        [path] = [step for step in report.steps if step.name == "data path"]
        assert path.cause.id in ("queue-untaken", "queue-silent")


@pytest.mark.fault(43)
def test_a_lost_interrupt_is_named() -> None:
    with diagnosed("virtio-rng-pci", without_interrupts) as report:
        step = view(report)
        assert report.cause is step.cause and step.cause.id == "lost-interrupt", step
        assert "requestq: the interrupt was lost: QEMU returned the buffers and raised it" in report.cause.text
        assert any("0 interrupts came" in line for line in step.cause.evidence), step.cause
        assert [step.cause.id for step in report.steps if step.name == "interrupt"] == ["interrupts-lost"]


def test_other_disagreements_are_named() -> None:
    def forget(device: Device) -> None:
        kept = device.start

        def started(**how: Any) -> None:
            kept(**how)
            device.features |= 1 << 37  # SR_IOV, which is not offered
            device.queues[0].ring._addresses = (0x1000, *device.queues[0].ring.addresses[1:])

        device.start = started  # type: ignore[method-assign]

    with diagnosed("virtio-rng-pci", forget) as report:
        assert report.view is not None
        assert report.view.disagreements[0].id == "queue-differs"
        if report.view.status is not None:  # a version that is asked for the features
            [odd] = [one for one in report.view.disagreements if one.id == "features-differ"]
            assert odd.evidence == ("the driver alone: SR_IOV",)


def test_a_machine_that_is_stopped_is_the_cause() -> None:
    def pause(device: Device) -> None:
        assert device.guest is not None
        device.guest.qmp("stop")

    with diagnosed("virtio-blk-pci", pause, timeout=0.3) as report:
        assert report.cause is not None and report.cause.id == "machine-stopped"


def test_by_a_socket_the_device_is_found_by_address_or_named(uvirtio: Run, tmp_path: Path) -> None:  # noqa: F811
    """Two rng devices and no id that fits: they are listed; with an id, one is taken."""
    path = tmp_path / "qmp"
    with Machine("q35", ["virtio-rng-pci", "virtio-rng-pci", "virtio-blk-pci"], qmp_path=str(path)) as machine:
        code, out, _ = uvirtio("diag", "scripted:rng", "--qmp", str(path), "--json")
        step = next(step for step in json.loads(out)["steps"] if step["name"] == "device's view")
        assert (code, step["verdict"]) == (0, "warn") and "UV-USAGE" in step["detail"]
        assert "/machine/peripheral/dev0/virtio-backend, /machine/peripheral/dev1/virtio-backend" in step["detail"]
        with machine.open(1) as device:
            assert Beside(machine.qmp).find(device) == "/machine/peripheral/dev1/virtio-backend"
            function = next(one for one in machine.qmp("query-pci")[0]["devices"] if one["qdev_id"] == "dev1")
            device.address, device.transport.backend.id = f"0000:00:{function['slot']:02x}.0", ""
            assert Beside(machine.qmp).find(device) == "/machine/peripheral/dev1/virtio-backend", "by its address"
            with pytest.raises(UsageError, match="nothere"):
                Beside(machine.qmp, "nothere").find(device)
            device.address = "0000:00:1f.7"
            with pytest.raises(UsageError) as caught:
                Beside(machine.qmp).find(device)
            assert "dev0" in str(caught.value.seen) and "dev1" in str(caught.value.seen)


@pytest.mark.parametrize("address", ["qemu:virtio-balloon-pci", "qemu:microvm/virtio-rng-device"])
def test_the_command(uvirtio: Run, address: str) -> None:  # noqa: F811
    code, out, _ = uvirtio("diag", address, "--qmp", "auto")
    assert code == 0, out
    assert "15/17  ok    device's view" in out and "it agrees with the driver" in out
