"""The block driver on QEMU's disks: against a model, read-only, with large blocks, failing, and as a command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.bodies import blk_model
from tests.qemu.test_cli import Command
from uvirtio.drivers.blk import SECTOR_SIZE, Blk
from uvirtio.errors import BlkIoError, DeviceGone, WriteRefused
from uvirtio.opening import identify
from uvirtio.qemu import Machine


@contextmanager
def disk(device: str, *arguments: str, **options: Any) -> Iterator[tuple[Machine, Blk]]:
    with Machine("q35", [device], arguments=arguments) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as opened, Blk(opened, **options) as blk:
            yield machine, blk


def test_a_disk_is_what_the_model_says() -> None:
    with disk("virtio-blk-pci,num-queues=2", allow_write=True, queues=2, depth=8) as (machine, blk):
        fd = machine.files[machine.functions[0].id]

        def look(sector: int, sectors: int) -> bytes:
            return os.pread(fd, sectors * SECTOR_SIZE, sector * SECTOR_SIZE)

        @settings(max_examples=40)
        @given(what=blk_model.acts)
        def check(what: list[blk_model.Act]) -> None:
            blk_model.play(blk, what, look)

        check()


@pytest.mark.spec("BLK-10")
def test_a_read_only_disk() -> None:
    arguments = ("-drive", "if=none,id=ro,driver=null-co,size=1M,read-zeroes=on,readonly=on")
    with disk("virtio-blk-pci,drive=ro", *arguments, allow_write=True) as (_, blk):
        assert blk.read_only
        with pytest.raises(WriteRefused, match="read-only"):
            blk.write(0, bytes(SECTOR_SIZE))
        assert blk.read(0, 2048) == bytes(1 << 20)


def test_large_blocks() -> None:
    with disk("virtio-blk-pci,logical_block_size=4096,physical_block_size=4096") as (_, blk):
        assert blk.config.blk_size == 4096
        assert blk.read(8, 8) == bytes(4096)
        with pytest.raises(BlkIoError) as failure:
            blk.read(1, 1)
        assert "4096" in str(failure.value.remedy)
        assert blk.read(0, 8) == bytes(4096)


@pytest.mark.spec("BLK-22")
def test_a_disk_that_fails_here_and_there(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text('[inject-error]\nevent = "none"\niotype = "read"\nerrno = "5"\nsector = "100"\n')
    arguments = (
        "-drive",
        f"if=none,id=bad,driver=blkdebug,config={rules},"
        "image.driver=null-co,image.size=1M,image.read-zeroes=on,rerror=report",
    )
    with disk("virtio-blk-pci,drive=bad", *arguments) as (_, blk):
        assert blk.read(0, 64) == bytes(64 * SECTOR_SIZE)
        with pytest.raises(BlkIoError):
            blk.read(96, 8)
        assert blk.read(200, 8) == bytes(4096)


def test_a_disk_with_a_burst_is_unplugged() -> None:
    with Machine("q35", [], root_ports=1) as machine:
        function = machine.plug("virtio-blk-pci")
        device = machine.open(function)
        burst = Blk(device).burst(8)
        burst.post(burst.slots[:2], [0, 8])
        burst.wait()
        machine.unplug(function)
        with pytest.raises(DeviceGone):
            device.check()
        device.close()  # its memory is freed, whatever views the burst had


def test_the_commands(tmp_path: Path) -> None:
    where = tmp_path / "disk"
    where.write_bytes(bytes(range(256)) * 4096)

    def run(verb: str, *rest: str) -> tuple[int, Any]:
        command = Command("blk", verb, address, *rest, "--json")
        code, out, _ = command.end()
        return code, json.loads(out)

    address = "qemu:virtio-blk-pci,serial=uv1"  # each command has a disk of its own
    code, told = run("info")
    assert code == 0 and told["id"] == "uv1" and told["sectors"] == 131072 and told["write_cache"] is True
    code, told = run("read", "8s", "1K")
    assert code == 0 and told["offset"] == 4096 and told["bytes"] == 1024 and told["hex"] == "00" * 1024
    assert run("write", "0", "--in", str(where))[1]["error"]["code"] == "UV-REFUSED-WRITE"
    code, told = run("write", "4K", "--in", str(where), "--allow-write")
    assert code == 0 and told["bytes"] == 1 << 20 and told["flushed"] is True
    assert run("discard", "0", "64K")[0] == 3
    assert run("discard", "0", "64K", "--allow-write")[0] == 0
    assert run("flush")[0] == 0
    assert run("read", "64M", "512")[1]["error"]["code"] == "UV-USAGE-BEYOND-END"


def test_diag() -> None:
    code, out, _ = Command("diag", "qemu:virtio-blk-pci", "--json").end()
    steps = {step["name"]: step for step in json.loads(out.splitlines()[-1])["steps"]}
    assert code == 0
    assert steps["data path"]["verdict"] == "pass" and "131072 sectors" in steps["data path"]["detail"]
    assert steps["configuration change"]["verdict"] == "pass"
    assert "133120" in steps["configuration change"]["detail"]
