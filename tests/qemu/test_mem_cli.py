"""``uvirtio mem`` as a process, on QEMU's device, with the host changing its mind over QMP."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.test_cli import Command

MIB = 1 << 20


class Host:
    """A QMP client on the socket that the command made for others."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("r")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self._file.readline())
            if "event" not in answer:
                return answer["return"]

    def request(self, size: int) -> None:
        self.execute("qom-set", path="/machine/peripheral/vm", property="requested-size", value=size)

    def plugged(self) -> int:
        return int(self.execute("query-memory-devices")[0]["data"]["size"])

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow_until_a_signal(tmp_path: Path, number: int) -> None:
    path = tmp_path / "qmp"
    command = Command("mem", "follow", f"qemu:q35,qmp={path}/virtio-mem-pci,id=vm", "--json", "--unit", "128M")
    try:
        assert command.event("following")["mode"] == "sub-blocks"
        host = Host(path)
        try:
            for size in (200, 24, 0, 64):
                host.request(size * MIB)
                while command.event("reached")["plugged_bytes"] != size * MIB:
                    pass
                assert host.plugged() == size * MIB
        finally:
            host.close()
        command.process.send_signal(number)
        last = command.event("leaving")
        assert last["plugged_bytes"] == 64 * MIB  # it stays
        assert command.end()[0] == 128 + number
    finally:
        command.process.kill()
        command.process.wait(30)


@pytest.mark.parametrize(
    ("verb", "rest", "code"),
    [
        ("plug", ["64M"], 0),
        ("plug", ["64M", "--verify"], 0),
        ("plug", ["128M"], 1),
        ("plug", ["1M"], 2),
        ("unplug", ["2M"], 2),
        ("unplug-all", [], 0),
        ("status", [], 0),
        ("map", [], 0),
    ],
)
def test_exit_codes(verb: str, rest: list[str], code: int) -> None:
    # QEMU's own choice of a block is not the same everywhere, nor in all its versions.
    device = "qemu:virtio-mem-pci,block-size=2M,requested-size=64M"
    command = Command("mem", verb, device, *rest, "--json")
    found, out, _ = command.end()
    assert found == code
    made = json.loads(out)
    assert made["schema"] == "uvirtio/1" and made["command"] == f"mem {verb}"
    assert ("error" in made) == (code != 0)


def test_diag_asks_and_leaves_nothing_plugged() -> None:
    command = Command("diag", "qemu:virtio-mem-pci,requested-size=64M", "--json")
    code, out, _ = command.end()
    made = json.loads(out.splitlines()[-1])
    assert code == 0 and made["verdict"] == "pass"
    steps = {step["name"]: step for step in made["steps"]}
    assert steps["data path"]["verdict"] == "pass" and "UNPLUGGED" in steps["data path"]["detail"]
    assert steps["configuration change"]["verdict"] == "pass"
