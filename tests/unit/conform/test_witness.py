"""Witnesses beside the device: what a host shows is compared, and how many rows have one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio.backends.qemu import queries
from uvirtio.conform import Pace, battery, run
from uvirtio.errors import QemuFailed
from uvirtio.scripted import ScriptedCore
from uvirtio.scripted.address import build
from uvirtio.spec import features as f
from uvirtio.spec.status import Status

PACE = Pace(deadline=0.01, watch=0.0, reset=0.01)
PAGE = Path(uvirtio.__file__).parents[1] / "docs" / "conform.md"


class Monitor:
    """QMP over a scripted device: what QEMU 7.2 says of it, and what it is changed to."""

    def __init__(self, device: ScriptedCore, lies: dict[str, Any]) -> None:
        self.device = device
        self.lies = lies
        self.asked: Counter[str] = Counter()

    def __call__(self, command: str, **arguments: Any) -> Any:
        self.asked[command] += 1
        if command in self.lies and self.lies[command] is None:
            raise QemuFailed("no", seen="CommandNotFound")
        return {**self.truth(command, arguments), **self.lies.get(command, {})}

    def truth(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        device = self.device
        if command == "query-version":
            return {"qemu": {"major": 7, "minor": 2, "micro": 22}}
        if command == STATUS:
            assert arguments["path"] == "/machine/peripheral/thing/virtio-backend"
            bits = [bit for bit in Status if device.status_now & bit]
            names = [str(bit.name).replace("DEVICE_NEEDS", "NEEDS") for bit in bits]
            ring = [
                name for name in ("EVENT_IDX", "INDIRECT_DESC") if f.has(device.driver_features, getattr(f, name))
            ]
            modern = ["VIRTIO_F_VERSION_1: as of 1.0"] if f.has(device.driver_features, f.VERSION_1) else []
            return {
                "status": {"statuses": [f"VIRTIO_CONFIG_S_{name}: it is" for name in names]},
                "guest-features": {"transports": modern + [f"VIRTIO_RING_F_{name}: yes" for name in ring]},
            }
        if command == "x-query-virtio-vhost-queue-status":
            raise QemuFailed("vhost has not started", seen="GenericError")
        ring_now = device.queues[arguments["queue"]].ring
        if ring_now is None:
            return {"vring-num": 64, "vring-desc": 0, "used-idx": 0}
        return {"vring-num": 64, "vring-desc": 1, "used-idx": ring_now.used_idx}


def with_monitor(lies: dict[str, Any]) -> tuple[ScriptedCore, Monitor]:
    device: Any = build("scripted:rng")
    monitor = Monitor(device, lies)
    device.id, device.ram, device.qmp = "thing", 1 << 20, monitor
    return device, monitor


STATUS = queries._STATUS
QUEUE = "x-query-virtio-queue-status"
LYING = {
    "D-RST-01": {STATUS: {"status": {"statuses": [], "unknown-statuses": 16}}},
    "D-STAT-06": {STATUS: {"status": {"statuses": ["VIRTIO_CONFIG_S_ACKNOWLEDGE: it is"]}}},
    "D-FEAT-08": {STATUS: {"guest-features": {"transports": [], "unknown-dev-features": 1 << 40}}},
    "D-USED-06": {QUEUE: {"used-idx": 7}},
    "D-RST-03": {QUEUE: {"vring-desc": 0x1000}},
}


@pytest.mark.parametrize("ident", LYING)
def test_a_host_that_shows_something_else_is_told(ident: str) -> None:
    rows = [battery.find(ident)]
    for lies, verdict in (({}, "pass"), (LYING[ident], "fail")):
        device, monitor = with_monitor(lies)
        report = run(device, rows=rows, pace=PACE)
        assert list(report.counts) == [verdict], report.results
        assert sum(monitor.asked[one] for one in (STATUS, QUEUE))
        assert ("by the host's word" in report.results[0].seen) is (verdict == "fail")


def test_a_host_that_does_not_tell_is_no_witness() -> None:
    device, monitor = with_monitor({STATUS: None, QUEUE: None})
    assert run(device, rows=[battery.find("D-RST-01"), battery.find("D-USED-06")], pace=PACE).counts == {"pass": 2}
    device, monitor = with_monitor({"query-version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}})
    assert run(device, rows=[battery.find("D-RST-01")], pace=PACE).counts == {"pass": 1}
    assert not monitor.asked[STATUS], "it is not asked where that has not been tried"


def test_sixty_rows_have_a_witness_beside_the_device_and_the_page_counts_them() -> None:
    kinds = Counter(row.witness for row in battery.all_rows() if row.witness is not None)
    assert kinds.total() >= 60
    told = PAGE.read_text(encoding="utf-8").partition("## Witnesses")[2].partition("\n## ")[0]
    counts = {
        line.split("|")[1].strip(" `"): int(line.split("|")[2]) for line in told.splitlines() if line[:3] == "| `"
    }
    assert counts == dict(kinds)
