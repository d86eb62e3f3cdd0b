"""The loggers: opening, bring-up and leaving, each register access, and that silence costs nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import uvirtio
from uvirtio import opening
from uvirtio.device import log
from uvirtio.errors import DeviceTimeout, FeaturesRefused
from uvirtio.memory.trace import TracedRegisters
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng

STEPS = (
    "reset",
    "acknowledge",
    "driver",
    "features",
    "features_ok",
    "queues",
    "vectors",
    "queue_enable",
    "driver_ok",
)


def said(caplog: pytest.LogCaptureFixture, name: str = "uvirtio") -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == name]


def test_opening_bring_up_and_leaving_are_said(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "uvirtio.registers")
    caplog.set_level(logging.DEBUG, "uvirtio")
    with opening.identify("x:1", ScriptedDevice(Rng()), ring="split") as device, uvirtio.Rng(device) as rng:
        features = f"{device.features:#x}"
        rng.read(8)
    lines = said(caplog)
    assert lines[0] == (logging.INFO, "x:1: opened: rng, pci-modern; scripted")
    assert lines[1:-4] == [(logging.DEBUG, f"x:1: step {step} done") for step in STEPS]
    assert lines[-4:] == [
        (logging.INFO, f"x:1: started: features {features}, split rings, interrupts msix-per-queue"),
        (logging.DEBUG, "x:1: given back what outlives a reset"),
        (logging.INFO, "x:1: left: reset"),
        (logging.INFO, "x:1: closed"),
    ]
    assert not said(caplog, "uvirtio.registers"), "registers are at INFO"


def test_a_failure_is_said_before_it_is_raised(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "uvirtio")
    scripted = ScriptedDevice(Rng(), refuse_features=True)
    with opening.identify("x:1", scripted) as device, pytest.raises(FeaturesRefused):
        uvirtio.Rng(device)
    assert any(line.startswith("x:1: bring-up failed: ") for _, line in said(caplog))
    caplog.clear()
    with opening.identify("x:1", ScriptedDevice(Rng(), silent=True), timeout=0.05) as device:
        rng = uvirtio.Rng(device)
        with pytest.raises(DeviceTimeout):
            rng.read(8)
    assert any(line.startswith("x:1: broken: ") for _, line in said(caplog))


def test_memory_that_is_kept_is_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO, "uvirtio")
    scripted = ScriptedDevice(Rng())
    with opening.identify("x:1", scripted, timeout=0.05) as device:
        uvirtio.Rng(device)
        scripted.faults.reset_reads = -1
        monkeypatch.setattr(device.transport, "function_reset", lambda: False)
    assert (logging.WARNING, "x:1: its reset is not confirmed, so its memory is kept for ever") in said(caplog)
    assert (logging.INFO, "x:1: left: reset without an answer") in said(caplog)


def test_registers_and_kicks_are_said_at_debug_beside_a_trace_of_ones_own(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "uvirtio.registers")
    lines: list[str] = []
    with opening.identify("x:1", ScriptedDevice(Rng()), trace=lines.append) as device, uvirtio.Rng(device) as rng:
        rng.read(8)
    registers = said(caplog, "uvirtio.registers")
    assert registers == [(logging.DEBUG, f"x:1: {line}") for line in lines]
    assert any(line.startswith("x:1: kick queue 0") for _, line in registers)
    assert any(" write8 <- 0xf" in line for _, line in registers), "DRIVER_OK"


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_registers_that_nobody_listens_to_are_not_wrapped(caplog: pytest.LogCaptureFixture, level: int):
    caplog.set_level(level, "uvirtio.registers")
    scripted = ScriptedDevice(Rng())
    with opening.identify("x:1", scripted) as device:
        assert not [one for one in device.transport._windows if isinstance(one, TracedRegisters)]  # type: ignore
    assert log.register_trace("x:1", None) is None


def test_without_a_handler_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Python prints a warning that has no handler anywhere: not ours."""
    assert log.logger() is logging.getLogger("uvirtio")
    assert [type(one) for one in logging.getLogger("uvirtio").handlers].count(logging.NullHandler) == 1
    monkeypatch.setattr(logging.getLogger("uvirtio"), "propagate", False)
    log.logger().warning("nobody hears this")  # type: ignore[union-attr]
    assert capfd.readouterr() == ("", "")


def test_a_program_without_logging_is_left_without():
    code = """if True:
        import sys
        from uvirtio.scripted.pci import ScriptedDevice
        from uvirtio.scripted.rng import Rng
        for name in [one for one in sys.modules if one == "logging" or one.startswith("logging.")]:
            del sys.modules[name]
        import uvirtio
        from uvirtio import opening
        with opening.identify("x:1", ScriptedDevice(Rng())) as device, uvirtio.Rng(device) as rng:
            rng.read(8)
        assert "logging" not in sys.modules
        """
    root = Path(uvirtio.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
