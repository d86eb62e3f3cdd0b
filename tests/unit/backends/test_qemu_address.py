"""The grammar of ``qemu:`` addresses, and what a device is supplied with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.backends.qemu.address import (
    IOMMUS,
    MACHINES,
    MIB,
    MMIO_MACHINES,
    RAM_DEFAULT,
    RAM_MAXIMUM,
    RAM_MINIMUM,
    parse,
)
from uvirtio.backends.qemu.machine import Machine, open_address
from uvirtio.backends.qemu.supply import Supply, take_apart
from uvirtio.errors import BadAddress, NotSupported, QemuMissing, UvirtioError


def test_a_device_alone_is_on_q35() -> None:
    address = parse("qemu:virtio-balloon-pci")
    assert (address.machine, address.device) == ("q35", "virtio-balloon-pci")
    assert (address.ram, address.legacy, address.iommu) == (RAM_DEFAULT, None, "none")
    assert (address.qmp, address.binary) == (None, None)
    assert str(address) == "qemu:virtio-balloon-pci"


def test_the_options_of_the_device_are_qemus() -> None:
    address = parse("qemu:pc/virtio-rng-pci,disable-modern=on")
    assert (address.machine, address.device) == ("pc", "virtio-rng-pci,disable-modern=on")


def test_every_key() -> None:
    address = parse("qemu:q35,ram=1G,iommu=intel,qmp=/tmp/a.sock,binary=/opt/qemu/bin/q/virtio-mem-pci")
    assert address.ram == 1 << 30
    assert address.iommu == "intel"
    assert address.qmp == "/tmp/a.sock"
    assert address.binary == "/opt/qemu/bin/q"
    assert address.device == "virtio-mem-pci"


@pytest.mark.parametrize(("value", "legacy"), [("on", True), ("off", False)])
def test_legacy_is_for_mmio(value: str, legacy: bool) -> None:
    assert parse(f"qemu:microvm,legacy={value}/virtio-rng-device").legacy is legacy
    with pytest.raises(BadAddress, match="virtio-mmio") as caught:
        parse(f"qemu:pc,legacy={value}/virtio-rng-pci")
    assert "disable-modern" in (caught.value.remedy or "")


def test_slashes_and_virtio_in_paths() -> None:
    address = parse("qemu:q35,qmp=/tmp/virtio-1/a.sock/virtio-input-host-pci,evdev=/dev/virtio-ports/x")
    assert address.qmp == "/tmp/virtio-1/a.sock"
    assert address.device == "virtio-input-host-pci,evdev=/dev/virtio-ports/x"
    assert parse("qemu:virtio-input-host-pci,evdev=/dev/virtio-a").device.endswith("=/dev/virtio-a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "virtio-rng-pci",
        "QEMU:virtio-rng-pci",
        "qemu:",
        "qemu:/virtio-rng-pci",
        "qemu:e1000",
        "qemu:q35",
        "qemu:q35/",
        "qemu:q35/e1000",
        "qemu:q35/virtio-",
        "qemu:q35/virtio-RNG",
        "qemu:i440fx/virtio-rng-pci",
        "qemu:,ram=1G/virtio-rng-pci",
        "qemu:q35,/virtio-rng-pci",
        "qemu:q35,ram/virtio-rng-pci",
        "qemu:q35,ram=/virtio-rng-pci",
        "qemu:q35,ram=1/virtio-rng-pci",
        "qemu:q35,ram=-1G/virtio-rng-pci",
        "qemu:q35,ram=33333333B/virtio-rng-pci",
        "qemu:q35,ram=999999999999T/virtio-rng-pci",
        "qemu:q35,ram=1G,ram=1G/virtio-rng-pci",
        "qemu:q35,memory=1G/virtio-rng-pci",
        "qemu:q35,iommu=amd/virtio-rng-pci",
        "qemu:microvm,legacy=maybe/virtio-rng-device",
        "qemu:virtio-rng-pci\n",
        "qemu:virtio-rng-pci,id=a\0b",
    ],
)
def test_a_mistake_is_explained(text: str) -> None:
    with pytest.raises(BadAddress) as caught:
        parse(text)
    assert caught.value.seen is not None
    assert caught.value.expected
    assert caught.value.remedy
    assert caught.value.exit_code == 2


_names = st.from_regex(r"virtio-[a-z0-9-]{1,20}", fullmatch=True)
_options = st.lists(st.from_regex(r"[a-z-]{1,8}=[a-zA-Z0-9/._]{0,12}", fullmatch=True), max_size=3)
_paths = st.from_regex(r"(/[a-z._]{1,8}){1,4}", fullmatch=True)


@given(
    machine=st.sampled_from(MACHINES),
    name=_names,
    options=_options,
    ram=st.none() | st.integers(RAM_MINIMUM // MIB, RAM_MAXIMUM // MIB),
    legacy=st.none() | st.booleans(),
    iommu=st.none() | st.sampled_from(IOMMUS),
    qmp=st.none() | _paths,
    binary=st.none() | _paths,
)
def test_what_is_put_together_comes_apart(
    machine: str,
    name: str,
    options: list[str],
    ram: int | None,
    legacy: bool | None,
    iommu: str | None,
    qmp: str | None,
    binary: str | None,
) -> None:
    if machine not in MMIO_MACHINES:
        legacy = None
    keys = {
        "ram": None if ram is None else f"{ram}M",
        "legacy": None if legacy is None else ("on" if legacy else "off"),
        "iommu": iommu,
        "qmp": qmp,
        "binary": binary,
    }
    head = ",".join([machine, *(f"{key}={value}" for key, value in keys.items() if value is not None)])
    device = ",".join([name, *options])
    address = parse(f"qemu:{head}/{device}")
    assert address.machine == machine
    assert address.device == device
    assert address.ram == (RAM_DEFAULT if ram is None else ram * MIB)
    assert address.legacy is legacy
    assert address.iommu == (iommu or "none")
    assert (address.qmp, address.binary) == (qmp, binary)


@given(st.text(max_size=40) | st.text("qemu:35pc,=/virtio-rngm1G", max_size=40).map(lambda text: "qemu:" + text))
def test_any_text_parses_or_is_a_bad_address(text: str) -> None:
    try:
        address = parse(text)
    except BadAddress:
        return
    assert str(address) == text
    assert address.device.startswith("virtio-")
    assert address.machine in MACHINES


@pytest.mark.parametrize(
    "text",
    [
        "qemu:q35,iommu=virtio/virtio-rng-pci",
        "qemu:pc,iommu=intel/virtio-rng-pci",
        "qemu:virt,iommu=intel/virtio-rng-pci",
    ],
)
def test_an_iommu_that_a_machine_has_not_is_refused(text: str) -> None:
    with pytest.raises(NotSupported, match="no IOMMU of this kind") as caught:
        open_address(text)
    assert "q35" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("machine", "device", "others"),
    [
        ("q35", "virtio-rng-device", "microvm or virt"),
        ("pc", "virtio-balloon-device,id=x", "microvm or virt"),
        ("microvm", "virtio-rng-pci,disable-modern=on", "q35 or pc or virt"),
    ],
)
def test_a_device_without_its_bus_is_told_so_and_where_it_would_fit(
    machine: str, device: str, others: str
) -> None:
    with pytest.raises(BadAddress, match="has no bus for") as caught:
        open_address(f"qemu:{machine}/{device}")
    assert others in (caught.value.remedy or "")
    assert caught.value.exit_code == 2


def test_more_memory_than_a_machine_can_have_is_refused() -> None:
    with pytest.raises(BadAddress, match="so much memory"):
        open_address("qemu:virt,ram=256G/virtio-rng-device")


@pytest.mark.parametrize(
    ("machine", "device", "package"),
    [("q35", "virtio-rng-pci", "qemu-system-x86"), ("virt", "virtio-rng-device", "qemu-system-arm")],
)
def test_a_missing_qemu_names_the_package(tmp_path, machine: str, device: str, package: str) -> None:
    with pytest.raises(QemuMissing) as caught:
        open_address(f"qemu:{machine},binary={tmp_path}/qemu/{device}")
    assert (caught.value.remedy or "").endswith(f"apt-get install {package}")
    assert caught.value.exit_code == 4


def test_a_qmp_path_never_overwrites_a_file(tmp_path) -> None:
    precious = tmp_path / "letter"
    precious.write_text("dear")
    with pytest.raises(UvirtioError, match="no socket"):
        Machine(devices=["virtio-rng-pci"], qmp_path=str(precious))
    assert precious.read_text() == "dear"


def test_a_machine_takes_virtio_devices_only() -> None:
    with pytest.raises(BadAddress):
        Machine(devices=["e1000"])


# --- what a device is supplied with ---


def test_options_of_a_device() -> None:
    assert take_apart("virtio-rng-pci") == ("virtio-rng-pci", {})
    assert take_apart("virtio-blk-pci,id=a,drive=b,,c") == ("virtio-blk-pci", {"id": "a", "drive": "b,c"})


def test_each_device_gets_an_id_of_its_own() -> None:
    supply = Supply()
    for device in ("virtio-rng-pci", "virtio-rng-pci,id=dev2", "virtio-rng-pci", "virtio-rng-pci,id=mine"):
        supply.add(device)
    assert [ident for ident, _ in supply.devices] == ["dev0", "dev2", "dev3", "mine"]
    assert supply.devices[0][1] == "virtio-rng-pci,id=dev0"
    supply.close()


def test_a_disk_is_supplied_unless_given() -> None:
    supply = Supply()
    supply.add("virtio-blk-pci")
    supply.add("virtio-blk-pci,drive=mine")
    assert supply.devices[0][1].endswith("drive=dev0-disk")
    assert supply.devices[1][1] == "virtio-blk-pci,drive=mine,id=dev1"
    assert list(supply.files) == ["dev0"]
    supply.close()
    assert not supply.files


def test_memory_is_supplied_unless_given() -> None:
    supply = Supply()
    supply.add("virtio-mem-pci,requested-size=64M")
    assert supply.devices[0][1] == "virtio-mem-pci,requested-size=64M,id=dev0,memdev=dev0-memory"
    assert supply.slots == 1
    assert supply.hotplug == 1 << 30
    supply.close()
