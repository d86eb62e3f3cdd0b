"""Discovery on made-up trees: every form of address, and every kind of garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys, config_space
from uvirtio.binding import discover, hwdb, vdpa_netlink
from uvirtio.binding.rules import check
from uvirtio.errors import BadAddress, NoSuchDevice, NotVirtio, PermissionLack, UsageError
from uvirtio.host import sysfs


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


# --- PCI ---------------------------------------------------------------------------------------------------


def test_a_bound_modern_function(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng", group=7)
    (found,) = discover.scan(fake.roots)
    assert found.as_dict() == {
        "address": "0000:03:00.0",
        "type": "rng",
        "device_id": 4,
        "pci_id": "1af4:1044",
        "interface": "modern",
        "driver": "virtio-pci",
        "kernel_driver": "virtio_rng",
        "iommu_group": 7,
        "virtio_name": "virtio0",
        "numa_node": None,
        "node": None,
        "parent": None,
        "notes": [],
    }
    assert found.driver_override is None and found.subsystem_id == "1af4:1100"
    assert found.names == ("0000:03:00.0", "virtio0")
    assert discover.negotiated_features(found) == 1 << 32


@pytest.mark.spec("PCI-ID-01")
@pytest.mark.parametrize(("device", "kind"), [(0x1041, "net"), (0x1045, "balloon"), (0x1058, "mem"),
                                              (0x1052, "input"), (0x107F, "unknown(63)")])  # fmt: skip
def test_modern_ids(fake: FakeSys, device: int, kind: str) -> None:
    fake.pci("0000:00:01.0", None, pci_id=(0x1AF4, device), driver=None)
    (found,) = discover.scan(fake.roots)
    assert (found.type, found.device_id, found.interface) == (kind, device - 0x1040, "modern")


@pytest.mark.spec("PCI-ID-02")
@pytest.mark.parametrize(
    ("device", "kind"),
    [(0x1000, "net"), (0x1001, "blk"), (0x1002, "balloon"), (0x1003, "console"), (0x1004, "scsi"),
     (0x1005, "rng"), (0x1009, "9p")],
)  # fmt: skip
def test_transitional_ids(fake: FakeSys, device: int, kind: str) -> None:
    fake.pci("0000:00:01.0", kind, pci_id=(0x1AF4, device), driver=None)
    (found,) = discover.scan(fake.roots)
    assert (found.type, found.interface) == (kind, "transitional")


@pytest.mark.parametrize("pci_id", [(0x1AF4, 0x0FFF), (0x1AF4, 0x1080), (0x1AF4, 0x1110), (0x8086, 0x1041)])
def test_other_ids_are_not_virtio(fake: FakeSys, pci_id: tuple[int, int]) -> None:
    fake.pci("0000:00:01.0", None, pci_id=pci_id, driver="ahci", pci_class=0x010601)
    assert discover.scan(fake.roots) == []
    with pytest.raises(NotVirtio) as error:
        discover.find("00:01.0", fake.roots)
    assert error.value.exit_code == 5
    assert "ahci" in error.value.seen and f"{pci_id[1]:04x}" in error.value.seen


@pytest.mark.spec("PCI-ID-03")
@pytest.mark.parametrize("revision", ["0x00", "0x01", "0x40"])
def test_the_revision_does_not_matter(fake: FakeSys, revision: str) -> None:
    path = fake.pci("0000:00:01.0")
    fake.text(path / "revision", revision + "\n")
    (found,) = discover.scan(fake.roots)
    assert (found.type, found.revision) == ("rng", int(revision, 16))


def test_outside_the_table_the_subsystem_id_is_the_type(fake: FakeSys) -> None:
    path = fake.pci("0000:00:01.0", None, pci_id=(0x1AF4, 0x1012), driver=None)
    fake.text(path / "subsystem_device", "0x0013\n")
    assert discover.scan(fake.roots)[0].type == "vsock"


@pytest.mark.spec("PCI-LEG-03")
def test_an_old_id_without_virtio_capabilities_is_legacy(fake: FakeSys) -> None:
    fake.pci("0000:00:01.0", "rng", transitional=True, config=config_space((0x1AF4, 0x1005), modern=False))
    assert discover.scan(fake.roots)[0].interface == "legacy"


def test_what_only_root_sees_is_said(fake: FakeSys) -> None:
    path = fake.pci(
        "0000:00:01.0", "rng", transitional=True, features=0, config=config_space((0x1AF4, 0x1005))[:64]
    )
    (found,) = discover.scan(fake.roots)
    assert found.interface == "transitional" and "root only" in found.notes[0]
    fake.text(path / "virtio0/features", "0" * 32 + "1" + "0" * 31 + "\n")
    (found,) = discover.scan(fake.roots)
    assert found.interface == "transitional" and found.notes == ()


@pytest.mark.parametrize(
    ("driver", "node"), [("vfio-pci", "/dev/vfio/7"), ("uio_pci_generic", "/dev/uio0"), ("pci-stub", None)]
)
def test_the_node_of_a_user_space_driver(fake: FakeSys, driver: str, node: str | None) -> None:
    path = fake.pci("0000:03:00.0", "rng", group=7, driver=driver)
    if driver == "uio_pci_generic":
        (path / "uio/uio0").mkdir(parents=True)
    (found,) = discover.scan(fake.roots)
    assert (found.driver, found.kernel_driver, found.node) == (driver, None, node)


def test_no_iommu_groups_are_told(fake: FakeSys) -> None:
    path = fake.pci("0000:03:00.0", "rng", group=0, driver="vfio-pci")
    fake.text(path / "iommu_group/name", "vfio-noiommu\n")
    (found,) = discover.scan(fake.roots)
    assert found.noiommu and found.node == "/dev/vfio/noiommu-0"


@pytest.mark.fault(96)
def test_large_domains(fake: FakeSys) -> None:
    fake.pci("10000:01:00.0")
    fake.pci("1000ab:01:00.0", "balloon")
    assert [f.address for f in discover.scan(fake.roots)] == ["10000:01:00.0", "1000ab:01:00.0"]
    assert discover.find("1000AB:01:00.0", fake.roots).type == "balloon"


@pytest.mark.fault(96)
def test_garbage_is_stepped_over(fake: FakeSys) -> None:
    good = fake.pci("0000:00:05.0", "balloon", group=3)
    devices = fake.sys / "bus/pci/devices"
    (devices / "0000:00:06.0").symlink_to("../../../devices/gone")
    (devices / "not-an-address").mkdir()
    (devices / "0000:00:07.0").mkdir()
    loop = devices / "0000:00:08.0"
    loop.symlink_to("0000:00:08.0")
    for name, text in (("class", ""), ("numa_node", "many\n"), ("revision", "\xff\xfe"), ("driver_override", ""),
                       ("subsystem_device", "9" * 100), ("resource", "0x1 0x2\nnonsense\n\n")):  # fmt: skip
        fake.text(good / name, text)
    (good / "iommu_group").unlink()
    (good / "iommu_group").symlink_to("../nowhere/not-a-number")
    (found,) = discover.scan(fake.roots)
    assert (found.address, found.type, found.iommu_group) == ("0000:00:05.0", "balloon", None)
    with pytest.raises(NotVirtio):
        discover.find("00:07.0", fake.roots)


def test_an_empty_machine(tmp_path: Path) -> None:
    from uvirtio.host.roots import Roots

    roots = Roots.under(tmp_path / "nothing")
    assert discover.scan(roots) == []
    with pytest.raises(NoSuchDevice):
        discover.find("03:00.0", roots)


@pytest.mark.fault(96)
@given(
    st.dictionaries(
        st.sampled_from(["vendor", "device", "class", "revision", "subsystem_device", "config", "resource",
                         "driver_override", "numa_node"]),
        st.binary(max_size=300),
    )
)  # fmt: skip
def test_any_content_is_survived(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    fake = FakeSys(tmp_path_factory.mktemp("tree"))
    path = fake.pci("0000:00:05.0", "rng", transitional=True)
    for name, content in files.items():
        fake.text(path / name, content)
    for found in discover.scan(fake.roots):
        found.as_dict()
        discover.bars(found)


# --- mmio and vdpa -----------------------------------------------------------------------------------------


def test_acpi_windows_as_root_and_as_a_user(fake: FakeSys) -> None:
    fake.mmio("LNRO0005:07", "balloon")
    fake.mmio("LNRO0005:06")
    fake.text(fake.roots.proc / "iomem", "00000000-00000000 : LNRO0005:07\n  00000000-00000000 : LNRO0005:07\n")
    unbound, bound = discover.scan(fake.roots)
    assert (bound.address, bound.type, bound.window) == ("LNRO0005:07", "balloon", None)
    assert (unbound.type, unbound.device_id, unbound.driver) == ("unknown", None, None)
    assert any("root" in note for note in bound.notes)
    fake.text(fake.roots.proc / "iomem", "feb02e00-feb02fff : LNRO0005:07\n  feb02e00-feb02fff : LNRO0005:07\n")
    found = discover.find("LNRO0005:07", fake.roots)
    assert (found.address, found.window) == ("mmio:0xfeb02e00", (0xFEB02E00, 0x200))
    assert discover.find("mmio:0xFEB02E00", fake.roots) == found
    assert set(found.names) == {"mmio:0xfeb02e00", "LNRO0005:07", "virtio0"}


def test_device_tree_windows(fake: FakeSys) -> None:
    path = fake.mmio("a003e00.virtio_mmio", "rng", compatible=b"virtio,mmio\0")
    fake.text(path / "of_node/reg", (0xA003E00).to_bytes(8, "big") + (0x200).to_bytes(8, "big"))
    (found,) = discover.scan(fake.roots)
    assert (found.address, found.window, found.interface) == ("mmio:0xa003e00", (0xA003E00, 0x200), "mmio")
    assert discover.find("a003e00.virtio_mmio", fake.roots) == found


def test_an_odd_name_with_the_right_compatible(fake: FakeSys) -> None:
    fake.mmio("10008000.virtio", compatible=b"acme,thing\0virtio,mmio\0")
    fake.mmio("10009000.serial", compatible=b"ns16550a\0")
    (found,) = discover.scan(fake.roots)
    assert (found.name, found.address) == ("10008000.virtio", "mmio:0x10008000")
    for name in ("10008000.virtio", "mmio:0x10008000", "/sys/bus/platform/devices/10008000.virtio"):
        assert discover.find(name, fake.roots, aliases=False) == found


def test_windows_on_the_command_line(fake: FakeSys) -> None:
    fake.text(
        fake.roots.proc / "cmdline",
        "quiet virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=1K@0xFEB00C00:13:5 virtio_mmio.device=x\n",
    )
    assert [(f.address, f.name, f.window) for f in discover.scan(fake.roots)] == [
        ("mmio:0xfeb00c00", "virtio-mmio.5", (0xFEB00C00, 1024)),
        ("mmio:0xfeb00e00", "virtio-mmio.0", (0xFEB00E00, 512)),
    ]


@pytest.mark.parametrize("shown", [False, True])
def test_a_window_on_the_command_line_is_one_window(fake: FakeSys, shown: bool) -> None:
    """With its platform device, as a user to whom /proc/iomem shows no addresses, and as root."""
    fake.mmio("virtio-mmio.0", "balloon")
    fake.mmio("virtio-mmio.7")
    given = "virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=0x200@0xfeb00c00:13:7"
    fake.text(fake.roots.proc / "cmdline", given + "\n")
    lines = [("feb00c00-feb00dff", "virtio-mmio.7"), ("feb00e00-feb00fff", "virtio-mmio.0 virtio-mmio.0")]
    text = "".join(f"{where if shown else '00000000-00000000'} : {name}\n" for where, name in lines)
    fake.text(fake.roots.proc / "iomem", text)
    assert [(f.address, f.name, f.type, f.window) for f in discover.scan(fake.roots)] == [
        ("mmio:0xfeb00c00", "virtio-mmio.7", "unknown", (0xFEB00C00, 0x200)),
        ("mmio:0xfeb00e00", "virtio-mmio.0", "balloon", (0xFEB00E00, 0x200)),
    ]
    for name in ("balloon", "virtio-mmio.0", "mmio:0xfeb00e00", "virtio0"):
        assert discover.find(name, fake.roots).name == "virtio-mmio.0"


def test_a_vdpa_device_on_a_pci_function_has_its_type(fake: FakeSys) -> None:
    function = fake.pci("0000:03:00.0", "balloon", driver="vp-vdpa")
    path = fake.vdpa("vdpa0")
    path.rename(function / "vdpa0")
    (fake.sys / "bus/vdpa/devices/vdpa0").unlink()
    fake.link(fake.sys / "bus/vdpa/devices/vdpa0", function / "vdpa0")
    found = discover.find("vdpa:vdpa0", fake.roots)
    assert (found.type, found.device_id, found.parent) == ("balloon", 5, "0000:03:00.0")
    assert "0000:03:00.0" in found.names and found.notes == ()
    stands = [f.evidence for f in check(discover.find("03:00.0", fake.roots), fake.roots).findings]
    assert "the vDPA device vdpa:vdpa0 stands on it" in stands


def test_the_kernel_is_asked_for_no_other_tree(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.vdpa("vdpa0")
    monkeypatch.setattr(vdpa_netlink, "devices", lambda: pytest.fail("asked"))
    assert discover.find("vdpa:vdpa0", fake.roots).device_id is None


def test_vdpa(fake: FakeSys) -> None:
    fake.vdpa("vduse0")
    fake.vdpa("vduse1", driver="virtio_vdpa")
    fake.vdpa("vduse2", driver=None)
    found = {f.address: f for f in discover.scan(fake.roots)}
    assert set(found) == {"/dev/vhost-vdpa-0", "vdpa:vduse1", "vdpa:vduse2"}
    assert found["vdpa:vduse1"].type == "blk" and found["vdpa:vduse2"].device_id is None
    assert discover.find("vdpa:vduse0", fake.roots).address == "/dev/vhost-vdpa-0"
    assert discover.find("/dev/vhost-vdpa-0", fake.roots).name == "vduse0"
    with pytest.raises(NoSuchDevice):
        discover.find("/dev/vhost-vdpa-1", fake.roots)


# --- find --------------------------------------------------------------------------------------------------


def test_find_by_every_form(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng")
    fake.pci("0000:04:00.0", "balloon")
    for name in ("0000:03:00.0", "03:00.0", "virtio0", "rng"):
        assert discover.find(name, fake.roots).address == "0000:03:00.0"
    with pytest.raises(BadAddress) as error:
        discover.find("balloon", fake.roots, aliases=False)
    assert "0000:04:00.0" in str(error.value.remedy)


def test_find_says_what_it_cannot_tell_apart(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng")
    fake.pci("0000:04:00.0", "rng")
    with pytest.raises(UsageError) as error:
        discover.find("rng", fake.roots)
    assert error.value.seen == ["0000:03:00.0", "0000:04:00.0"] and error.value.exit_code == 2


@pytest.mark.parametrize("name", ["05:00.0", "virtio9", "balloon", "mmio:0x1000", "LNRO0005:00", "vdpa:none"])
def test_find_nothing(fake: FakeSys, name: str) -> None:
    fake.pci("0000:03:00.0", "rng")
    with pytest.raises(NoSuchDevice) as error:
        discover.find(name, fake.roots)
    assert error.value.exit_code == 5


def test_qemu_devices_are_not_here(fake: FakeSys) -> None:
    with pytest.raises(UsageError):
        discover.find("qemu:virtio-rng-pci", fake.roots)


# --- configuration space -----------------------------------------------------------------------------------


def test_capabilities_from_sysfs(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng")
    found = discover.find("03:00.0", fake.roots)
    caps = discover.capabilities(found)
    assert [(c.type, c.verdict) for c in caps] == [
        ("pci_cfg", "ok"), ("notify", "ok"), ("device", "ok"), ("isr", "ok"), ("common", "ok")]  # fmt: skip
    sizes = [(bar.index, bar.size, bar.is_io) for bar in discover.bars(found) or [] if bar]
    assert sizes == [(0, 64, True), (1, 4096, False), (4, 0x4000, False)]


@pytest.mark.spec("PCI-CFA-02")
def test_pci_cfg_data_is_never_read(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pci("0000:03:00.0", "rng")
    log: list[range] = []
    pread = os.pread

    def spy(fd: int, count: int, offset: int) -> bytes:
        log.append(range(offset, offset + count))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", spy)
    space = discover.config_bytes(discover.find("03:00.0", fake.roots))
    assert space.hidden == ((0x94, 4),) and space.data[0x94:0x98] == bytes(4)
    assert len(space.data) == 256 and space.data[:4] == b"\xf4\x1a\x44\x10"
    assert log and not any(set(touched) & set(range(0x94, 0x98)) for touched in log)


def test_hidden_is_not_absent(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng", config=config_space((0x1AF4, 0x1044))[:64])
    with pytest.raises(PermissionLack) as error:
        discover.capabilities(discover.find("03:00.0", fake.roots))
    assert error.value.exit_code == 4 and "hidden" in error.value.message


def test_of_other_functions_only_the_ids_are_read(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has hundreds of them."""
    fake.pci("0000:03:00.0", "rng")
    other = fake.pci("0000:04:00.0", None, pci_id=(0x8086, 0x100E), driver="e1000")
    looks: list[str] = []
    read = sysfs.read

    def look(path: Path, *rest: int) -> str | None:
        if path.parent.name == other.name:
            looks.append(path.name)
        return read(path, *rest)

    monkeypatch.setattr(sysfs, "read", look)
    assert [found.address for found in discover.scan(fake.roots)] == ["0000:03:00.0"]
    assert looks == ["vendor", "device"]


def test_udev_is_only_asked_about_the_real_tree(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng")
    assert hwdb.udev_properties(discover.find("03:00.0", fake.roots), fake.roots) == {}
