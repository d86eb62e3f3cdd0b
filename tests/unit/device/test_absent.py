"""A status of all ones: a device that is gone, or one that is at fault, works on, and writes to memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.errors import DeviceGone, DeviceNeedsReset, ResetTimeout
from uvirtio.scripted.core import ScriptedCore
from uvirtio.scripted.legacy import ScriptedLegacy
from uvirtio.scripted.mmio import ScriptedMmio

MAKE: dict[str, Callable[..., ScriptedCore]] = {
    "mmio": ScriptedMmio,
    "mmio-legacy": lambda model, **how: ScriptedMmio(model, version=1, **how),
    "pci": scripted.ScriptedDevice,
    "pci-legacy": ScriptedLegacy,
}


def _stuck(found: ScriptedCore) -> None:
    """From now on the status reads ones, and no reset is done; all else works."""
    found._read_status = lambda: 0xFF  # type: ignore[method-assign]
    found._write_status = lambda value: None  # type: ignore[method-assign]


def _opened(kind: str) -> tuple[Any, Any]:
    found = MAKE[kind](scripted.Rng(), can_reset=False)
    return found, uvirtio.open(found, timeout=0.05)


@pytest.mark.fault(10, 88)
@pytest.mark.parametrize("kind", MAKE)
def test_ones_in_the_status_alone_free_no_memory(kind: str) -> None:
    found, device = _opened(kind)
    with device:
        rng = uvirtio.Rng(device)
        assert len(rng.read(8)) == 8
        blocks = len(found.memory.open_blocks())
        assert blocks
        _stuck(found)
        with pytest.raises(DeviceNeedsReset, match="needs a reset"):
            device.check()
    assert len(found.memory.open_blocks()) == blocks, "memory that the device writes to was freed"
    assert found.closed


@pytest.mark.fault(88)
@pytest.mark.parametrize("kind", ["mmio", "pci"])
def test_a_bring_up_that_ends_with_them_frees_none(kind: str) -> None:
    found, device = _opened(kind)
    connect = device.transport.connect_interrupts

    def connect_interrupts(*arguments: Any) -> None:
        connect(*arguments)
        _stuck(found)
        raise DeviceGone("gone", seen="ones")

    device.transport.connect_interrupts = connect_interrupts
    with device, pytest.raises(DeviceGone):
        uvirtio.Rng(device)
    assert found.memory.open_blocks()


@pytest.mark.fault(88)
@pytest.mark.parametrize("kind", MAKE)
def test_a_device_that_is_gone_keeps_none(kind: str) -> None:
    found, device = _opened(kind)
    with device, uvirtio.Rng(device) as rng:
        found.gone = True
        with pytest.raises(DeviceGone):
            rng.read(8)
    assert not found.memory.open_blocks()


def test_a_reset_of_the_function_confirms() -> None:
    found = scripted.ScriptedDevice(scripted.Rng())
    with uvirtio.open(found, timeout=0.05) as device:
        uvirtio.Rng(device)
        _stuck(found)
        with pytest.raises(ResetTimeout, match="did not finish its reset") as caught:
            device.reset()
        assert "status" in str(caught.value.seen)
    assert not found.memory.open_blocks()
    assert found.calls("function_reset")
