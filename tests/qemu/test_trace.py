"""Records of QEMU's device models, replayed when QEMU is gone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import uvirtio
from uvirtio import qemu
from uvirtio.trace import replayed


def starved(where: object, **options: object) -> uvirtio.UvirtioError:
    """The error of a device that has no more random bytes for a minute."""
    with (
        pytest.raises(uvirtio.DeviceTimeout) as caught,
        uvirtio.open(where, timeout=1.0, **options) as device,  # type: ignore[arg-type]
        uvirtio.Rng(device) as rng,
    ):
        for _ in range(3):
            rng.read(16)
    return caught.value


def test_a_failing_run_is_replayed_to_the_same_error_without_qemu(tmp_path: Path):
    record = tmp_path / "run.jsonl"
    first = starved("qemu:virtio-rng-pci,max-bytes=1,period=60000", record=record)
    again = starved(replayed(record))
    assert json.dumps(again.as_dict()) == json.dumps(first.as_dict()) and again.__notes__ == first.__notes__


@pytest.mark.parametrize("address", ["qemu:virtio-rng-pci,packed=on", "qemu:microvm/virtio-rng-device"])
def test_the_bytes_that_qemu_gave_are_in_the_record(address: str, tmp_path: Path):
    record = tmp_path / "run.jsonl"
    with uvirtio.open(address, record=record) as device, uvirtio.Rng(device) as rng:
        first = [rng.read(16) for _ in range(20)]
    with uvirtio.open(replayed(record)) as device, uvirtio.Rng(device) as rng:
        assert [rng.read(16) for _ in range(20)] == first


def test_a_qemu_that_was_killed_is_gone_again_in_the_replay(tmp_path: Path):
    record = tmp_path / "run.jsonl"

    def use(where: object, unplug: object, **options: object) -> uvirtio.UvirtioError:
        with (
            pytest.raises(uvirtio.DeviceGone) as caught,
            uvirtio.open(where, **options) as device,  # type: ignore[arg-type]
            uvirtio.Rng(device) as rng,
        ):
            rng.read(16)
            unplug()  # type: ignore[operator]
            rng.read(16)
        return caught.value

    with qemu.Machine(devices=["virtio-rng-pci"]) as machine:
        first = use(machine.function(0), lambda: os.kill(machine.pid, signal.SIGKILL), record=record)
    again = use(replayed(record), lambda: None)
    assert json.dumps(again.as_dict()) == json.dumps(first.as_dict())
