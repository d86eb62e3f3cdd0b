"""The vhost-vdpa back end against a kernel that is played: every verb, its errors, the order, and memory."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.fakes.played_vdpa import ENOTSUPP, FD, Played
from uvirtio.backends.vhost_vdpa import VhostVdpaNode, memory, names, uapi
from uvirtio.errors import (
    Busy,
    Closed,
    DeviceGone,
    HugePagesLack,
    MemlockExceeded,
    Misuse,
    NoIommu,
    NoSuchDevice,
    NotBound,
    NotSupported,
    OperationFailed,
    PermissionLack,
)
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.host.pages import HUGE_PAGE
from uvirtio.spec import features as f


@pytest.fixture
def played(tmp_path):
    return Played(tmp_path, config=bytes(range(16)), queues=2)


def opened(played: Played) -> VhostVdpaNode:
    return VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)


# --- opening ------------------------------------------------------------------------------------------------


def test_opening_owns_first_and_agrees_on_what_is_wanted(played):
    with opened(played) as node:
        assert played.log == [
            "VHOST_SET_OWNER",
            "VHOST_GET_BACKEND_FEATURES",
            "VHOST_SET_BACKEND_FEATURES",
        ]
        # Version 2, batches, suspend and resume; neither address spaces nor late enabling, though offered.
        assert played.backend_taken == node.backend_features == 0b110110
        assert node.address == "/dev/vhost-vdpa-0"
        assert node.description == "vhost-vdpa, vdpa0 of vdpa0"
        assert node.kind == ""  # as of a simulator
    assert played.closed == 1
    node.close()
    assert played.closed == 1


def test_the_node_may_be_named_as_well(played):
    with VhostVdpaNode.open("/dev/vhost-vdpa-0", played.roots, kernel=played.kernel) as node:
        assert node.name == "vdpa0"


def test_who_is_not_bound_is_not_opened(played):
    (played.roots.sys / "bus/vdpa/devices/vdpa0/driver").unlink()
    with pytest.raises(NotBound) as caught:
        opened(played)
    assert caught.value.seen == "no driver"
    assert "uvirtio bind vdpa:vdpa0" in caught.value.remedy
    for address in ("vdpa:other", "/dev/vhost-vdpa-7", "vdpa:../../etc", "vdpa:..", "vdpa:"):
        with pytest.raises(NoSuchDevice):
            VhostVdpaNode.open(address, played.roots, kernel=played.kernel)
    assert not played.opened


@pytest.mark.parametrize(
    ("number", "error", "word"),
    [
        (errno.EBUSY, Busy, "EBUSY"),
        (errno.EACCES, PermissionLack, "EACCES"),
        (errno.EPERM, PermissionLack, "EPERM"),
        (ENOTSUPP, NoIommu, "ENOTSUPP"),
        (errno.ENODEV, NoIommu, "ENODEV"),
        (errno.ENOENT, NoSuchDevice, "ENOENT"),
        (errno.EIO, DeviceGone, "EIO"),
        (errno.EMFILE, OperationFailed, "EMFILE"),
    ],
)
def test_a_node_that_cannot_be_opened(played, number, error, word):
    played.open_errno = number
    with pytest.raises(error) as caught:
        opened(played)
    assert word in caught.value.seen
    assert not played.closed


def test_a_busy_node_names_its_holder(played):
    holder = played.roots.proc / "4242"
    (holder / "fd").mkdir(parents=True)
    (holder / "fd/3").symlink_to(played.roots.dev / "vhost-vdpa-0")
    (holder / "comm").write_text("qemu\n")
    played.open_errno = errno.EBUSY
    with pytest.raises(Busy) as caught:
        opened(played)
    assert "4242 (qemu)" in caught.value.seen


def test_a_node_with_another_owner_is_busy_and_closed_again(played):
    played.owned = True
    with pytest.raises(Busy):
        opened(played)
    assert played.closed == 1


# --- verbs --------------------------------------------------------------------------------------------------


def test_what_is_read(played):
    with opened(played) as node:
        assert node.get_device_id() == 4
        assert node.get_vqs_count() == 2
        assert node.get_vring_num() == 256
        assert node.get_vring_size(1) is None  # a kernel before 6.9
        played.sizes = {0: 8, 1: 0}
        assert [node.get_vring_size(0), node.get_vring_size(1)] == [8, 0]
        assert node.get_config_size() == 16
        assert node.get_config(4, 3) == bytes([4, 5, 6])
        assert node.get_iova_range() == (0, (1 << 64) - 1)
        assert node.get_features() == f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
        played.status = 15
        assert node.get_status() == 15


def test_what_is_written(played):
    with opened(played) as node:
        node.set_status(3)
        node.set_features(1 << 33)
        node.set_config(2, b"\xaa\xbb")
        node.set_vring_num(1, 64)
        node.set_vring_base(1, 5)
        node.set_vring_addr(1, desc=0x1000, avail=0x2002, used=0x3004)
        node.set_vring_kick(1, 11)
        node.set_vring_call(1, 12)
        node.set_config_call(13)
        queue = played.queues[1]
        assert (played.status, played.taken, played.config[2:4]) == (3, 1 << 33, b"\xaa\xbb")
        assert (queue.num, queue.base, queue.addresses) == (64, 5, (0x1000, 0x2002, 0x3004))
        assert (queue.kick, queue.call, played.config_call) == (11, 12, 13)
        queue.call = -1
        node.set_vring_enable(1, True)
        assert queue.enabled
        node.set_vring_enable(1, False)
        assert not queue.enabled
        assert node.get_vring_base(1) == 0
        node.suspend()
        assert played.suspended
        node.resume()
        assert not played.suspended


@pytest.mark.spec("FEAT-03")
def test_128_feature_bits_where_the_kernel_has_words_for_them(played):
    def get(buffer):
        buffer[8:24] = (1 << 33).to_bytes(8, "little") + (1 << 1).to_bytes(8, "little")
        return 0

    written = []
    played._get_features_array = get
    played._set_features_array = lambda buffer: written.append(bytes(buffer))
    with opened(played) as node:
        assert node.get_features() == 1 << 33 | 1 << 65
        node.set_features(1 << 33 | 1 << 65)
        assert written == [b"".join(word.to_bytes(8, "little") for word in (2, 1 << 33, 1 << 1))]
        node.set_features(1 << 33)
        assert played.taken == 1 << 33


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.ENOBUFS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_64_feature_bits_whatever_an_older_kernel_says_to_the_array(played, number):
    played.refuse["VHOST_GET_FEATURES_ARRAY"] = number
    with opened(played) as node:
        assert node.get_features() == played.features


@pytest.mark.parametrize("missing", [uapi.VHOST_BACKEND_F_SUSPEND, uapi.VHOST_BACKEND_F_RESUME])
def test_what_is_not_offered_is_not_asked_for(played, missing):
    played.backend_offered &= ~(1 << missing)
    with opened(played) as node:
        before = len(played.log)
        with pytest.raises(NotSupported):
            node.suspend() if missing == uapi.VHOST_BACKEND_F_SUSPEND else node.resume()
        assert len(played.log) == before


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EPERM, PermissionLack),
        (errno.EOPNOTSUPP, NotSupported),
        (ENOTSUPP, NotSupported),
        (errno.ENOTTY, NotSupported),
        (errno.EINVAL, OperationFailed),
        (errno.EBUSY, OperationFailed),
        (errno.ENOBUFS, OperationFailed),
        (errno.ENODEV, DeviceGone),
        (errno.EIO, DeviceGone),
    ],
)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("VHOST_VDPA_GET_STATUS", lambda node: node.get_status()),
        ("VHOST_VDPA_SET_STATUS", lambda node: node.set_status(0)),
        ("VHOST_SET_FEATURES", lambda node: node.set_features(0)),
        ("VHOST_VDPA_GET_CONFIG", lambda node: node.get_config(0, 4)),
        ("VHOST_SET_VRING_ADDR", lambda node: node.set_vring_addr(0, 0, 0, 0)),
        ("VHOST_VDPA_SET_VRING_ENABLE", lambda node: node.set_vring_enable(0, True)),
        ("VHOST_VDPA_SET_CONFIG_CALL", lambda node: node.set_config_call(-1)),
        ("VHOST_VDPA_GET_IOVA_RANGE", lambda node: node.get_iova_range()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_ioctl_that_fails(played, name, call, number, error):
    with opened(played) as node:
        played.refuse[name] = number
        with pytest.raises(error) as caught:
            call(node)
        assert name in caught.value.message
        assert caught.value.seen


def test_nothing_is_asked_of_a_closed_node(played):
    node = opened(played)
    node.close()
    asked = len(played.log)
    for call in (node.get_status, node.get_features, lambda: node.iotlb_update(0, PAGE, 0)):
        with pytest.raises(Closed):
            call()
    assert len(played.log) == asked


# --- who is behind it ---------------------------------------------------------------------------------------


def parent(played: Played, config: bytes) -> None:
    """Put the device below a PCI function that vp-vdpa holds."""
    link = played.roots.sys / "bus/vdpa/devices/vdpa0"
    function = played.roots.sys / "devices/pci0000:00/0000:03:00.0"
    (played.roots.sys / "bus/pci/drivers/vp-vdpa").mkdir(parents=True)
    function.mkdir(parents=True)
    (function / "config").write_bytes(config)
    (function / "driver").symlink_to(played.roots.sys / "bus/pci/drivers/vp-vdpa")
    link.resolve().rename(function / "vdpa0")
    link.unlink()
    link.symlink_to(function / "vdpa0")


def config_space(*capabilities: tuple[int, bytes]) -> bytes:
    config = bytearray(256)
    config[0x06] = 0x10 if capabilities else 0
    at, before = 0x40, 0x34
    for kind, body in capabilities:
        config[before] = at
        config[at] = kind
        config[at + 2 : at + 2 + len(body)] = body
        before, at = at + 1, at + 0x20
    return bytes(config)


def test_vp_vdpa_has_as_many_calls_as_vectors(played):
    parent(played, config_space((9, b""), (0x11, (2).to_bytes(2, "little"))))
    assert names.calls_of("vdpa0", played.roots) == 3
    with opened(played) as node:
        assert node.calls == 3
        assert node.description == "vhost-vdpa, vdpa0 of 0000:03:00.0 (vp-vdpa)"
        assert node.kind == "vp-vdpa"


def test_vp_vdpa_without_msix_has_none(played):
    parent(played, config_space((9, b"")))
    assert names.calls_of("vdpa0", played.roots) == 0


def test_an_ordinary_user_sees_no_capabilities_and_so_does_not_know(played):
    parent(played, config_space((0x11, b""))[:0x40])
    assert names.calls_of("vdpa0", played.roots) is None


def test_a_circle_of_capabilities_ends(played):
    config = bytearray(config_space((9, b"")))
    config[0x41] = 0x40
    parent(played, bytes(config))
    assert names.calls_of("vdpa0", played.roots) == 0


def test_no_capability_but_its_head_is_read(played, monkeypatch):
    parent(played, config_space((9, b"x" * 20), (0x11, (2).to_bytes(2, "little"))))
    read = []
    pread = os.pread
    monkeypatch.setattr(names.os, "pread", lambda fd, n, at: (read.append((at, n)), pread(fd, n, at))[1])
    names.calls_of("vdpa0", played.roots)
    # 4.1.4.9: the data of a pci_cfg capability is a window into a BAR.
    assert all(not 0x42 <= at + n - 1 < 0x60 for at, n in read)


# --- maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_messages_of_both_versions(tmp_path, version):
    played = Played(tmp_path, backend_features=0b10 if version == 2 else 0)
    with opened(played) as node:
        node.iotlb_update(0x4000, PAGE, 0x7000_0000)
        assert played.maps == {0x4000: (0x7000_0000, PAGE)}
        assert played.messages == [(uapi.VHOST_IOTLB_UPDATE, 0x4000, PAGE, uapi.VHOST_ACCESS_RW)]
        with node.batch():  # not offered: nothing is said
            node.iotlb_invalidate(0x4000, PAGE)
        assert played.maps == {}
        assert [kind for kind, *_ in played.messages] == [2, 3]


def test_a_batch_is_ended_whatever_happens_in_it(played):
    with opened(played) as node:
        with pytest.raises(ZeroDivisionError), node.batch():
            with node.batch():  # one in another is the same
                node.iotlb_update(0x4000, PAGE, 0x7000_0000)
            raise ZeroDivisionError
        assert [kind for kind, *_ in played.messages] == [5, 2, 6]
        assert played.batch == 0


def test_a_message_that_is_refused_or_cut(played):
    with opened(played) as node:
        with pytest.raises(OperationFailed) as caught:
            node.iotlb_update(0x4000, 0, 0)
        assert "EFAULT" in caught.value.seen
    cut = Played(played.roots.sys.parent / "second")
    cut.kernel = type(cut.kernel)(ioctl=cut.ioctl, open=cut.open, close=cut.close, write=lambda fd, data: 8)
    with opened(cut) as node, pytest.raises(OperationFailed):
        node.iotlb_update(0x4000, PAGE, 0)


# --- memory -------------------------------------------------------------------------------------------------


def test_memory_is_a_shared_mapping_and_one_run(played):
    with opened(played) as node, node.dma(True) as space:
        block = space.alloc(PAGE + 1)
        assert (block.size, block.contiguous, space.translated) == (2 * PAGE, True, True)
        ((iova, length),) = block.segments(0, block.size)
        assert length == 2 * PAGE
        assert block.segments(100, 50) == [(iova + 100, 50)]
        assert block.segments(5, 0) == []
        for bad in ((0, 2 * PAGE + 1), (-1, 4), (2 * PAGE, 1)):
            with pytest.raises(Misuse):
                block.segments(*bad)
        assert bytes(block.view) == bytes(2 * PAGE)
        block.view[7] = 99
        assert played.load(iova + 7, 1) == b"c"
        vaddr = played.maps[iova][0]
        line = next(
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if int(line.split("-")[0], 16) <= vaddr < int(line.split("-")[1].split()[0], 16)
        )
        assert "uvirtio-vdpa" in line  # what VDUSE silently passes over is anonymous memory
        assert line.split()[1] == "rw-s"
        block.close()
        block.close()
        assert played.maps == {}
        with pytest.raises(Closed):
            block.segments(0, 1)
        with pytest.raises(Closed):
            block.pfns()


def test_addresses_are_given_back_and_never_zero_nor_where_interrupts_go(tmp_path):
    played = Played(tmp_path, iova=(0, 0xFEE0_0000 + (2 << 20)))
    with opened(played) as node, node.dma(True) as space:
        first = space.alloc(PAGE)
        assert first.address == PAGE
        first.close()
        second = space.alloc(PAGE)
        assert second.address == PAGE
    with (
        opened(Played(tmp_path / "two", iova=(0xFEE0_0000 - PAGE, 0xFEF0_0000 + PAGE - 1))) as node,
        node.dma(True) as space,
    ):
        assert {space.alloc(PAGE).address, space.alloc(PAGE).address} == {0xFEE0_0000 - PAGE, 0xFEF0_0000}
        with pytest.raises(OperationFailed):
            space.alloc(PAGE)


@pytest.mark.parametrize("range_", [(0, 0), (0, PAGE - 1), (5, 6)])
def test_a_range_that_is_too_small_is_an_error_of_the_operation(tmp_path, range_):
    played = Played(tmp_path, iova=range_)
    with opened(played) as node, node.dma(True) as space, pytest.raises(OperationFailed):
        space.alloc(1)
    assert played.messages == []


def test_there_are_no_physical_addresses_here(played):
    with opened(played) as node, pytest.raises(NotSupported) as caught:
        node.dma(False)
    assert "ACCESS_PLATFORM" in caught.value.message
    assert "iommu_platform=on" in caught.value.remedy


def test_a_map_that_is_refused_gives_everything_back(played):
    with opened(played) as node, node.dma(True) as space:
        played.refuse["iotlb 2"] = errno.EFAULT
        with pytest.raises(OperationFailed):
            space.alloc(PAGE)
        played.refuse.clear()
        assert space.alloc(PAGE).address == PAGE


def test_memlock_is_named_where_it_is_the_reason(played, monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (PAGE, PAGE))
    played.refuse["iotlb 2"] = errno.EFAULT
    with opened(played) as node, node.dma(True) as space:
        with pytest.raises(OperationFailed) as failed:
            space.alloc(PAGE)
        assert not isinstance(failed.value, MemlockExceeded)
        played.pinned = PAGE
        with pytest.raises(MemlockExceeded) as caught:
            space.alloc(PAGE)
        assert f"--memlock={2 * PAGE}" in caught.value.remedy
        monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
        with pytest.raises(OperationFailed):
            space.alloc(PAGE)


def test_balloon_pages_are_anonymous_where_maps_pin(tmp_path):
    played = Played(tmp_path, pins=True)
    with opened(played) as node, node.dma(True) as space:
        block = space.pin(3 * PAGE)
        assert isinstance(block, memory.VdpaBlock)
        assert played.pinned == 3 * PAGE
        block.close()
        assert played.pinned == 0


def test_balloon_pages_may_be_huge_ones_which_make_few_runs(tmp_path):
    with opened(Played(tmp_path, pins=True)) as node, node.dma(True) as space:
        assert space.pin(HUGE_PAGE + PAGE).vaddr % HUGE_PAGE == 0


@pytest.mark.parametrize("refused", [False, True])
def test_without_a_map_that_pins_only_huge_pages_stay(played, monkeypatch, refused):
    """Where the maps pin nothing, and where the kernel refuses the map: scattered pages are too many entries."""
    asked = []
    if refused:
        played.refuse["iotlb 2"] = errno.EFAULT

    class Huge:
        def __init__(self, roots, *, translated, pagemap):
            assert translated and pagemap is space._pagemap  # one that may be open, with rights that are gone

        def pin(self, size):
            asked.append(size)
            raise HugePagesLack("none", seen=0)

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(memory, "PhysicalDmaSpace", Huge)
    with opened(played) as node:
        with node.dma(True) as space, pytest.raises(HugePagesLack) as lack:
            space.pin(PAGE + 1)
        assert isinstance(lack.value.__cause__, OperationFailed) == refused
        assert asked == [2 * PAGE, "closed"]
        assert played.maps == {}  # what was tried first is gone


def test_closing_the_space_takes_every_block_from_the_device_first(played):
    with opened(played) as node:
        space = node.dma(True)
        blocks = [space.alloc(PAGE) for _ in range(3)]
        held = blocks[1].view[:4]
        with pytest.raises(BufferError):
            space.close()
        assert played.maps == {}
        held.release()
        space.close()
        with pytest.raises(Closed):
            space.alloc(1)
        for block in blocks:
            with pytest.raises(ValueError):
                block.view[0]


def test_a_closed_node_frees_what_is_left_without_a_word(played):
    node = opened(played)
    space = node.dma(True)
    block, held = space.alloc(PAGE), space.alloc(PAGE)
    view = held.view[:4]
    said = len(played.messages)
    node.close()
    assert len(played.messages) == said
    assert played.closed == 1
    with pytest.raises(ValueError):
        block.view[0]
    view[0] = 1  # a caller still has this one: it goes with the last view
    view.release()


def test_the_descriptor_is_the_one_that_was_opened(played):
    with opened(played) as node:
        assert node.fd == FD
    with pytest.raises(Closed):
        _ = node.fd
