"""The demo's half outside the VM: does what the half inside asks for, and says what QEMU says.

The two speak by files in the share: ``ask-N.json`` is a list [verb, arguments...], ``answer-N.json`` its answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab import LabError
from lab.qmp import Qmp
from lab.rfb import CAPS, NUM, Vnc


class Host:
    """Answers the guest's questions; ``tick`` is to be called again and again."""

    def __init__(self, share: Path, qmp: Path, vnc: Path) -> None:
        self._share = share
        self._path = qmp
        self._vnc = vnc
        self._next = 0

    def tick(self) -> None:
        """Answer the next question, if there is one."""
        ask = self._share / f"ask-{self._next}.json"
        if not ask.exists():
            return
        verb, *arguments = json.loads(ask.read_text())
        try:
            with Qmp(self._path) as qemu:
                answer = {"return": getattr(self, f"do_{verb}")(qemu, *arguments)}
        except (LabError, OSError, AssertionError) as error:
            answer = {"error": str(error)}
        new = self._share / "answer.new"
        new.write_text(json.dumps(answer))
        new.rename(self._share / f"answer-{self._next}.json")
        self._next += 1

    @staticmethod
    def do_query_balloon(qemu: Qmp) -> int:
        """Bytes of memory that the guest has left, by the host's books."""
        return int(qemu.execute("query-balloon")["actual"])

    @staticmethod
    def do_balloon(qemu: Qmp, target: int) -> None:
        """Ask the guest to keep ``target`` bytes."""
        qemu.execute("balloon", {"value": target})

    @staticmethod
    def do_poll_statistics(qemu: Qmp, seconds: int) -> None:
        """Ask the guest for its statistics so often; 0: no more."""
        qemu.execute(
            "qom-set",
            {
                "path": "/machine/peripheral/balloon",
                "property": "guest-stats-polling-interval",
                "value": seconds,
            },
        )

    @staticmethod
    def do_statistics(qemu: Qmp) -> dict[str, int]:
        """The most telling of the guest's statistics, in bytes; nothing before it has answered."""
        got = qemu.execute("qom-get", {"path": "/machine/peripheral/balloon", "property": "guest-stats"})
        names = ("stat-total-memory", "stat-free-memory", "stat-available-memory")
        return {name: got["stats"][name] for name in names} if got["last-update"] else {}

    @staticmethod
    def do_request_memory(qemu: Qmp, size: int) -> None:
        """Offer the guest so many bytes of pluggable memory."""
        qemu.execute("qom-set", {"path": "/machine/peripheral/mem", "property": "requested-size", "value": size})

    @staticmethod
    def do_query_memory(qemu: Qmp) -> int:
        """Bytes that are plugged, by the host's books."""
        return int(qemu.execute("query-memory-devices")[0]["data"]["size"])

    @staticmethod
    def do_press(qemu: Qmp, keys: list[str]) -> None:
        """Press and release the keys (QEMU's names), one after the other."""
        for key in keys:
            for down in (True, False):
                data = {"down": down, "key": {"type": "qcode", "data": key}}
                qemu.execute("input-send-event", {"events": [{"type": "key", "data": data}]})

    def do_leds(self, _qemu: Qmp, name: str, lit: bool) -> bool:
        """Whether a VNC client comes to see this LED lit, or (``lit`` False) all of them dark."""
        wanted = {"capslock": CAPS, "numlock": NUM}.get(name, 0)
        with Vnc(str(self._vnc)) as client:
            return client.wait_leds(lambda leds: bool(leds & wanted) if lit else leds == 0)

    @staticmethod
    def do_addresses(qemu: Qmp) -> dict[str, str]:
        """The PCI address of each device that has an id on QEMU's command line, by that id."""
        found: dict[str, str] = {}

        def walk(devices: list[dict[str, Any]]) -> None:
            for one in devices:
                if one["qdev_id"]:
                    found[one["qdev_id"]] = f"0000:{one['bus']:02x}:{one['slot']:02x}.{one['function']}"
                walk(one.get("pci_bridge", {}).get("devices", []))

        for bus in qemu.execute("query-pci"):
            walk(bus["devices"])
        return found
