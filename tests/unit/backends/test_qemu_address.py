"""The grammar of ``qemu:`` addresses, and what a device is supplied with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

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
    parse,
    ram_of,
)
from uvirtio.backends.qemu.machine import Machine
from uvirtio.backends.qemu.models import MODELS, Model, is_big_endian
from uvirtio.backends.qemu.process import check_target, target_of
from uvirtio.backends.qemu.single import open_address
from uvirtio.backends.qemu.supply import Supply, image_at, images_of, take_apart
from uvirtio.errors import BadAddress, NotSupported, QemuMissing, UsageError, UvirtioError


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


def test_a_disk_has_its_image() -> None:
    address = parse("qemu:q35,ram=64M,file=/tmp/virtio-images/a.img/virtio-blk-pci,serial=x")
    assert (address.file, address.device) == ("/tmp/virtio-images/a.img", "virtio-blk-pci,serial=x")
    assert parse("qemu:microvm,file=a.img/virtio-blk-device").file == "a.img"
    assert parse("qemu:virtio-blk-pci").file is None


def test_the_name_of_a_function_of_a_machine_is_no_address() -> None:
    with pytest.raises(BadAddress, match="already running") as caught:
        parse("qemu:virt@99/virtio-blk-pci,id=mine")
    assert "machine.open(0)" in (caught.value.remedy or "")


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
        "qemu:q35,ram=1G",
        "qemu:s390x/virtio-rng-ccw",
        "qemu:loongarch64,ram=512M/virtio-rng-pci",
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
        "qemu:q35,file=/tmp/a.img/virtio-rng-pci",
        "qemu:q35,file=/tmp/a.img/virtio-blk-pci,drive=mine",
        "qemu:q35@4711/virtio-rng-pci,id=dev0",
    ],
)
def test_a_mistake_is_explained(text: str) -> None:
    with pytest.raises(BadAddress) as caught:
        parse(text)
    assert caught.value.seen is not None
    assert caught.value.expected
    assert caught.value.remedy
    assert caught.value.exit_code == 2


_names = st.just("virtio-blk-pci") | st.from_regex(r"virtio-[a-z0-9-]{1,20}", fullmatch=True)
_options = st.lists(st.from_regex(r"[a-z-]{1,8}=[a-zA-Z0-9/._]{0,12}", fullmatch=True), max_size=3)
_paths = st.from_regex(r"(/[a-z._]{1,8}){1,4}", fullmatch=True)


@given(
    machine=st.sampled_from(MACHINES),
    name=_names,
    options=_options,
    ram=st.none() | st.integers(1024, RAM_MAXIMUM // MIB),  # every machine takes 1 GiB
    legacy=st.none() | st.booleans(),
    iommu=st.none() | st.sampled_from(IOMMUS),
    qmp=st.none() | _paths,
    binary=st.none() | _paths,
    file=st.none() | _paths,
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
    file: str | None,
) -> None:
    if not name.startswith("virtio-blk") or "drive=" in ",".join(options):
        file = None
    if machine not in MMIO_MACHINES:
        legacy = None
    keys = {
        "ram": None if ram is None else f"{ram}M",
        "legacy": None if legacy is None else ("on" if legacy else "off"),
        "iommu": iommu,
        "qmp": qmp,
        "binary": binary,
        "file": file,
    }
    head = ",".join([machine, *(f"{key}={value}" for key, value in keys.items() if value is not None)])
    device = ",".join([name, *options])
    address = parse(f"qemu:{head}/{device}")
    assert address.machine == machine
    assert address.device == device
    assert address.ram == (ram_of(machine) if ram is None else ram * MIB)
    assert address.legacy is legacy
    assert address.iommu == (iommu or "none")
    assert (address.qmp, address.binary, address.file) == (qmp, binary, file)


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
        ("q35", "virtio-rng-device", "microvm or virt or riscv64"),
        ("pc", "virtio-balloon-device,id=x", "microvm or virt or riscv64"),
        ("q35", "virtio-pmem,id=x", "microvm or virt or riscv64"),
        ("q35", "virtio-mem", "microvm or virt or riscv64"),
        ("loongarch64", "virtio-rng-device", "microvm or virt or riscv64"),
        ("microvm", "virtio-rng-pci,disable-modern=on", "q35 or pc or virt or riscv64 or loongarch64"),
        ("microvm", "virtio-pmem-pci", "q35 or pc or virt or riscv64 or loongarch64"),
    ],
)
def test_a_device_without_its_bus_is_told_so_and_where_it_would_fit(
    machine: str, device: str, others: str
) -> None:
    with pytest.raises(BadAddress, match="has no bus for") as caught:
        open_address(f"qemu:{machine}/{device}")
    assert others in (caught.value.remedy or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("machine", "gibibytes", "why"),
    [
        ("virt", 256, "so much"),
        ("riscv64", 15, "so much"),
        ("q35", 257, "so much"),
        ("loongarch64", 0.5, "so little"),
    ],
)
def test_memory_that_a_machine_cannot_have_is_refused(machine: str, gibibytes: float, why: str) -> None:
    with pytest.raises(BadAddress, match=why) as caught:
        Machine(machine, ram=int(gibibytes * 1024) * MIB, binary="/nothing")
    size = str(caught.value.remedy).partition("ram=")[2].partition(",")[0]
    device = "virtio-rng-pci"
    assert parse(f"qemu:{machine},ram={size}/{device}").ram == parse(f"qemu:{machine}/{device}").ram
    with pytest.raises(BadAddress):
        open_address(f"qemu:{machine},ram={int(gibibytes * 1024)}M/{device}")


@pytest.mark.parametrize("name", ["s390x", "s390-ccw-virtio-7.2", "ppc64", "pseries", "sparc64", "m68k"])
def test_a_big_endian_machine_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(BadAddress, match=r"big-endian.*VERSION_1") as bad:
        parse(f"qemu:{name}/virtio-rng-pci")
    assert "qemu:virtio-rng-pci" in str(bad.value.remedy)
    with pytest.raises(NotSupported, match=r"big-endian.*VERSION_1"):
        Machine(name)


def test_a_big_endian_qemu_is_refused_before_it_is_started(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-s390x"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    with pytest.raises(NotSupported, match="big-endian") as caught:
        open_address(f"qemu:riscv64,binary={program}/virtio-rng-pci")
    assert caught.value.seen == "s390x" and "qemu-system-riscv64" in str(caught.value.remedy)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_program_of_a_machine_is_for_its_cpu(model: Model) -> None:
    check_target(target_of(f"/opt/bin/{model.binary}"), model, model.binary)
    with pytest.raises(NotSupported, match=f"does not have the machine {model.name}"):
        check_target("sh4", model, "qemu-system-sh4")
    assert not is_big_endian(model.name) and target_of("/opt/my-qemu") == ""


@pytest.mark.parametrize(
    ("machine", "device", "package"),
    [
        ("q35", "virtio-rng-pci", "qemu-system-x86"),
        ("virt", "virtio-rng-device", "qemu-system-arm"),
        (
            "riscv64",
            "virtio-rng-device",
            "qemu-system-riscv, or in an older release: apt-get install qemu-system-misc",
        ),
        ("loongarch64", "virtio-rng-pci", "qemu-system-misc"),
    ],
)
def test_a_missing_qemu_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, device: str, package: str
) -> None:
    with pytest.raises(QemuMissing) as caught:
        open_address(f"qemu:{machine},binary={tmp_path}/qemu/{device}")
    assert caught.value.remedy == f"name another with binary=, or none: apt-get install {package}"
    assert caught.value.exit_code == 4
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuMissing) as caught:
        open_address(f"qemu:{machine}/{device}")
    assert caught.value.remedy == f"install it: apt-get install {package}"


def test_a_qmp_path_never_overwrites_a_file(tmp_path) -> None:
    precious = tmp_path / "letter"
    precious.write_text("dear")
    with pytest.raises(UvirtioError, match="not a socket"):
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
    assert [part.id for part in supply.parts] == ["dev0", "dev2", "dev3", "mine"]
    assert supply.parts[0].device == "virtio-rng-pci,id=dev0"
    with pytest.raises(UsageError, match="mine is taken"):
        supply.add("virtio-blk-pci,id=mine")
    supply.drop("dev3")
    assert supply.add("virtio-rng-pci").id == "dev4", "what was unplugged may still be named elsewhere"
    supply.close()


def test_a_disk_is_supplied_unless_given() -> None:
    supply = Supply()
    supply.add("virtio-blk-pci")
    supply.add("virtio-blk-pci,drive=mine")
    assert supply.parts[0].device.endswith("drive=dev0-disk")
    assert supply.parts[1].device == "virtio-blk-pci,drive=mine,id=dev1"
    assert list(supply.files) == ["dev0"]
    supply.close()
    assert not supply.files


def test_memory_is_supplied_unless_given() -> None:
    supply = Supply()
    supply.add("virtio-mem-pci,requested-size=64M")
    assert supply.parts[0].device == "virtio-mem-pci,requested-size=64M,id=dev0,memdev=dev0-memory"
    path = f"/proc/self/fd/{supply.files['dev0']}"
    assert supply.arguments() == [
        "-object",
        f"memory-backend-file,id=dev0-memory,size={1 << 30},share=on,mem-path={path}",
        "-device",
        "virtio-mem-pci,requested-size=64M,id=dev0,memdev=dev0-memory",
    ]
    assert supply.slots == 1
    assert supply.hotplug == 1 << 30
    supply.close()


@pytest.mark.parametrize(
    ("device", "arguments", "made"),
    [
        ("virtio-sound-pci", ["-audiodev", "none,id=dev0-audio"], ",id=dev0,audiodev=dev0-audio"),
        ("virtio-sound-pci,audiodev=mine", [], ",audiodev=mine,id=dev0"),
        ("virtio-9p-device", ["-fsdev", "synth,id=dev0-files"], ",id=dev0,fsdev=dev0-files,mount_tag=dev0"),
        ("virtio-9p-pci,fsdev=mine,mount_tag=x", [], ",fsdev=mine,mount_tag=x,id=dev0"),
        (
            "virtio-net-pci",
            ["-netdev", "user,id=dev0-net,restrict=on"],
            ",id=dev0,romfile=,netdev=dev0-net",
        ),
        ("virtio-net-device", ["-netdev", "user,id=dev0-net,restrict=on"], ",id=dev0,netdev=dev0-net"),
        ("virtio-net-pci,romfile=,netdev=mine", [], ",romfile=,netdev=mine,id=dev0"),
        (
            "virtio-balloon-pci,free-page-hint=on",
            ["-object", "iothread,id=dev0-thread"],
            ",free-page-hint=on,id=dev0,iothread=dev0-thread",
        ),
        (
            "virtio-balloon-pci,free-page-hint=on,iothread=mine",
            ["-object", "iothread,id=mine"],
            ",free-page-hint=on,iothread=mine,id=dev0",
        ),
        ("virtio-balloon-device,free-page-hint=off", [], ",free-page-hint=off,id=dev0"),
    ],
)
def test_what_a_device_lacks_is_supplied(device: str, arguments: list[str], made: str) -> None:
    supply = Supply()
    supply.add(device)
    assert supply.arguments() == [*arguments, "-device", device.partition(",")[0] + made]


def test_a_console_has_a_port_whose_other_end_is_here() -> None:
    supply = Supply()
    supply.add("virtio-serial-pci")
    peer = supply.peers["dev0"]
    port = ["-device", "virtconsole,bus=dev0.0,chardev=dev0-port,id=dev0-console"]
    chardev = ["-chardev", f"socket,id=dev0-port,fd={peer.fileno()}"]
    assert supply.arguments() == [*chardev, "-device", "virtio-serial-pci,id=dev0", *port]
    supply.drop("dev0")
    assert not supply.peers and peer.fileno() == -1
    supply.close()


@pytest.mark.parametrize(
    ("late", "elsewhere"),
    [
        (True, ""),
        (False, "-device virtconsole,bus=dev0.0,chardev=mine"),
        (False, "-device virtserialport,chardev=far"),
    ],
)
def test_a_console_has_no_other_port_where_it_cannot_or_has_one(late: bool, elsewhere: str) -> None:
    supply = Supply(elsewhere=elsewhere)
    part = supply.add("virtio-serial-pci", late=late)
    assert not supply.peers and not part.behind and not part.at_start
    assert supply.arguments() == ["-device", "virtio-serial-pci,id=dev0"]


def test_what_has_to_be_there_at_the_start() -> None:
    supply = Supply()
    devices = ["virtio-mem-pci", "virtio-9p-pci", "virtio-sound-pci", "virtio-net-pci", "virtio-blk-pci"]
    assert [supply.add(device).at_start for device in devices] == ["memory", "fsdev", "audiodev", "", ""]
    supply.close()


# --- images of the caller's ---


def test_an_image_is_what_the_disk_is_made_of(tmp_path: Path) -> None:
    image = tmp_path / "a,b.img"
    image.write_bytes(bytes(1 << 20))
    supply = Supply()
    supply.add("virtio-blk-pci", image_at(image))
    assert supply.parts[0].device == "virtio-blk-pci,id=dev0,drive=dev0-image"
    drive = supply.arguments()[1]
    assert drive == f"if=none,id=dev0-image,format=raw,file={tmp_path}/a,,b.img,readonly=off"
    assert not supply.files
    with pytest.raises(UsageError, match="no use for the image"):
        supply.add("virtio-rng-pci", image_at(image))


def test_images_go_to_the_disks_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(512))
    devices = [
        "virtio-rng-pci",
        "virtio-blk-pci",
        "virtio-blk-pci,drive=mine",
        "virtio-blk-device",
        "virtio-blk-pci",
    ]
    found = images_of(devices, [str(tmp_path / "a"), None, tmp_path / "b"])
    assert [None if one is None else one.path.name for one in found] == [None, "a", None, None, "b"]
    assert images_of(devices, []) == [None] * 5
    with pytest.raises(UsageError, match="more drives than disks"):
        images_of(devices[:2], [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.write_bytes(b"QFI\xfb" + bytes(1000)), "a qcow2 image"),
        (lambda path: path.symlink_to("/dev/null"), "no regular file"),
    ],
    ids=["missing", "folder", "fifo", "qcow2", "device"],
)
def test_what_can_be_no_disk_is_refused(tmp_path: Path, make: Callable[[Path], object], seen: str) -> None:
    make(tmp_path / "image")
    with pytest.raises(UsageError) as caught:
        image_at(tmp_path / "image")
    assert seen in caught.value.seen
    with pytest.raises(UsageError):
        Machine(devices=["virtio-blk-pci"], drives=[tmp_path / "image"], binary="/nothing")
    with pytest.raises(UsageError):
        open_address(f"qemu:q35,binary=/nothing,file={tmp_path}/image/virtio-blk-pci")


def test_a_path_with_a_zero_byte_is_no_file() -> None:
    with pytest.raises(UsageError, match="cannot be a disk"):
        image_at("a\0b")


# --- sockets ---


@pytest.mark.parametrize(
    ("machine", "ports", "iommu"),
    [("pc", 1, "none"), ("microvm", 1, "none"), ("q35", 17, "none"), ("q35", 1, "intel")],
)
def test_root_ports_that_cannot_be_had_are_refused(machine: str, ports: int, iommu: str) -> None:
    with pytest.raises(NotSupported) as caught:
        Machine(machine, root_ports=ports, iommu=iommu, binary="/nothing")
    assert caught.value.remedy
