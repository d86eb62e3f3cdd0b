"""uvirtio dump of QEMU's devices: opened, started, read back, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uvirtio.cli import main
from uvirtio.evidence import files

DEVICES = [
    "qemu:virtio-net-pci,mac=52:54:00:ab:cd:ef",
    "qemu:pc/virtio-balloon-pci",
    "qemu:virtio-keyboard-pci",
    "qemu:microvm/virtio-rng-device",
    "qemu:virtio-blk-pci,disable-modern=on,disable-legacy=off",
]


@pytest.mark.parametrize("address", DEVICES)
def test_before_and_after_the_start(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert main(["dump", address, "-o", str(before), "--timeout", "30"]) == 0
    assert main(["dump", address, "--live", "-o", str(after), "--timeout", "30"]) == 0
    (still,), (live,) = (files.load(str(path)).devices for path in (before, after))
    assert still["type"] == live["type"] and live["type"] in address.replace("keyboard", "input")
    assert live["error"] is None
    assert still["status"]["value"] == 0 and live["status"]["value"] & 4
    assert still["features"]["offered"] == live["features"]["offered"]
    assert still["device_config"] is not None and live["device_config"] is not None
    assert any(queue["ring"] for queue in live["queues"]) and not any(queue["ring"] for queue in still["queues"])
    document = json.loads(after.read_text())
    assert document["environment"]["qemu"]
    assert "525400abcdef" not in after.read_text().replace(":", "")  # not in the address, either
    capsys.readouterr()
    assert main(["diff", str(before), str(after), "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert {"status"} <= {change["section"] for change in made["changes"]} <= {
        "status", "config_space", "common", "queues", "msix", "device_config", "bars", "interrupts",
    }  # fmt: skip
