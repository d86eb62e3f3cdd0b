"""The SCSI host driver on QEMU's disks and drives: many units, a CD, large blocks, lost events; commands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.test_cli import Command
from uvirtio.drivers.scsi import Lun, Scsi
from uvirtio.drivers.scsi.events import BUFFERS
from uvirtio.errors import ScsiCheck
from uvirtio.opening import identify
from uvirtio.qemu import Machine

KIB = 1 << 10


def null(name: str, *more: str) -> list[str]:
    """A drive of zeroes."""
    return ["-drive", ",".join([f"if=none,id={name},driver=null-co,size=1M,read-zeroes=on", *more])]


def test_units_of_many_kinds() -> None:
    arguments = [
        *null("h0"),
        *null("h1", "readonly=on"),
        *null("h2"),
        *("-device", "scsi-hd,bus=s0.0,drive=h0,scsi-id=0,lun=5,serial=uv5,wwn=0x5000c50012345678"),
        *("-device", "scsi-hd,bus=s0.0,drive=h1,scsi-id=7,lun=300"),
        *(
            "-device",
            "scsi-hd,bus=s0.0,drive=h2,scsi-id=255,lun=0,logical_block_size=4096,physical_block_size=4096",
        ),
        *("-device", "scsi-cd,bus=s0.0,scsi-id=3,lun=0"),
    ]
    with (
        Machine("q35", ["virtio-scsi-pci,id=s0"], arguments=arguments) as machine,
        machine.open(0) as device,
        Scsi(device, allow_write=True) as scsi,
    ):
        assert [f"{unit.lun} {unit.inquiry.type_name}" for unit in scsi.scan()] == [
            "0:5 disk",
            "3:0 CD/DVD",
            "7:300 disk",
            "255:0 disk",
        ]
        assert scsi.serial(Lun(0, 5)) == "uv5"
        assert "5000c50012345678" in [name.text for name in scsi.identifications(Lun(0, 5))]
        assert not scsi.inquiry(Lun(0, 0)).present  # though REPORT LUNS names it
        with pytest.raises(ScsiCheck, match="medium not present") as empty:
            scsi.capacity(Lun(3))
        assert empty.value.key == 2
        assert scsi.mode(Lun(7, 300)).write_protected
        with pytest.raises(ScsiCheck, match="write protected"):
            scsi.write(Lun(7, 300), 0, bytes(512))
        large = scsi.capacity(Lun(255))
        assert (large.blocks, large.block_size) == (256, 4096)
        scsi.write(Lun(255), 255, b"e" * 4096)
        assert scsi.read(Lun(255), 250, 6) == bytes(6 * 4096)
        assert dict(scsi.findings) == {}


@pytest.mark.spec("SCSI-12")
def test_events_that_are_lost_are_told() -> None:
    with Machine("q35", ["virtio-scsi-pci"]) as machine, machine.open(0) as device, Scsi(device) as scsi:
        size = scsi.capacity(Lun(0)).bytes
        for number in range(1, BUFFERS + 3):  # no one looks meanwhile
            machine.qmp("block_resize", device="dev0-disk", size=size + number * (1 << 16))
        found = scsi.events()
        assert len(found) == BUFFERS
        told = scsi.wait_for_event(timeout=10)
        assert told is not None and told.missed and told.rescan and told.lun is None
        assert scsi.capacity(Lun(0)).bytes == size + (BUFFERS + 2) * (1 << 16)


def test_a_disk_is_supplied_also_when_the_device_is_plugged_in(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"i" * KIB + bytes(1 << 20))
    with Machine("pc") as machine:
        machine.plug("virtio-scsi-pci", drive=image)
        with machine.open(0) as device, Scsi(device) as scsi:
            assert scsi.read(Lun(0), 0, 2) == b"i" * KIB
        machine.unplug(0)
        second = machine.plug("virtio-scsi-pci")
        with identify(second.address, second) as device, Scsi(device) as scsi:
            assert scsi.capacity(Lun(0)).bytes == 64 << 20


def test_the_commands(tmp_path: Path) -> None:
    image, data = tmp_path / "image", tmp_path / "data"
    image.write_bytes(bytes(2 << 20))
    data.write_bytes(os.urandom(1 << 20))
    address = f"qemu:q35,file={image}/virtio-scsi-pci"

    def run(verb: str, *rest: str) -> tuple[int, Any]:
        code, out, _ = Command("scsi", verb, address, *rest, "--json").end()
        return code, json.loads(out)

    code, told = run("list")
    assert code == 0 and [(one["lun"], one["capacity_bytes"]) for one in told["units"]] == [("0:0", 2 << 20)]
    code, told = run("write", "0:0", "4K", "--in", str(data), "--allow-write")
    assert code == 0 and told["bytes"] == 1 << 20
    assert image.read_bytes()[4096 : 4096 + (1 << 20)] == data.read_bytes()
    code, told = run("read", "0", "8s", "1K")
    assert code == 0 and told["hex"] == data.read_bytes()[:1024].hex()
    assert run("read", "9:0", "0", "512")[1]["error"]["code"] == "UV-SCSI-TRANSPORT"


def test_diag() -> None:
    code, out, _ = Command("diag", "qemu:virtio-scsi-pci", "--json").end()
    steps = {step["name"]: step for step in json.loads(out.splitlines()[-1])["steps"]}
    assert code == 0
    assert steps["data path"]["verdict"] == "pass" and "131072 blocks" in steps["data path"]["detail"]
    assert steps["configuration change"]["verdict"] == "pass"
    assert "capacity data has changed" in steps["configuration change"]["detail"]
