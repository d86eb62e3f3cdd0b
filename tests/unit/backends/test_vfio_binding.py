"""The VFIO binding against a kernel that is played: what is asked, and what its errors become."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import struct
from array import array
from pathlib import Path

import pytest

from uvirtio.backends.vfio import Container, Device, Group, Kernel, group_of, uapi
from uvirtio.backends.vfio.container import DEFAULT_RANGES
from uvirtio.backends.vfio.group import is_noiommu, require_vf_token_taker
from uvirtio.backends.vfio.syscalls import INFO_LIMIT
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.errors import (
    Busy,
    Closed,
    DeviceGone,
    GroupNotViable,
    MemlockExceeded,
    Misuse,
    ModuleLack,
    NoIommu,
    NoSuchDevice,
    NotBound,
    NotSupported,
    OperationFailed,
    PermissionLack,
)
from uvirtio.host.drivers import require_bound
from uvirtio.host.process import holders
from uvirtio.host.roots import Roots

BDF = "0000:03:00.0"


class Played:
    """A kernel: answers by request number; an answer may be a number, an OSError's errno, or a function."""

    def __init__(self, **answers):
        self.answers = {getattr(uapi, name): answer for name, answer in answers.items()}
        self.asked: list[tuple[int, bytes | int]] = []
        self.closed: list[int] = []
        self.open_errno = 0
        self.kernel = Kernel(ioctl=self.ioctl, open=self.open, close=self.closed.append)

    def open(self, path, flags):
        assert flags == os.O_RDWR | os.O_CLOEXEC
        if self.open_errno:
            raise OSError(self.open_errno, os.strerror(self.open_errno))
        return 1000

    def ioctl(self, fd, request, argument):
        self.asked.append((request, argument if isinstance(argument, int) else bytes(argument)))
        answer = self.answers.get(request, 0)
        if callable(answer):
            answer = answer(argument)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def names(self):
        by_number = {v: k for k, v in vars(uapi).items() if k.startswith("VFIO_") and v in self.answers}
        return [by_number.get(request) for request, _ in self.asked]


@pytest.fixture
def roots(tmp_path):
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmLck:\t   8192 kB\nCapEff:\t0000000000000000\n")
    return Roots.under(tmp_path)


def function(roots: Roots, address=BDF, *, group=7, driver: str | None = "vfio-pci", label=None) -> Path:
    """A PCI function in the fake sysfs."""
    device = roots.sys / "bus/pci/devices" / address
    device.mkdir(parents=True)
    if group is not None:
        groups = roots.sys / "kernel/iommu_groups" / str(group)
        (groups / "devices" / address).mkdir(parents=True)
        (device / "iommu_group").symlink_to(groups)
        if label is not None:
            (groups / "name").write_text(label + "\n")
    if driver is not None:
        (roots.sys / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(roots.sys / "bus/pci/drivers" / driver)
    return device


def virtual_function(roots: Roots, owner="0000:03:00.1", *, driver: str | None = "vfio-pci") -> Path:
    """BDF as a virtual function of ``owner``, which ``driver`` has."""
    device = roots.sys / "bus/pci/devices" / BDF
    if not device.exists():
        function(roots)
    (function(roots, owner, group=8, driver=driver) / "sriov_totalvfs").write_text("7\n")
    (device / "physfn").symlink_to(f"../{owner}")
    return device


# --- container --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOENT, ModuleLack),
        (errno.ENODEV, ModuleLack),
        (errno.EACCES, PermissionLack),
        (errno.EIO, OperationFailed),
    ],
)
def test_opening_a_container_fails(roots, number, error):
    played = Played()
    played.open_errno = number
    with pytest.raises(error) as caught:
        Container.open(roots, kernel=played.kernel)
    assert errno.errorcode[number] in caught.value.seen


def test_another_api_version_is_refused_and_the_descriptor_closed(roots):
    played = Played(VFIO_GET_API_VERSION=1)
    with pytest.raises(NotSupported):
        Container.open(roots, kernel=played.kernel)
    assert played.closed == [1000]


@pytest.fixture
def container(roots):
    def make(**answers):
        played = Played(**answers)
        return Container(1000, roots.dev / "vfio/vfio", played.kernel, roots), played

    return make


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [({1, 3}, uapi.VFIO_TYPE1v2_IOMMU), ({1}, uapi.VFIO_TYPE1_IOMMU), ({3, 8}, uapi.VFIO_TYPE1v2_IOMMU)],
)
def test_the_better_type1_is_chosen(container, offered, chosen):
    box, played = container(VFIO_CHECK_EXTENSION=lambda t: int(t in offered))
    assert box.set_iommu() == chosen
    assert played.asked[-1] == (uapi.VFIO_SET_IOMMU, chosen)
    assert box.iommu_type == chosen


def test_no_type1_at_all(container):
    box, _ = container(VFIO_CHECK_EXTENSION=lambda t: int(t == uapi.VFIO_NOIOMMU_IOMMU))
    with pytest.raises(ModuleLack, match="type1"):
        box.set_iommu()


def test_an_iommu_without_interrupt_remapping_is_explained(container):
    box, _ = container(VFIO_CHECK_EXTENSION=1, VFIO_SET_IOMMU=-errno.EPERM)
    with pytest.raises(PermissionLack) as caught:
        box.set_iommu()
    assert "allow_unsafe_interrupts" in caught.value.remedy


def type1_info(chain: bytes, *, flags: int = 3, first: int | None = None):
    """A VFIO_IOMMU_GET_INFO that tells its size first, and all only if there is room."""
    head = ctypes.sizeof(uapi.vfio_iommu_type1_info)
    whole = struct.pack(
        "<IIQII", head + len(chain), flags, 0x1000 | 0x20_0000, head if first is None else first, 0
    )
    whole += chain

    def answer(argument):
        (room,) = struct.unpack_from("<I", argument)
        if room >= len(whole):
            argument[: len(whole)] = whole
        else:
            argument[:24] = struct.pack("<IIQII", len(whole), flags, 0x1000 | 0x20_0000, 0, 0)
        return 0

    return answer


def test_iommu_info_is_asked_again_with_room_for_its_capabilities(container):
    ranges = struct.pack("<HHIII", 1, 1, 24 + 48, 2, 0) + struct.pack(
        "<QQQQ", 0, 0xFEDF_FFFF, 0xFEF0_0000, (1 << 39) - 1
    )
    chain = ranges + struct.pack("<HHII", 3, 1, 0, 65535)
    box, played = container(VFIO_IOMMU_GET_INFO=type1_info(chain))
    info = box.iommu_info()
    assert info.ranges == ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
    assert info.dma_avail == 65535
    assert info.page_sizes == 0x20_1000
    assert len(played.asked) == 2


def test_iommu_info_of_an_old_kernel(container):
    box, _ = container(VFIO_IOMMU_GET_INFO=type1_info(b"", flags=1))
    info = box.iommu_info()
    assert (info.ranges, info.dma_avail) == (DEFAULT_RANGES, None)


def test_iommu_info_with_more_ranges_than_bytes(container):
    chain = struct.pack("<HHIII", 1, 1, 0, 0x1000_0000, 0)
    box, _ = container(VFIO_IOMMU_GET_INFO=type1_info(chain))
    with pytest.raises(OperationFailed):
        box.iommu_info()


def test_iommu_info_that_grows_for_ever_or_absurdly(container):
    def grow(argument):
        struct.pack_into("<I", argument, 0, len(argument) + 8)
        return 0

    box, played = container(VFIO_IOMMU_GET_INFO=grow)
    with pytest.raises(OperationFailed):
        box.iommu_info()
    assert len(played.asked) < 10

    def absurd(argument):
        struct.pack_into("<I", argument, 0, INFO_LIMIT + 1)
        return 0

    box, played = container(VFIO_IOMMU_GET_INFO=absurd)
    with pytest.raises(OperationFailed):
        box.iommu_info()
    assert len(played.asked) == 1


def test_map_hands_over_exactly_these_numbers(container):
    box, played = container()
    box.map(0x7F00_0000_0000, 0x10_0000, 0x3000, write=False)
    assert played.asked == [
        (uapi.VFIO_IOMMU_MAP_DMA, struct.pack("<IIQQQ", 32, 1, 0x7F00_0000_0000, 0x10_0000, 0x3000))
    ]


@pytest.mark.fault(93)
def test_a_map_beyond_memlock_says_need_and_have(container, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    box, _ = container(VFIO_IOMMU_MAP_DMA=-errno.ENOMEM)
    with pytest.raises(MemlockExceeded) as caught:
        box.map(0, 0x1000, 0x2000)
    # 8192 kB are locked already, as the status file of the fixture says.
    assert str((8 << 20) + 0x2000) in caught.value.expected
    assert str(8 << 20) in caught.value.seen
    assert "8200" in caught.value.remedy


@pytest.mark.parametrize("unbound", ["unlimited", "capable"])
def test_enomem_without_a_limit_is_no_memlock_error(container, roots, monkeypatch, unbound):
    limit = resource.RLIM_INFINITY if unbound == "unlimited" else 4096
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    if unbound == "capable":
        (roots.proc / "self/status").write_text("VmLck:\t0 kB\nCapEff:\t0000000000004000\n")
    box, _ = container(VFIO_IOMMU_MAP_DMA=-errno.ENOMEM)
    with pytest.raises(OperationFailed) as caught:
        box.map(0, 0x1000, 0x2000)
    assert "ENOMEM" in caught.value.seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EEXIST, errno.EINVAL])
def test_a_refused_map_has_a_remedy(container, number):
    box, _ = container(VFIO_IOMMU_MAP_DMA=-number)
    with pytest.raises(OperationFailed) as caught:
        box.map(0, 0x1000, 0x1000)
    assert caught.value.remedy
    assert errno.errorcode[number] in caught.value.seen


def test_unmap_checks_what_was_really_unmapped(container):
    def less(argument):
        argument.size = 0x1000
        return 0

    box, _ = container(VFIO_IOMMU_UNMAP_DMA=less)
    with pytest.raises(OperationFailed) as caught:
        box.unmap(0x1000, 0x2000)
    assert "4096" in caught.value.seen
    box.unmap(0x1000, 0x1000)


def test_a_closed_container_is_closed_once(container):
    box, played = container()
    box.close()
    box.close()
    assert played.closed == [1000]
    with pytest.raises(Closed):
        box.map(0, 0, 4096)


# --- group ------------------------------------------------------------------------------------------------


def test_the_group_of_a_function(roots):
    function(roots)
    assert group_of(BDF, roots) == 7
    with pytest.raises(NoSuchDevice):
        group_of("0000:09:00.0", roots)


def test_a_function_without_an_iommu(roots):
    function(roots, group=None)
    with pytest.raises(NoIommu):
        group_of(BDF, roots)


@pytest.mark.parametrize(("label", "made_up"), [("vfio-noiommu", True), ("", False), (None, False)])
def test_a_group_that_vfio_made_up_is_known_by_its_name(roots, label, made_up):
    function(roots, label=label)
    assert group_of(BDF, roots) == 7
    assert is_noiommu(BDF, roots) is made_up
    assert not is_noiommu("0000:0f:00.0", roots)


@pytest.mark.parametrize("driver", ["virtio-pci", None])
def test_a_function_that_something_else_holds(roots, driver):
    function(roots, driver=driver)
    with pytest.raises(NotBound) as caught:
        require_bound(BDF, "vfio-pci", roots)
    assert caught.value.remedy == f"uvirtio bind {BDF}"


def open_group(roots, number):
    played = Played()
    played.open_errno = number
    return Group.open(7, roots, kernel=played.kernel)


@pytest.mark.fault(90)
def test_a_group_in_use_names_the_holder(roots):
    fd = roots.proc / "4711/fd"
    fd.mkdir(parents=True)
    (roots.proc / "4711/comm").write_text("qemu-system-x86\n")
    (fd / "9").symlink_to(roots.dev / "vfio/7")
    (roots.proc / "12/fd").mkdir(parents=True)
    (roots.proc / "12/fd/3").symlink_to("/dev/null")
    with pytest.raises(Busy) as caught:
        open_group(roots, errno.EBUSY)
    assert "4711 (qemu-system-x86)" in caught.value.seen
    assert holders(roots.dev / "vfio/8", roots) == []
    # A function of the group is open by a node of its own: the group is busy, too.
    (fd / "9").unlink()
    (fd / "9").symlink_to(roots.dev / "vfio/devices/vfio3")
    own = function(roots) / "vfio-dev/vfio3"
    own.mkdir(parents=True)
    (own / "dev").write_text("511:3\n")
    with pytest.raises(Busy) as caught:
        open_group(roots, errno.EBUSY)
    assert "4711 (qemu-system-x86)" in caught.value.seen


def test_a_group_in_use_by_nobody_that_can_be_seen(roots):
    with pytest.raises(Busy) as caught:
        open_group(roots, errno.EBUSY)
    assert "fuser" in caught.value.remedy


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_group_of_somebody_else(roots, number, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root is told something else
    with pytest.raises(PermissionLack) as caught:
        open_group(roots, number)
    assert "--owner" in caught.value.remedy


def test_a_group_that_is_not_there(roots):
    with pytest.raises(NoIommu):
        open_group(roots, errno.ENOENT)
    (roots.dev / "vfio").rmdir()
    with pytest.raises(ModuleLack):
        open_group(roots, errno.ENOENT)


@pytest.mark.fault(94)
def test_a_group_that_is_not_viable_lists_who_holds_it_and_leaves_bridges_out(roots):
    function(roots)
    function(roots, "0000:03:00.1", driver="virtio-pci")
    function(roots, "0000:00:1c.0", driver="pcieport")
    function(roots, "0000:03:00.2", driver=None)
    (function(roots, "0000:03:00.3", driver="any_name") / "vfio-dev/vfio3").mkdir(parents=True)  # a variant
    played = Played()
    with pytest.raises(GroupNotViable) as caught:
        Group.open(7, roots, kernel=played.kernel)
    assert caught.value.seen == "0000:03:00.1 (virtio-pci)"
    assert "0000:03:00.1" in caught.value.remedy
    assert played.closed == [1000]


def viable(argument):
    argument.flags = uapi.VFIO_GROUP_FLAGS_VIABLE
    return 0


def test_a_device_is_asked_for_by_its_name_with_a_nul(roots):
    played = Played(VFIO_GROUP_GET_STATUS=viable, VFIO_GROUP_GET_DEVICE_FD=42)
    with Group.open(7, roots, kernel=played.kernel) as group:
        assert group.device_fd(BDF) == 42
    assert played.asked[-1] == (uapi.VFIO_GROUP_GET_DEVICE_FD, BDF.encode() + b"\0")
    assert played.closed == [1000]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENODEV, NoSuchDevice), (errno.EBUSY, Busy), (errno.EIO, DeviceGone), (errno.EINVAL, OperationFailed)],
)
def test_a_device_that_cannot_be_had(roots, number, error):
    function(roots)
    played = Played(VFIO_GROUP_GET_STATUS=viable, VFIO_GROUP_GET_DEVICE_FD=-number)
    with Group.open(7, roots, kernel=played.kernel) as group, pytest.raises(error):
        group.device_fd(BDF)


def test_a_group_leaves_its_container_before_it_closes(roots, container):
    box, _ = container()
    played = Played(
        VFIO_GROUP_GET_STATUS=viable, VFIO_GROUP_SET_CONTAINER=0, VFIO_GROUP_UNSET_CONTAINER=-errno.EBUSY
    )
    group = Group.open(7, roots, kernel=played.kernel)
    group.set_container(box)
    assert played.asked[-1] == (uapi.VFIO_GROUP_SET_CONTAINER, struct.pack("<i", 1000))
    group.close()
    group.close()
    assert played.names()[-1] == "VFIO_GROUP_UNSET_CONTAINER"
    assert played.closed == [1000]


# --- VF tokens --------------------------------------------------------------------------------------------

TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"


def test_a_vf_token_goes_with_the_name(roots):
    played = Played(VFIO_GROUP_GET_STATUS=viable, VFIO_GROUP_GET_DEVICE_FD=42)
    with Group.open(7, roots, kernel=played.kernel) as group:
        assert group.device_fd(BDF, TOKEN) == 42
    assert played.asked[-1][1] == f"{BDF} vf_token={TOKEN}\0".encode()


@pytest.mark.parametrize(("given", "seen"), [(None, "no token"), (TOKEN, "another token")])
def test_a_virtual_function_is_not_opened_without_its_token(roots, given, seen):
    virtual_function(roots)
    played = Played(VFIO_GROUP_GET_STATUS=viable, VFIO_GROUP_GET_DEVICE_FD=-errno.EACCES)
    with (
        Group.open(7, roots, kernel=played.kernel) as group,
        pytest.raises(PermissionLack, match=re.escape("0000:03:00.1")) as caught,
    ):
        group.device_fd(BDF, given)
    assert caught.value.seen == seen
    assert "--vf-token" in caught.value.remedy


def test_what_takes_a_token(roots):
    virtual_function(roots)
    require_vf_token_taker(BDF, roots)
    require_vf_token_taker("0000:03:00.1", roots)


@pytest.mark.parametrize(
    ("owned", "seen"),
    [("virtio-pci", "bound to virtio-pci"), (None, "no driver"), ("nothing", "not a function with")],
)
def test_what_takes_no_token(roots, owned, seen):
    if owned == "nothing":
        function(roots)
    else:
        virtual_function(roots, driver=owned)
    with pytest.raises(NotSupported, match="takes no VF token") as caught:
        VfioPciFunction.open(BDF, roots, vf_token=TOKEN)
    assert seen in caught.value.seen


# --- device -----------------------------------------------------------------------------------------------


def device(**answers):
    played = Played(**answers)
    return Device(1001, BDF, played.kernel), played


def region(flags: int, size: int, chain: bytes = b""):
    whole = struct.pack("<IIIIQQ", 32 + len(chain), flags, 0, 32 if chain else 0, size, 7 << 40) + chain

    def answer(argument):
        count = min(len(argument), len(whole)) if len(argument) >= len(whole) else 32
        argument[:count] = whole[:count]
        return 0

    return answer


def test_a_region_with_holes_for_mmap():
    sparse = struct.pack("<HHIII", 1, 1, 32 + 48, 2, 0) + struct.pack("<QQQQ", 0, 0x1000, 0x3000, 0x1000)
    msix = struct.pack("<HHI", 3, 1, 0)
    box, _ = device(VFIO_DEVICE_GET_REGION_INFO=region(0xF, 0x4000, sparse + msix))
    info = box.region_info(0)
    assert (info.size, info.offset, info.sparse) == (0x4000, 7 << 40, ((0, 0x1000), (0x3000, 0x1000)))
    assert info.msix_mappable
    assert [info.mappable(place, 0x1000) for place in (0, 0x1000, 0x2000, 0x3000)] == [True, False, False, True]
    assert not info.mappable(0, 0x4000)
    assert not info.mappable(0x3000, 0x2000)


def test_an_area_outside_its_region_is_not_believed():
    sparse = struct.pack("<HHIII", 1, 1, 0, 1, 0) + struct.pack("<QQ", 0x3000, 0x2000)
    box, _ = device(VFIO_DEVICE_GET_REGION_INFO=region(0xF, 0x4000, sparse))
    assert box.region_info(0).sparse == ()


def test_a_region_that_is_not_there():
    box, _ = device(VFIO_DEVICE_GET_REGION_INFO=-errno.EINVAL)
    assert box.region_info(8).size == 0


def test_a_mapping_that_is_not_allowed_never_reaches_the_kernel():
    box, _ = device(VFIO_DEVICE_GET_REGION_INFO=region(0x3, 0x4000))
    info = box.region_info(0)
    with pytest.raises(OperationFailed):
        box.mmap(info, 0, 0x1000)


def test_access_outside_a_region_is_the_callers_mistake():
    box, _ = device(VFIO_DEVICE_GET_REGION_INFO=region(0x3, 0x100))
    info = box.region_info(0)
    for offset, length in ((0x100, 1), (-1, 1), (0xFE, 4)):
        with pytest.raises(Misuse):
            box.read(info, offset, length)


def test_interrupts_are_handed_over_as_signed_descriptors():
    box, played = device()
    box.set_irqs(uapi.VFIO_PCI_MSIX_IRQ_INDEX, [5, -1, 7])
    flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
    assert played.asked == [
        (uapi.VFIO_DEVICE_SET_IRQS, struct.pack("<IIIII", 32, flags, 2, 0, 3) + array("i", [5, -1, 7]).tobytes())
    ]
    box.disable_irqs(uapi.VFIO_PCI_MSIX_IRQ_INDEX)
    assert played.asked[-1][1] == struct.pack("<IIIII", 20, 0x21, 2, 0, 0)
    box.unmask(uapi.VFIO_PCI_INTX_IRQ_INDEX)
    assert played.asked[-1][1] == struct.pack("<IIIII", 20, 0x11, 0, 0, 1)


def test_fewer_vectors_than_asked_is_an_error_though_the_ioctl_did_not_fail():
    box, _ = device(VFIO_DEVICE_SET_IRQS=2)
    with pytest.raises(OperationFailed) as caught:
        box.set_irqs(uapi.VFIO_PCI_MSIX_IRQ_INDEX, [5, 6, 7])
    assert "2" in caught.value.seen


@pytest.mark.parametrize(("number", "error"), [(errno.ENODEV, DeviceGone), (errno.EINVAL, OperationFailed)])
def test_interrupts_that_cannot_be_had(number, error):
    box, _ = device(VFIO_DEVICE_SET_IRQS=-number)
    with pytest.raises(error):
        box.set_irqs(0, [5])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTTY])
def test_no_reset_is_no_error(number):
    box, _ = device(VFIO_DEVICE_RESET=-number)
    assert box.reset() is False


def test_a_reset_that_is_busy_is_asked_again():
    answers = iter([-errno.EAGAIN, -errno.EAGAIN, 0])
    box, played = device(VFIO_DEVICE_RESET=lambda argument: next(answers))
    assert box.reset() is True
    assert len(played.asked) == 3


def test_a_reset_that_stays_busy_ends():
    box, _ = device(VFIO_DEVICE_RESET=-errno.EAGAIN)
    with pytest.raises(OperationFailed):
        box.reset(timeout=0.05)


def test_a_reset_of_a_device_that_has_gone():
    box, _ = device(VFIO_DEVICE_RESET=-errno.ENODEV)
    with pytest.raises(DeviceGone):
        box.reset()


def test_a_closed_device_is_closed_once():
    box, played = device()
    box.close()
    box.close()
    assert played.closed == [1001]
    with pytest.raises(Closed):
        box.info()
