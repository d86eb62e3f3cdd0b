"""Addresses of scripted devices: every switch builds a device and shows, and every fault has a switch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import uvirtio
from uvirtio import opening
from uvirtio.diag import diagnose
from uvirtio.errors import BadAddress, DeviceGone, DeviceTimeout, FeaturesRefused
from uvirtio.scripted import address as scripted
from uvirtio.scripted import cases
from uvirtio.scripted.faults import Faults
from uvirtio.scripted.ring import Lies
from uvirtio.spec import features as f

DOCS = Path(uvirtio.__file__).parent.parent / "docs/scripted.md"

VALUES = {
    **cases.VALUES,
    "transport": "mmio",
    "features": "0x100000000",
    "vectors": "1",
    "refuse-with": "EVENT_IDX+28",  # by name and by number
}


def text_of(switch: scripted.Switch) -> str:
    return f"{switch.name}={VALUES[switch.name]}" if switch.value else switch.name


@pytest.mark.parametrize("type_name", scripted.TYPES)
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_without_a_switch_it_is_honest(type_name: str, transport: str) -> None:
    report = diagnose(f"scripted:{type_name},transport={transport}", timeout=1)
    assert report.verdict == "pass", report.steps


@pytest.mark.parametrize("transport", ["legacy", "transitional"])
@pytest.mark.parametrize("type_name", ["rng", "blk", "balloon"])
def test_it_has_a_legacy_interface(type_name: str, transport: str) -> None:
    force = transport == "transitional"
    assert diagnose(f"scripted:{type_name},transport={transport}", timeout=1, force_legacy=force).verdict == "pass"


@pytest.mark.parametrize(
    ("type_name", "switch"),
    [(type_name, one) for type_name in scripted.TYPES for one in scripted.switches(type_name).values()],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_every_switch_builds_a_device_of_its_own(type_name: str, switch: scripted.Switch) -> None:
    address = f"scripted:{type_name},{text_of(switch)}"
    if switch.name in ("memory-off", "power-state"):
        with pytest.raises(DeviceGone):
            opening.open(address)
        return
    with opening.open(address) as device:
        assert device.address == address
    assert scripted._parsed(address) != scripted._parsed(f"scripted:{type_name}")


def test_every_fault_and_lie_has_a_switch() -> None:
    names = {one.name.replace("-", "_") for one in scripted.SWITCHES}
    fields = {field.name for kind in (Faults, Lies) for field in dataclasses.fields(kind)}
    assert fields - names == {"slot_flags"}  # of packed rings, a function of the flags: in Python only


def test_the_page_lists_every_switch() -> None:
    rows = re.findall(r"^\| `([a-z-]+)(=.*?)?` \| (.*?) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    shown = [
        (name, value.removeprefix("=").replace("\\|", "|"), types, help_) for name, value, types, help_ in rows
    ]
    assert shown == [(one.name, one.value, ", ".join(one.types) or "all", one.help) for one in scripted.SWITCHES]


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("scripted:foo", "foo"),
        ("scripted:,silent", "nothing"),
        ("scripted:rng,silnt", "silnt"),
        ("scripted:rng,", "nothing"),
        ("scripted:rng,status=1", "status"),
        ("scripted:rng,silent=1", "silent=1"),
        ("scripted:rng,used-len", "used-len"),
        ("scripted:rng,used-len=x", "x"),
        ("scripted:rng,no-vectors=0+", "0+"),
        ("scripted:rng,queue-size=0", "0"),
        ("scripted:rng,refuse-with=NONESUCH", "NONESUCH"),
        ("scripted:rng,refuse-with=-1", "-1"),
        ("scripted:rng,transport=ccw", "ccw"),
        ("scripted:rng,needs-reset-at=never", "never"),
        ("scripted:mem,transport=legacy", "legacy"),
        # What no register can hold.
        ("scripted:rng,features=-1", "-1"),
        ("scripted:rng,vectors=2049", "2049"),
        ("scripted:rng,power-state=-1", "-1"),
        ("scripted:rng,status-or=0x100", "0x100"),
        ("scripted:rng,reset-reads=-2", "-2"),
        ("scripted:rng,reset-seconds=nan", "nan"),
        ("scripted:rng,queue-size=0:65536", "0:65536"),
        ("scripted:rng,at-most=-5", "-5"),
        ("scripted:blk,status=256", "256"),
        ("scripted:blk,written=-1", "-1"),
        ("scripted:mem,answer=65536", "65536"),
        ("scripted:input,size=256", "256"),
        ("scripted:input,stuck=-1:300", "-1:300"),
        # What this transport has not.
        ("scripted:rng,memory-off,transport=mmio", "mmio"),
        ("scripted:rng,transport=mmio,vectors=3", "mmio"),
        ("scripted:rng,transport=legacy,packed", "legacy"),
        ("scripted:rng,transport=mmio-legacy,refuse-features", "mmio-legacy"),
    ],
)
def test_what_cannot_be_is_refused(address: str, seen: str) -> None:
    with pytest.raises(BadAddress) as caught:
        opening.open(address)
    assert caught.value.seen == seen
    assert caught.value.expected


@pytest.mark.parametrize("lie", [-1, 1, (1 << 63) - 1, -(1 << 63)])
def test_a_size_that_is_off_by_anything_is_still_a_field(lie: int) -> None:
    with opening.open(f"scripted:mem,size-lie={lie}") as device, uvirtio.Mem(device) as mem:
        mem.state(mem.config().addr, 1)
        low, high = (device.transport.read_config(at, 4) for at in (40, 44))
        assert low | high << 32 == lie % (1 << 64)


def test_a_bit_that_is_refused_only_with_another() -> None:
    both = "scripted:rng,refuse-with=EVENT_IDX+INDIRECT_DESC"
    with opening.open(both) as device, pytest.raises(FeaturesRefused):
        uvirtio.Rng(device)
    with opening.open(f"{both},features={f.mask(f.VERSION_1, f.EVENT_IDX):#x}") as device:
        assert len(uvirtio.Rng(device).read(4)) == 4


def test_a_bit_that_breaks_the_data_path() -> None:
    with opening.open("scripted:rng,silent-with=EVENT_IDX", timeout=0.05) as device:
        rng = uvirtio.Rng(device)
        with pytest.raises(DeviceTimeout):
            rng.read(4)
