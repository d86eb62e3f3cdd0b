"""``uvirtio reset`` on scripted devices: with a function-level reset, without one, and the remedy of a hang."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.device import Device
from uvirtio.errors import NotSupported, ResetTimeout
from uvirtio.interfaces.backend import after_removal, after_reset_timeout, inspection
from uvirtio.opening import identify
from uvirtio.scripted import Rng, ScriptedDevice, ScriptedMmio
from uvirtio.spec.status import Status

DEV = "0000:00:04.0"
RUNNING = int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)


def hung(made: type = ScriptedDevice, **how: Any) -> Any:
    """A device that another driver left running, and whose reset by the status never ends."""
    device = made(Rng(), reset_reads=-1, **how)
    device._status = RUNNING
    return device


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """Has ``opening.open`` return a Device on what is made for it; returns the list of what was made."""

    def put(make: Callable[[], Any]) -> list[Any]:
        made: list[Any] = []

        def open_it(address: str, **how: Any) -> Device:
            made.append(make())
            return identify(address, made[-1], timeout=0.05)

        monkeypatch.setattr(opening, "open", open_it)
        return made

    return put


def command_of(remedy: str) -> list[str]:
    found = re.search(r"uvirtio (reset [^,;]*)", remedy)
    return shlex.split(found[1]) if found else []


def test_the_remedy_of_a_hang_ends_it(serve, capsys):
    made = serve(hung)
    assert run(["reset", DEV, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == ResetTimeout.code and made[-1].status_now == RUNNING
    command = command_of(error["remedy"])
    assert command == ["reset", DEV, "--flr"]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status_before"], told["status_after"]) == (RUNNING, 0)
    assert (told["reset_confirmed"], told["function_reset"]) == (False, True)
    assert made[-1].calls("function_reset") == [0] and not made[-1].master


def test_the_text_says_which_reset_it_was(serve, capsys):
    serve(hung)
    assert run(["reset", DEV, "--flr"]) == 0
    assert "the reset did not end, then function-level reset" in capsys.readouterr().out
    serve(lambda: ScriptedDevice(Rng()))
    assert run(["reset", DEV, "--flr"]) == 0
    assert ": reset, then function-level reset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hung(can_reset=False), "this function has no other reset"),
        (lambda: hung(ScriptedMmio), "a virtio-mmio window has no other reset"),
    ],
    ids=["pci", "mmio"],
)
def test_where_there_is_no_such_reset_none_is_recommended(serve, capsys, make, says):
    serve(make)
    for flr in ([], ["--flr"]):
        assert run(["reset", DEV, *flr, "--json"]) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == ResetTimeout.code
        assert says in error["remedy"] and not command_of(error["remedy"])


def test_a_device_that_a_function_level_reset_does_not_bring_back(monkeypatch):
    function = hung()
    monkeypatch.setattr(ScriptedDevice, "reset", lambda self: True)
    with identify(DEV, function, timeout=0.05) as device, pytest.raises(ResetTimeout) as raised:
        device.reset(flr=True)
    assert not command_of(raised.value.remedy)


def test_flr_where_there_is_none_says_that_the_other_one_was_done():
    function = ScriptedDevice(Rng(), can_reset=False)
    function._status = RUNNING
    with identify(DEV, function, timeout=0.05) as device:
        with pytest.raises(NotSupported, match="no function-level reset"):
            device.reset(flr=True)
        assert function.status_now == 0


class Pci:
    bus = "pci"
    has_reset = True


class PciWithoutIommu(Pci):
    warning = "no IOMMU"


class Vdpa:
    bus = "vdpa"


class Machine:
    bus = "pci"
    has_reset = True
    id = "dev0"
    ram = 1 << 20

    def qmp(self, command: str, **arguments: Any) -> None: ...


def test_what_is_recommended_is_what_the_back_end_has():
    assert command_of(after_reset_timeout(Pci(), DEV)) == ["reset", DEV, "--flr"]
    assert command_of(after_reset_timeout(PciWithoutIommu(), DEV)) == ["reset", DEV, "--flr", "--unsafe-dma"]
    for backend in (Vdpa(), Machine(), object()):
        assert not command_of(after_reset_timeout(backend, DEV))
    assert inspection(Pci()) == "uvirtio inspect"
    for address in ("qemu:q35@1/virtio-rng-pci", "scripted:rng"):
        function = ScriptedDevice(Rng(), address=address)
        assert inspection(function) == "uvirtio diag -v" and "uvirtio list" not in after_removal(function)
