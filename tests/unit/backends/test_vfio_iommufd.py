"""iommufd and VFIO's character devices against a kernel that is played; and which way is taken."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path

import pytest

from tests.unit.backends.test_vfio_binding import (
    BDF,
    Played,
    function,
    roots,  # noqa: F401  # a fixture
    virtual_function,
)
from uvirtio.backends.vfio import iommufd as api
from uvirtio.backends.vfio import uapi, ways
from uvirtio.backends.vfio.iommufd import Ioas, cdev_of, open_cdev
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.errors import (
    Busy,
    Closed,
    DeviceGone,
    MemlockExceeded,
    ModuleLack,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UnsafeDma,
)
from uvirtio.host.syscalls import Kernel

HEADER = Path("/usr/include/linux/iommufd.h")

SIZES = {
    api.iommu_ioas_alloc: 12,
    api.iommu_iova_range: 16,
    api.iommu_ioas_iova_ranges: 32,
    api.iommu_ioas_map: 40,
    api.iommu_ioas_unmap: 24,
    api.vfio_device_bind_iommufd: 24,
    api.vfio_device_attach_iommufd_pt: 12,
}


def test_structures_have_the_sizes_of_the_kernels():
    assert {layout: ctypes.sizeof(layout) for layout in SIZES} == SIZES
    assert api.iommu_ioas_map.user_va.offset == 16
    assert api.iommu_ioas_unmap.iova.offset == 8
    assert api.iommu_ioas_iova_ranges.allowed_iovas.offset == 16


def test_numbers():
    assert (api.IOMMU_DESTROY, api.IOMMU_IOAS_ALLOC, api.IOMMU_IOAS_IOVA_RANGES) == (0x3B80, 0x3B81, 0x3B84)
    assert (api.IOMMU_IOAS_MAP, api.IOMMU_IOAS_UNMAP) == (0x3B85, 0x3B86)
    assert (api.VFIO_DEVICE_BIND_IOMMUFD, api.VFIO_DEVICE_ATTACH_IOMMUFD_PT) == (0x3B76, 0x3B77)


@pytest.mark.skipif(not HEADER.is_file(), reason="no <linux/iommufd.h> here (Linux 6.2)")
def test_numbers_against_the_header():
    text = HEADER.read_text()
    for name in ("IOAS_ALLOC", "IOAS_IOVA_RANGES", "IOAS_MAP", "IOAS_UNMAP"):
        found = re.search(rf"IOMMUFD_CMD_{name} = (0x\w+)", text)
        assert found is not None
        assert getattr(api, f"IOMMU_{name}") == 0x3B00 | int(found[1], 16)


class Iommufd(Played):
    """The played kernel, with iommufd's numbers."""

    def __init__(self, **answers):
        super().__init__()
        self.answers = {getattr(api, name): answer for name, answer in answers.items()}


def allocated(argument) -> int:
    assert argument.size == 12 and argument.flags == 0
    argument.out_ioas_id = 77
    return 0


@pytest.fixture
def space(roots):  # noqa: F811
    def make(**answers):
        played = Iommufd(IOMMU_IOAS_ALLOC=allocated, **answers)
        return Ioas.open(roots, kernel=played.kernel), played

    return make


def test_a_space_is_allocated_and_closed_once(space):
    ioas, played = space()
    assert ioas.id == 77
    ioas.close()
    ioas.close()
    assert played.closed == [1000]
    with pytest.raises(Closed):
        ioas.map(0, 0, 4096)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOENT, ModuleLack), (errno.ENODEV, ModuleLack), (errno.EACCES, PermissionLack)],
)
def test_opening_iommufd_fails(roots, number, error):  # noqa: F811
    played = Iommufd()
    played.open_errno = number
    with pytest.raises(error) as caught:
        Ioas.open(roots, kernel=played.kernel)
    assert "--backend vfio-group" in caught.value.remedy


def test_a_space_that_cannot_be_made_is_closed(roots):  # noqa: F811
    played = Iommufd(IOMMU_IOAS_ALLOC=-errno.ENOMEM)
    with pytest.raises(OperationFailed):
        Ioas.open(roots, kernel=played.kernel)
    assert played.closed == [1000]


def ranges_of(*wanted):
    def answer(argument) -> int:
        room, argument.num_iovas = argument.num_iovas, len(wanted)
        found = (api.iommu_iova_range * room).from_address(argument.allowed_iovas)
        for place, (start, last) in zip(found, wanted, strict=False):
            place.start, place.last = start, last
        argument.out_iova_alignment = 4096
        return 0 if len(wanted) <= room else -errno.EMSGSIZE

    return answer


@pytest.mark.parametrize("count", [1, 32, 40])
def test_ranges_are_asked_for_again_with_room_for_all(space, count):
    wanted = [(index << 30, (index << 30) + 0xFFFF) for index in range(count)]
    ioas, played = space(IOMMU_IOAS_IOVA_RANGES=ranges_of(*wanted))
    info = ioas.iommu_info()
    assert info.ranges == tuple(wanted)
    assert (info.page_sizes, info.dma_avail) == (4096, None)
    assert len(played.asked) == (2 if count <= 32 else 3)


def test_ranges_without_end_are_refused(space):
    ioas, _ = space(IOMMU_IOAS_IOVA_RANGES=ranges_of(*[(0, 1)] * 5000))
    with pytest.raises(OperationFailed):
        ioas.iommu_info()


def test_a_map_says_where_and_what_the_device_may(space):
    seen = []

    def note(argument) -> int:
        seen.append((argument.flags, argument.ioas_id, argument.user_va, argument.length, argument.iova))
        return 0

    ioas, _ = space(IOMMU_IOAS_MAP=note)
    ioas.map(0x7000, 0x1000, 0x2000)
    ioas.map(0x7000, 0x1000, 0x2000, write=False)
    assert seen == [(7, 77, 0x7000, 0x2000, 0x1000), (5, 77, 0x7000, 0x2000, 0x1000)]


def test_a_map_beyond_the_memory_limit(space, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    ioas, _ = space(IOMMU_IOAS_MAP=-errno.ENOMEM)
    with pytest.raises(MemlockExceeded):
        ioas.map(0, 0, 1 << 21)


def test_what_iommufd_pinned_counts_against_the_limit(space, roots, monkeypatch):  # noqa: F811
    import resource

    (roots.proc / "self/status").write_text("VmLck:\t0 kB\nVmPin:\t900 kB\nCapEff:\t0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    ioas, _ = space(IOMMU_IOAS_MAP=-errno.ENOMEM)
    with pytest.raises(MemlockExceeded) as caught:
        ioas.map(0, 0, 1 << 18)
    assert str((900 << 10) + (1 << 18)) in caught.value.remedy


def test_an_unmap_takes_exactly_what_was_asked(space):
    def half(argument) -> int:
        argument.length //= 2
        return 0

    ioas, _ = space(IOMMU_IOAS_UNMAP=0)
    ioas.unmap(0x1000, 0x2000)
    ioas, _ = space(IOMMU_IOAS_UNMAP=half)
    with pytest.raises(OperationFailed):
        ioas.unmap(0x1000, 0x2000)
    ioas, _ = space(IOMMU_IOAS_UNMAP=-errno.ENOENT)
    with pytest.raises(OperationFailed):
        ioas.unmap(0x1000, 0x2000)


# --- the character device ------------------------------------------------------------------------------------


def with_cdev(roots, **how):  # noqa: F811
    device = function(roots, **how)
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    (roots.dev / "vfio/devices").mkdir()
    (roots.dev / "vfio/devices/vfio3").touch()
    (roots.dev / "iommu").touch()
    return roots.dev / "vfio/devices/vfio3"


def test_the_character_device_of_a_function(roots):  # noqa: F811
    assert cdev_of(BDF, roots) is None
    path = with_cdev(roots)
    assert cdev_of(BDF, roots) == path
    path.unlink()
    assert cdev_of(BDF, roots) is None


def test_a_device_is_bound_and_attached(space, roots):  # noqa: F811
    seen = []
    ioas, played = space(
        VFIO_DEVICE_BIND_IOMMUFD=lambda argument: seen.append(("bind", argument.argsz, argument.iommufd)) or 0,
        VFIO_DEVICE_ATTACH_IOMMUFD_PT=lambda argument: seen.append(("attach", argument.pt_id)) or 0,
    )
    assert open_cdev(Path("/dev/vfio/devices/vfio3"), ioas, roots, kernel=played.kernel) == 1000
    assert seen == [("bind", 16, 1000), ("attach", 77)]
    assert played.closed == []


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EBUSY, Busy),
        (errno.ENOTTY, NotSupported),
        (errno.EINVAL, NotSupported),
        (errno.ENODEV, DeviceGone),
        (errno.ENOMEM, OperationFailed),
    ],
)
@pytest.mark.parametrize("step", ["VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"])
def test_binding_fails_and_leaves_nothing_open(space, roots, number, error, step):  # noqa: F811
    ioas, played = space(**{step: -number})
    with pytest.raises(error):
        open_cdev(Path("/dev/vfio/devices/vfio3"), ioas, roots, kernel=played.kernel)
    assert played.closed == [1000]


def test_a_node_that_another_process_has_bound(space, roots):  # noqa: F811
    path = with_cdev(roots)
    (roots.proc / "4242/fd").mkdir(parents=True)
    (roots.proc / "4242/fd/3").symlink_to(path)
    (roots.proc / "4242/comm").write_text("other\n")
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=-errno.EINVAL)
    with pytest.raises(Busy) as caught:
        open_cdev(path, ioas, roots, kernel=played.kernel)
    assert "4242 (other)" in caught.value.seen


@pytest.mark.parametrize("held", ["7", "devices/vfio4"])
def test_a_node_whose_group_another_process_has(space, roots, held):  # noqa: F811
    """EBUSY names no node: the group's is open, or by its own another function of the group."""
    path = with_cdev(roots)
    mate = function(roots, "0000:03:00.1", driver="mlx5_vfio_pci")
    (mate / "vfio-dev/vfio4").mkdir(parents=True)
    (mate / "vfio-dev/vfio4/dev").write_text("511:4\n")
    (roots.proc / "4242/fd").mkdir(parents=True)
    (roots.proc / "4242/fd/3").symlink_to(roots.dev / "vfio" / held)
    (roots.proc / "4242/comm").write_text("other\n")
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=-errno.EBUSY)
    with pytest.raises(Busy) as caught:
        open_cdev(path, ioas, roots, kernel=played.kernel, address=BDF)
    assert "4242 (other)" in caught.value.seen


def test_a_node_that_may_not_be_opened(space, roots):  # noqa: F811
    ioas, played = space()
    played.open_errno = errno.EACCES
    with pytest.raises(PermissionLack):
        open_cdev(Path("/dev/vfio/devices/vfio3"), ioas, roots, kernel=played.kernel)


@pytest.mark.parametrize("groups", [False, True])
def test_the_group_is_a_remedy_only_where_there_are_groups(space, roots, groups):  # noqa: F811
    """Without CONFIG_VFIO_GROUP there is no /dev/vfio/vfio, and a node for each function alone."""
    path = with_cdev(roots)
    if groups:
        (roots.dev / "vfio/vfio").touch()
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=-errno.ENOTTY)
    told = []
    for number, error in ((None, NotSupported), (errno.EACCES, PermissionLack)):
        played.open_errno = number
        with pytest.raises(error) as caught:
            open_cdev(path, ioas, roots, kernel=played.kernel, address=BDF)
        told.append(caught.value.remedy or "")
    for number, error in ((errno.EACCES, PermissionLack), (errno.ENOENT, ModuleLack)):
        played.open_errno = number
        with pytest.raises(error) as caught:
            Ioas.open(roots, kernel=played.kernel)
        told.append(caught.value.remedy)
    assert ["--backend vfio-group" in remedy for remedy in told] == [groups] * 4
    assert told[3].startswith("as root: modprobe iommufd") and not told[3].endswith("; or ")


# --- which way -------------------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    chosen = []

    def note(name):
        def take(address, roots, kernel, vf_token):  # noqa: F811
            chosen.append(name)
            raise Closed(name)

        return take

    for name in ("by_group", "by_cdev", "without_iommu"):
        monkeypatch.setattr(ways, name, note(name))
    return chosen


def try_to_open(roots, **how):  # noqa: F811
    with pytest.raises(Closed):
        VfioPciFunction.open(BDF, roots, kernel=Kernel(), **how)


def test_the_character_device_is_taken_where_there_is_one(roots, taken, monkeypatch):  # noqa: F811
    path = with_cdev(roots)
    (roots.dev / "vfio/vfio").touch()  # the kernel has groups, too
    try_to_open(roots)
    try_to_open(roots, way="group")
    monkeypatch.setattr(os, "access", lambda node, _mode: node != path)
    try_to_open(roots)
    try_to_open(roots, way="cdev")
    assert taken == ["by_cdev", "by_group", "by_group", "by_cdev"]


def test_a_variant_of_vfio_pci_is_opened_like_it(roots, taken):  # noqa: F811
    with_cdev(roots, driver="virtio_vfio_pci")
    try_to_open(roots)
    try_to_open(roots, way="group")
    assert taken == ["by_cdev", "by_group"]


def test_a_kernel_without_groups_says_who_may_open_the_node(roots, taken, monkeypatch):  # noqa: F811
    """Not that no function is bound to vfio-pci, which is what the missing node of a group means elsewhere."""
    with_cdev(roots)
    monkeypatch.setattr(os, "access", lambda _node, _mode: False)
    try_to_open(roots)
    assert taken == ["by_cdev"]


def test_the_group_is_taken_where_there_is_no_other(roots, taken):  # noqa: F811
    function(roots)
    try_to_open(roots)
    assert taken == ["by_group"]


def test_a_character_device_that_is_not_there_cannot_be_insisted_on(roots):  # noqa: F811
    function(roots)
    with pytest.raises(NotSupported, match="no character device") as caught:
        VfioPciFunction.open(BDF, roots, way="cdev")
    assert "vfio-group" in caught.value.remedy


def test_a_function_without_an_iommu_wants_the_consent(roots, taken):  # noqa: F811
    function(roots, label="vfio-noiommu")
    with pytest.raises(UnsafeDma) as caught:
        VfioPciFunction.open(BDF, roots)
    assert caught.value.exit_code == 3
    assert taken == []
    try_to_open(roots, unsafe_dma=True)
    assert taken == ["without_iommu"]


# --- VF tokens -------------------------------------------------------------------------------------------------

TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
UUID = bytes.fromhex("bd8d9d2b5a5f4f5aa211f591514ba1f3")
CDEV = Path("/dev/vfio/devices/vfio3")


def test_a_vf_token_is_handed_over_when_the_function_is_bound(space, roots):  # noqa: F811
    seen = []

    def bind(argument) -> int:
        seen.append((argument.argsz, argument.flags, ctypes.string_at(argument.token_uuid_ptr, 16)))
        return 0

    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=bind)
    assert open_cdev(CDEV, ioas, roots, kernel=played.kernel, address=BDF, vf_token=TOKEN) == 1000
    assert seen == [(24, api.VFIO_DEVICE_BIND_FLAG_TOKEN, UUID)]


def no_flag(argument) -> int:
    """Linux before 6.17."""
    return -errno.EINVAL if argument.flags else 0


def test_an_older_kernel_takes_no_token_of_a_virtual_function(space, roots):  # noqa: F811
    function(roots)
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=no_flag)
    with pytest.raises(NotSupported, match="with a VF token") as caught:
        open_cdev(CDEV, ioas, roots, kernel=played.kernel, address=BDF, vf_token=TOKEN)
    assert "6.17" in caught.value.expected
    assert "vfio-group" in caught.value.remedy
    assert played.closed == [1000]


def test_an_older_kernel_is_told_the_token_of_a_physical_function_afterwards(space, roots):  # noqa: F811
    (function(roots) / "sriov_totalvfs").write_text("7\n")
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=no_flag)
    assert open_cdev(CDEV, ioas, roots, kernel=played.kernel, address=BDF, vf_token=TOKEN) == 1000
    told = [argument for request, argument in played.asked if request == uapi.VFIO_DEVICE_FEATURE]
    assert told == [bytes.fromhex("18000000 00000200") + UUID]


def test_a_token_that_cannot_be_set_leaves_nothing_open(space, roots):  # noqa: F811
    (function(roots) / "sriov_totalvfs").write_text("7\n")
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=no_flag)
    played.answers[uapi.VFIO_DEVICE_FEATURE] = -errno.ENOTTY
    with pytest.raises(OperationFailed, match="VF token"):
        open_cdev(CDEV, ioas, roots, kernel=played.kernel, address=BDF, vf_token=TOKEN)
    assert played.closed == [1000]


@pytest.mark.parametrize(("given", "seen"), [(None, "no token"), (TOKEN, "another token")])
def test_a_virtual_function_without_its_token(space, roots, given, seen):  # noqa: F811
    virtual_function(roots)
    ioas, played = space(VFIO_DEVICE_BIND_IOMMUFD=-errno.EACCES)
    with pytest.raises(PermissionLack, match=re.escape("VF token of 0000:03:00.1")) as caught:
        open_cdev(CDEV, ioas, roots, kernel=played.kernel, address=BDF, vf_token=given)
    assert caught.value.seen == seen
    assert played.closed == [1000]


def test_where_the_kernel_binds_with_no_token_the_group_is_taken(roots, monkeypatch):  # noqa: F811
    with_cdev(roots)
    virtual_function(roots)
    asked = []

    def refuse(address, roots, kernel, vf_token):
        raise NotSupported("no token here")

    def take(address, roots, kernel, vf_token):
        asked.append((address, vf_token))
        raise Closed("taken")

    monkeypatch.setattr(ways, "by_cdev", refuse)
    monkeypatch.setattr(ways, "by_group", take)
    try_to_open(roots, vf_token=TOKEN)
    assert asked == [(BDF, TOKEN)]
    with pytest.raises(NotSupported):
        VfioPciFunction.open(BDF, roots, kernel=Kernel())
