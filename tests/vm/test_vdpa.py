"""vhost-vdpa on a stock kernel: VDUSE's block device, driven by bare virtqueues; its file is the witness."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import uvirtio
from tests.vm import vduse
from tests.vm.vduse import Disk
from uvirtio.backends.vhost_vdpa import VhostVdpaNode, uapi
from uvirtio.device import Device, QueueSpec
from uvirtio.drivers.base import runs, transact
from uvirtio.errors import Busy, OperationFailed
from uvirtio.memory.seams import InterruptMode
from uvirtio.spec import blk
from uvirtio.spec import features as f

pytestmark = pytest.mark.skipif(
    os.environ.get("UVIRTIO_LAB_MACHINE", "vdpa") != "vdpa", reason="the machine vdpa is for this"
)

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
    vduse.hand_over(disk, "vhost_vdpa")
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
                assert device.interrupts_taken == 0
            else:
                device.wait(lambda: device.interrupts_taken > 0, timeout=5, what="an interrupt")
            device.stop()
            assert device.transport.status() == 0
