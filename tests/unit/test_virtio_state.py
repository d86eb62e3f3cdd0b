"""The witness of a device's state, and that each QEMU is asked only what was tried with its version."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.virtio_state import started, state
from tests.unit.test_docs_pages import CHECKOUT
from uvirtio.backends.qemu import queries

STATUS = "x-query-virtio" + "-status"
BEHIND_PCI = "/machine/peripheral/dev0/virtio-backend"
BEHIND_MMIO = "/machine/peripheral/dev0"
QTREE = """\
bus: main-system-bus
  dev: virtio-mmio, id ""
    mmio 00000000feb00c00/0000000000000200
    bus: virtio-mmio-bus.6
      dev: virtio-balloon-device, id "dev1"
  dev: virtio-mmio, id ""
    mmio 00000000feb00e00/0000000000000200
    bus: virtio-mmio-bus.7
      dev: virtio-rng-device, id "dev0"
"""
MODERN = [{"bar": 0, "address": 0xC000, "type": "io"}, {"bar": 4, "address": 0xC000_4000, "type": "memory"}]


class Qemu:
    """A QEMU that answers as the real ones do, if it is asked only what was tried with its version."""

    def __init__(self, *version: int, regions: list[dict[str, Any]] = MODERN, status: int = 0xF) -> None:
        self.version = version
        self.regions = regions
        self.status = status

    def qmp(self, command: str, **arguments: Any) -> Any:
        return getattr(self, "_" + command.replace("-", "_"))(**arguments)

    def _query_version(self) -> Any:
        return {"qemu": dict(zip(("major", "minor", "micro"), self.version, strict=True))}

    def _x_query_virtio_status(self, path: str) -> Any:
        assert self.version < (10, 1), "not tried with this version"
        lines = {
            1: "VIRTIO_CONFIG_S_ACKNOWLEDGE: Valid virtio device found",
            2: "VIRTIO_CONFIG_S_DRIVER: Guest OS compatible with device",
            4: "VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready",
            8: "VIRTIO_CONFIG_S_FEATURES_OK: Feature negotiation complete",
            64: "VIRTIO_CONFIG_S_NEEDS_RESET: Irrecoverable error, device needs reset",
        }
        return {
            "status": {"statuses": [line for bit, line in lines.items() if self.status & bit]},
            "guest-features": {
                "dev-features": ["VHOST_USER_F_PROTOCOL_FEATURES: Vhost-user protocol features"],
                "transports": [
                    "VIRTIO_F_IOMMU_PLATFORM: Device can be used on IOMMU platform",
                    "VIRTIO_F_VERSION_1: Device compliant for v1 spec (legacy)",
                ],
            },
            "broken": bool(self.status & 64),
            "started": bool(self.status & 4),
        }

    def _x_query_virtio_queue_status(self, path: str, queue: int) -> Any:
        return {"vring-desc": 0x1000000 if self.status & 4 else 0}

    def _query_pci(self) -> Any:
        function = {"qdev_id": "dev0", "regions": self.regions}
        port = {"qdev_id": "port", "regions": [], "pci_bridge": {"devices": [function]}}
        return [{"devices": [{"qdev_id": "", "regions": []}, port]}]

    def _human_monitor_command(self, **arguments: Any) -> str:
        return {
            "info qtree": QTREE,
            "xp /1xb 0xc0004014": f"00000000c0004014: {self.status:#04x}\r\n",
            "xp /1xw 0xfeb00e70": f"feb00e70: {self.status:#010x}\r\n",
            "i /1xb 0xc012": f"portb[0xc012] = {self.status:#04x}\r\n",
        }[arguments["command-line"]]


@pytest.mark.parametrize("version", [(7, 2, 22), (10, 0, 8), (10, 1, 0), (11, 0, 0), (11, 1, 3), (12, 0, 0)])
@pytest.mark.parametrize(
    ("path", "regions"),
    [(BEHIND_PCI, MODERN), (BEHIND_PCI, MODERN[:1]), (BEHIND_MMIO, [])],
    ids=["modern", "legacy", "mmio"],
)
def test_each_qemu_tells_the_state(version, path, regions):
    for status, names in (
        (0, set()),
        (0xF, {"ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK"}),
        (0x43, {"ACKNOWLEDGE", "DRIVER", "NEEDS_RESET"}),
    ):
        qemu = Qemu(*version, regions=regions, status=status)
        seen = state(qemu.qmp, path)
        assert (seen.status, seen.broken) == (names, "NEEDS_RESET" in names)
        assert started(qemu.qmp, path) is ("DRIVER_OK" in names)
        assert seen.features == ({"VERSION_1", "ACCESS_PLATFORM"} if version < (10, 1) else None)
        assert queries.tells_status(qemu.qmp) is (version < (10, 1))
        if version >= (10, 1):
            assert queries.status(qemu.qmp, path) is None


def test_nothing_else_sends_it():
    places = ("tests", "examples", "tools", "docs", "uvirtio")
    files = [path for place in places for path in (CHECKOUT / place).rglob("*.*") if path.suffix in (".py", ".md")]
    there = {path.relative_to(CHECKOUT).as_posix() for path in files if STATUS in path.read_text(encoding="utf-8")}
    assert there == {"uvirtio/backends/qemu/queries.py"}
    text = (CHECKOUT / "uvirtio/backends/qemu/queries.py").read_text()
    [line] = [line for line in text.splitlines() if re.search(r"\bqmp\(_STATUS\b", line)]
    assert line.endswith("if tells_status(qmp) else None") and text.count("_STATUS") == 3
    assert queries._STATUS == STATUS
    # Nor is a command put together from a beginning of it.
    parts = re.compile(r"x-query-virtio-?[\"']|x-query-virtio-st|query-virtio-\{")
    rest = {path for path in files if parts.search(path.read_text(encoding="utf-8"))}
    assert {path.relative_to(CHECKOUT).as_posix() for path in rest} <= {
        "uvirtio/backends/qemu/queries.py",
        "tests/unit/test_virtio_state.py",
        "tests/unit/diag/test_beside.py",
    }
