"""vhost-vdpa on a stock kernel: VDUSE's block device; the file behind it is the witness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.vm import vduse
from tests.vm.commands import PATIENCE, commands
from tests.vm.conforming import conforms
from tests.vm.vduse import Disk
from uvirtio.backends.vhost_vdpa import VhostVdpaNode, uapi
from uvirtio.device import Device, QueueSpec
from uvirtio.drivers.base import runs, transact
from uvirtio.drivers.blk import Blk
from uvirtio.errors import (
    Busy,
    DeviceAbsent,
    HugePagesLack,
    NotBound,
    NotSupported,
    OperationFailed,
    PermissionLack,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import blk
from uvirtio.spec import features as f

MACHINE = "vdpa"
"""Others have no VDUSE, or nothing to do with it."""

PER_QUEUE, POLLING = InterruptMode.PER_QUEUE, InterruptMode.POLLING
SECTOR = blk.SECTOR_SIZE
SIZE = 1 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with vduse.disk("vduse0", tmp_path_factory.mktemp("vduse"), SIZE) as made:
        yield made


@pytest.fixture
def held(disk: Disk) -> Disk:
    """The disk, in the hands of vhost_vdpa."""
    vduse.hand_over(disk.name, "vhost_vdpa")
    return disk


def start(device: Device, queues: int = 1) -> None:
    device.start(wanted=0, queues=[QueueSpec(index, f"requestq{index}") for index in range(queues)])


def request(device: Device, kind: blk.Request, sector: int, data: bytes | int = 0, queue: int = 0) -> bytes:
    """One request of 5.2.6, with a header, data and a status of its own; the data that came back."""
    length = data if isinstance(data, int) else len(data)
    block = device.dma.alloc(16 + length + 1)
    try:
        block.view[:16] = int(kind).to_bytes(8, "little") + sector.to_bytes(8, "little")
        block.view[16 + length] = 0xFF
        out, into = runs(block, 0, 16), runs(block, 16 + length, 1)
        if kind is blk.Request.OUT:
            assert isinstance(data, bytes)
            block.view[16 : 16 + length] = data
            out += runs(block, 16, length)
        else:
            into = runs(block, 16, length) + into
        transact(device, device.queues[queue], out, into, timeout=10, what="a block request")
        assert block.view[16 + length] == 0
        return bytes(block.view[16 : 16 + length])
    finally:
        block.close()


def test_what_the_node_says_of_itself(held):
    with VhostVdpaNode.open(held.address) as node:
        assert node.get_device_id() == blk.TYPE
        assert node.get_status() == 0
        assert node.get_vqs_count() == 2
        assert node.get_vring_num() == 256
        assert node.get_vring_size(0) in (None, 256)
        assert int.from_bytes(node.get_config(0, 8), "little") == SIZE // SECTOR
        assert node.get_config_size() >= blk.CONFIG_MIN_SIZE
        assert node.get_iova_range() == (0, (1 << 64) - 1)
        features = node.get_features()
        assert features >> f.VERSION_1 & features >> f.ACCESS_PLATFORM & 1
        # The daemon serves split rings alone, and has no option for more. docs/vdpa.md says so.
        assert not features & f.mask(f.RING_PACKED, f.IN_ORDER)
        assert node.backend_has(uapi.VHOST_BACKEND_F_IOTLB_MSG_V2)
        assert node.backend_has(uapi.VHOST_BACKEND_F_IOTLB_BATCH)
        with pytest.raises(OperationFailed):
            node.get_config(node.get_config_size(), 4)
        with pytest.raises(OperationFailed):
            node.set_vring_num(0, 3)
        with pytest.raises(OperationFailed):
            node.set_vring_num(7, 8)
        with pytest.raises(Busy):
            node.set_owner()


@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING], ids=lambda mode: mode.value)
def test_what_is_written_is_in_the_file(held, mode):
    with uvirtio.open(held.address, interrupts=[mode]) as device:
        assert device.address == "/dev/vhost-vdpa-0"
        assert device.type == "blk"
        for _ in range(3):  # again and again on the same device
            start(device, 2)
            assert device.transport.interrupt_mode is mode
            assert device.has(f.ACCESS_PLATFORM) and device.dma.translated
            data = os.urandom(4 * SECTOR)
            assert request(device, blk.Request.IN, 5, SECTOR) == held.contents(5 * SECTOR, SECTOR)
            request(device, blk.Request.OUT, 8, data)
            assert held.contents(8 * SECTOR, len(data)) == data
            assert request(device, blk.Request.IN, 8, len(data), queue=1) == data
            if mode is POLLING:
                assert device.counters.interrupts_taken == 0
            else:
                device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")
            device.stop()
            assert device.transport.status() == 0


# --- the driver ---------------------------------------------------------------------------------------------


def test_the_block_driver_works_on_the_file(held):
    with uvirtio.open(held.address) as device, Blk(device, allow_write=True, queues=2, depth=8) as driver:
        assert driver.capacity == SIZE // SECTOR
        assert driver.queue_count == 2
        data = os.urandom(100 * SECTOR)
        driver.write(64, data)
        assert driver.flush()
        assert held.contents(64 * SECTOR, len(data)) == data
        driver.write_zeroes(70, 10)
        expected = data[: 6 * SECTOR] + bytes(10 * SECTOR) + data[16 * SECTOR :]
        assert held.contents(64 * SECTOR, len(data)) == expected
        requests = [(sector, driver.submit_read(sector, 4)) for sector in range(0, 1024, 4)]
        for sector, one in requests:
            assert one.result() == held.contents(sector * SECTOR, 4 * SECTOR)
        assert {one.queue for _, one in requests} == {0, 1}


# --- one owner ----------------------------------------------------------------------------------------------


@pytest.mark.fault(90)
def test_a_node_has_one_process(held):
    with uvirtio.open(held.address) as device:
        with pytest.raises(Busy) as caught:
            uvirtio.open("/dev/vhost-vdpa-0")
        assert str(os.getpid()) in caught.value.seen
        node = device.transport.backend
        child = os.fork()
        if child == 0:
            try:
                node.set_vring_num(0, 8)
            except PermissionLack:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        start(device)
        assert request(device, blk.Request.IN, 0, SECTOR) == held.contents(0, SECTOR)
    with uvirtio.open(held.address):
        pass


def test_what_virtio_vdpa_holds_is_not_opened(disk):
    vduse.hand_over(disk.name, "virtio_vdpa")
    with pytest.raises(NotBound) as caught:
        uvirtio.open(disk.address)
    assert caught.value.seen == "virtio_vdpa"


def test_suspend_is_not_offered_here_and_not_tried(held):
    with VhostVdpaNode.open(held.address) as node, pytest.raises(NotSupported):
        node.suspend()


# --- memory -------------------------------------------------------------------------------------------------

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def test_only_huge_pages_stay_where_nothing_is_pinned(held):
    before = POOL.read_text()
    POOL.write_text("0")
    try:
        with uvirtio.open(held.address) as device:
            start(device)
            with pytest.raises(HugePagesLack):
                device.dma.pin(SIZE)
            POOL.write_text("2")
            block = device.dma.pin(SIZE)
            frames = block.pfns()
            assert frames == list(range(frames[0], frames[0] + SIZE // 4096))
            block.close()
            # What failed has left no map behind that would be in the way of the next.
            assert request(device, blk.Request.IN, 1, SECTOR) == held.contents(SECTOR, SECTOR)
    finally:
        POOL.write_text(before)


# --- the commands -------------------------------------------------------------------------------------------

USER = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "--"]


def command(*words: str, prefix: list[str] | None = None, stdin: bytes = b"") -> dict[str, Any]:
    """What a command prints; root's is forked, one of another user (``prefix``) is the installed program."""
    if prefix is None:
        forked = commands().run(*words, "--json", timeout=PATIENCE)
        code, said, blamed = forked.returncode, forked.stdout, forked.stderr
    else:
        done = subprocess.run(
            [*prefix, "uvirtio", *words, "--json"], capture_output=True, timeout=PATIENCE, input=stdin
        )
        code, said, blamed = done.returncode, done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in said + blamed
    assert code == 0, said + blamed
    return dict(json.loads(said))


def test_bound_by_command_given_to_a_user_and_back_to_the_kernel(disk):
    vduse.hand_over(disk.name, "virtio_vdpa")
    (before,) = (one for one in command("list")["devices"] if one["interface"] == "vdpa")
    assert (before["address"], before["type"], before["kernel_driver"]) == ("vdpa:vduse0", "blk", "virtio_blk")
    (bound,) = command("bind", "vdpa:vduse0", "--owner", "1234:1234")["devices"]
    assert bound["node"] == "/dev/vhost-vdpa-0"
    node = Path(bound["node"])
    assert (node.stat().st_uid, disk.driver) == (1234, "vhost_vdpa")
    # No driver of the kernel's says the type any more; its netlink does, to anybody, and nothing is opened.
    (held,) = (one for one in command("list", prefix=USER)["devices"] if one["interface"] == "vdpa")
    assert (held["address"], held["type"], held["parent"]) == ("/dev/vhost-vdpa-0", "blk", "vduse0")
    report = command("diag", "/dev/vhost-vdpa-0", prefix=USER)
    assert report["verdict"] in ("pass", "warn")
    assert {step["verdict"] for step in report["steps"]} <= {"pass", "warn", "skip"}
    assert next(step for step in report["steps"] if step["name"] == "data path")["verdict"] == "pass"
    data = os.urandom(8 * SECTOR)
    command("blk", "write", "vdpa:vduse0", "8s", "--allow-write", prefix=USER, stdin=data)
    assert disk.contents(8 * SECTOR, len(data)) == data
    checks = {check["name"]: check["verdict"] for check in command("doctor")["checks"]}
    assert checks["vhost-vdpa"] == checks["vhost-vdpa-access"] == "pass"
    (restored,) = command("restore", "--all")["devices"]
    assert (restored["driver"], restored["action"]) == ("virtio_vdpa", "restored")
    assert not node.exists()
    # The kernel's own driver serves the same bytes.
    name = next((vduse.DEVICES / disk.name).glob("virtio*/block/vd*")).name
    with Path("/dev", name).open("rb") as file:
        assert os.pread(file.fileno(), len(data), 8 * SECTOR) == data


# --- against the standard -----------------------------------------------------------------------------------


def test_it_obeys_but_for_what_is_known(held: Disk, record_property: Callable[[str, object], None]) -> None:
    conforms(held.address, None, record_property)


# --- a device that hangs ------------------------------------------------------------------------------------


def test_a_process_behind_the_device_that_stops_is_a_device_that_is_gone(tmp_path):
    with vduse.disk("vduse1", tmp_path) as disk:  # its own: it does not come back
        vduse.hand_over(disk.name, "vhost_vdpa")
        timeout = Path("/sys/class/vduse", disk.name, "msg_timeout")
        assert timeout.read_text().strip() == "30"
        timeout.write_text("1")
        with uvirtio.open(disk.address, timeout=3) as device:
            start(device)
            assert request(device, blk.Request.IN, 0, SECTOR) == disk.contents(0, SECTOR)
            disk.signal(signal.SIGSTOP)
            try:
                with pytest.raises(DeviceAbsent):
                    device.reset()
            finally:
                disk.signal(signal.SIGCONT)
        with pytest.raises(DeviceAbsent):
            uvirtio.open(disk.address)
