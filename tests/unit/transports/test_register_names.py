"""What a trace says of each access: names, bits, queues, capabilities; without one nothing of it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import uvirtio
from tests.fakes.played_vdpa import Played
from uvirtio import opening
from uvirtio.backends.vhost_vdpa import VhostVdpaNode
from uvirtio.device import QueueSpec
from uvirtio.memory.trace import TracedRegisters
from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.layout import Field
from uvirtio.transports.register_names import CommonNames, ConfigNames, PciConfigNames

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())

LEGACY_BITS = "(word 0: ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX)"


def traced(address: str) -> list[str]:
    """The trace of an rng or balloon from opening to closing, with a kick."""
    lines: list[str] = []
    with uvirtio.open(address, trace=lines.append) as device:
        device.transport.interface  # noqa: B018  # reads the vendor, on mmio
        if ":rng" in address:
            with uvirtio.Rng(device) as rng:
                rng.read(8)
        else:
            with uvirtio.Balloon(device) as balloon:
                assert balloon.actual == 0
    return lines


def test_the_modern_interface():
    lines = traced("scripted:rng")
    for line in (
        "pci+0x00 vendor_id read16 -> 0x1af4",
        "pci+0x34 capabilities_pointer read8 -> 0x40",
        "pci+0x40 cap_vndr read8 -> 0x11 (MSIX)",
        "common: 56 bytes at BAR 4+0x0",
        "common+0x00 device_feature_select write32 <- 0x1",
        "common+0x04 device_feature read32 -> 0x1 (word 1: VERSION_1)",
        "common+0x04 device_feature read32 -> 0x30000000 (word 0: INDIRECT_DESC, EVENT_IDX)",
        "common+0x14 device_status write8 <- 0x0 (reset)",
        "common+0x14 device_status write8 <- 0xf (ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK)",
        "common+0x16 queue_select write16 <- 0x0",
        "common+0x18 queue_size write16 <- 0x8 (queue 0)",
        "common+0x1a queue_msix_vector read16 -> 0x1 (queue 0)",
        "interrupts: MSI-X on, 2 vectors",
        "bus master: on",
        "kick queue 0: BAR 4+0x3000 write16 <- 0x0",
    ):
        assert line in lines, "\n".join(lines)
    assert any(line.startswith("common+0x24 queue_desc.high write32 <- ") for line in lines)
    assert lines.index("bus master: on") < lines.index("kick queue 0: BAR 4+0x3000 write16 <- 0x0")
    # Every access to a register has a name, and so has every byte of the capability list.
    nameless = [line for line in lines if "+0x" in line and len(line.partition(" ->")[0].split()) < 3]
    assert not [line for line in nameless if line.startswith(("common", "isr", "config", "pci"))]


def test_the_notification_structure_is_told_field_by_field():
    lines = traced("scripted:rng")
    walk = [line for line in lines if line.startswith("pci+")]
    at = next(i for i, line in enumerate(walk) if "cfg_type read8 -> 0x2 (notify)" in line)
    names = {line.split()[1] for line in walk[at : at + 7]}
    assert {"notify.bar", "notify.offset", "notify.length", "notify.notify_off_multiplier"} <= names


def test_the_configuration_of_a_type():
    lines = traced("scripted:balloon")
    assert "config+0x04 actual read32 -> 0x0" in lines


def test_the_legacy_interface():
    lines = traced("scripted:rng,transport=legacy")
    for line in (
        f"legacy+0x04 driver_features write32 <- 0x38000000 {LEGACY_BITS}",
        "legacy+0x12 device_status write8 <- 0x7 (ACKNOWLEDGE|DRIVER|DRIVER_OK)",
        "legacy+0x14 config_msix_vector write16 <- 0x0",
        "kick queue 0: BAR 0+0x10 write16 <- 0x0",
    ):
        assert line in lines, "\n".join(lines)
    # While MSI-X is on, the configuration begins behind the two vectors (4.1.4.10).
    assert "legacy+0x1c actual read32 -> 0x0" in traced("scripted:balloon,transport=legacy")
    assert "legacy+0x18 actual read32 -> 0x0" in traced("scripted:balloon,transport=legacy,vectors=0")


@pytest.mark.parametrize(
    ("transport", "told"),
    [
        ("mmio", "mmio+0x10 DeviceFeatures read32 -> 0x30000000 (word 0: INDIRECT_DESC, EVENT_IDX)"),
        ("mmio", "mmio+0x44 QueueReady write32 <- 0x1 (queue 0)"),
        ("mmio", "mmio+0x70 Status write32 <- 0xf (ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK)"),
        (
            "mmio-legacy",
            "mmio+0x20 GuestFeatures write32 <- 0x38000000 (word 0: ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX)",
        ),
        ("mmio-legacy", "mmio+0x3c QueueAlign write32 <- 0x1000 (queue 0)"),
        ("mmio-legacy", "mmio+0x70 Status write32 <- 0x7 (ACKNOWLEDGE|DRIVER|DRIVER_OK)"),
    ],
)
def test_a_window_of_either_version(transport: str, told: str):
    lines = traced(f"scripted:rng,transport={transport}")
    assert told in lines, "\n".join(lines)
    assert 'mmio+0x00 MagicValue read32 -> 0x74726976 ("virt")' in lines
    assert "mmio+0x08 DeviceID read32 -> 0x4 (rng)" in lines
    assert "kick queue 0: QueueNotify+0x50 write32 <- 0x0" in lines
    assert "mmio+0x104 actual read32 -> 0x0" in traced(f"scripted:balloon,transport={transport}")


def test_vdpa_has_the_same_words(tmp_path: Path):
    lines: list[str] = []
    played = Played(tmp_path, device_id=5, config=bytes(16))
    node = VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)
    with opening.identify(node.address, node, trace=lines.append) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])
        assert device.read_config(Field("actual", 4, 4)) == (0,)
        device.write_config(Field("actual", 4, 4), 1)
    for line in (
        "get_features -> 0x300000000 (VERSION_1, ACCESS_PLATFORM)",
        "set_status <- 0xb (ACKNOWLEDGE|DRIVER|FEATURES_OK)",
        "set_status <- 0x0 (reset)",
        "config+0x04 actual read32 -> 0x0",
        "config+0x04 actual write32 <- 0x1",
    ):
        assert line in lines, "\n".join(lines)


def test_a_kick_with_data_is_told_as_it_is_written():
    """NOTIFICATION_DATA: the upper half is the position in the ring (4.1.5.2.1)."""
    lines: list[str] = []
    offered = f.mask(f.VERSION_1, f.NOTIFICATION_DATA)
    with opening.identify("x:1", ScriptedDevice(Rng(), features=offered), trace=lines.append) as device:
        device.start(wanted=f.mask(f.NOTIFICATION_DATA), queues=[QueueSpec(0, "queue 0", size=8)])
        device.queues[0].add((), device.dma.alloc(8).segments(0, 8), None)
        device.queues[0].kick()
    assert "kick queue 0: BAR 4+0x3000 write32 <- 0x10000" in lines


# --- the names by themselves ------------------------------------------------------------------------------------


def test_a_selector_that_cannot_be_is_told_as_a_number():
    names = CommonNames("rng")
    assert names.told(pci.COMMON_DEVICE_FEATURE_SELECT, 4, 9, True) == ("device_feature_select", "")
    assert names.told(pci.COMMON_DEVICE_FEATURE, 4, 0xFFFFFFFF, False) == ("device_feature", "word 9")
    assert names.told(0x1000, 4, 0, False) == ("", "")


def test_a_vector_that_was_refused_has_its_name():
    names = CommonNames("rng")
    names.told(pci.COMMON_QUEUE_SELECT, 2, 3, True)
    assert names.told(pci.COMMON_QUEUE_MSIX_VECTOR, 2, 0xFFFF, False)[1] == "NO_VECTOR, queue 3"


def test_a_type_without_a_table_has_offsets_alone():
    assert ConfigNames("net").told(0, 4, 0, False) == ("", "")


def test_bits_without_a_name_are_told_too():
    names = PciConfigNames()
    assert names.told(4, 2, 0x8506, True) == ("command", "MEMORY|MASTER|INTX_DISABLE|0x8100")
    assert names.told(0x90, 1, 5, False) == ("", "")


# --- what it costs ----------------------------------------------------------------------------------------------


def test_configuration_space_is_the_back_ends_own_again_at_the_end():
    scripted = ScriptedDevice(Rng())
    before = scripted.config
    with opening.identify("x:1", scripted, trace=lambda _: None):
        assert isinstance(scripted.config, TracedRegisters)
    assert scripted.config is before


def test_configuration_space_that_cannot_be_replaced_is_left_alone():
    class Fixed(ScriptedDevice):
        @property
        def config(self):
            return self._fixed

        @config.setter
        def config(self, registers):
            if hasattr(self, "_fixed"):
                raise AttributeError("config")
            self._fixed = registers

    lines: list[str] = []
    with opening.identify("x:1", Fixed(Rng()), trace=lines.append) as device, uvirtio.Rng(device) as rng:
        rng.read(8)
    assert any(line.startswith("common+0x14 device_status") for line in lines)


def test_without_a_trace_no_name_is_loaded_and_nothing_is_wrapped():
    code = (
        "import sys, uvirtio\n"
        "for transport in ('pci', 'legacy', 'mmio'):\n"
        "    with uvirtio.open(f'scripted:rng,transport={transport}') as d, uvirtio.Rng(d) as rng: rng.read(8)\n"
        "print([name for name in sys.modules if name.endswith('register_names')])"
    )
    there = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("value", "told"), [(0, "off"), (0x8001, "ENABLE"), (0x4000, "MASK_ALL"), (0xC003, "ENABLE|MASK_ALL")]
)
def test_the_control_word_of_msix_is_told_in_words(value: int, told: str):
    names = PciConfigNames()
    for place, byte in ((pci.CFG_CAPABILITIES_POINTER, 0x40), (0x40, pci.CapId.MSIX), (0x41, 0)):
        names.told(place, 1, byte, False)
    for written in (False, True):
        assert names.told(0x40 + pci.MSIX_CONTROL, 2, value, written) == ("msix.control", told)
    assert names.told(0x44, 4, value, False) == ("msix", ""), "the word alone"


@pytest.mark.parametrize(("ident", "called"), [(0x01, "pm"), (0x05, "msi"), (0x10, "express"), (0x7F, "")])
def test_the_same_word_of_another_capability_is_no_control_of_msix(ident: int, called: str):
    names = PciConfigNames()
    for place, byte in ((pci.CFG_CAPABILITIES_POINTER, 0x40), (0x40, ident), (0x41, 0)):
        names.told(place, 1, byte, False)
    assert names.told(0x40 + pci.MSIX_CONTROL, 2, 0x8001, False) == (called, "")
