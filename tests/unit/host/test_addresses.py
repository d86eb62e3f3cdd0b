"""One grammar of addresses: every form of docs/contract.md, and what is no address, at every entrance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio import cli, opening
from uvirtio.backends.qemu.address import parse as parse_qemu
from uvirtio.binding.bind import bind
from uvirtio.binding.discover import find, scan
from uvirtio.binding.restore import restore
from uvirtio.errors import BadAddress, DeviceAbsent, NotBound, NotVirtio, Refused, UsageError, UvirtioError
from uvirtio.host import addresses, denylist
from uvirtio.host.addresses import parse
from uvirtio.scripted.address import build as build_scripted


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


# --- the grammar --------------------------------------------------------------------------------------------

FORMS = [
    ("0000:03:00.0", "pci", "0000:03:00.0"),
    ("03:00.0", "pci", "0000:03:00.0"),
    ("3:00.0", "pci", "0000:03:00.0"),
    ("3:0.0", "pci", "0000:03:00.0"),
    ("0:03:00.0", "pci", "0000:03:00.0"),
    ("0000:0A:1F.7", "pci", "0000:0a:1f.7"),
    ("1:0a:00.0", "pci", "0001:0a:00.0"),
    ("010000:00:02.0", "pci", "10000:00:02.0"),
    ("1000A0:00:02.0", "pci", "1000a0:00:02.0"),
    ("pci@0000:03:00.0", "pci", "0000:03:00.0"),
    ("pci/0000:03:00.0", "pci", "0000:03:00.0"),
    ("mmio:0xFEB02E00", "mmio", "mmio:0xfeb02e00"),
    ("mmio:0x0a003e00", "mmio", "mmio:0xa003e00"),
    ("LNRO0005:07", "mmio", "LNRO0005:07"),
    ("lnro0005:0A", "mmio", "LNRO0005:0a"),
    ("a003e00.virtio_mmio", "mmio", "a003e00.virtio_mmio"),
    ("A003E00.virtio_mmio", "mmio", "a003e00.virtio_mmio"),
    ("10008000.virtio", "mmio", "10008000.virtio"),
    ("1c140000.virtio-p9", "mmio", "1c140000.virtio-p9"),
    ("virtio-mmio.3", "mmio", "virtio-mmio.3"),
    ("/dev/vhost-vdpa-0", "vdpa", "/dev/vhost-vdpa-0"),
    ("vdpa:vduse0", "vdpa", "vdpa:vduse0"),
    ("vdpa:\u00e4", "vdpa", "vdpa:\u00e4"),
    ("qemu:virtio-rng-pci", "qemu", "qemu:virtio-rng-pci"),
    ("scripted:rng,silent", "scripted", "scripted:rng,silent"),
    ("qemu:pc/virtio-rng-pci,disable-modern=on", "qemu", "qemu:pc/virtio-rng-pci,disable-modern=on"),
    ("virtio3", "virtio", "virtio3"),
    ("virtio@3", "virtio", "virtio3"),
    ("balloon", "type", "balloon"),
    ("virtio-block", "type", "blk"),
    ("eth0", "name", "eth0"),
    ("enp3s0f1.100", "name", "enp3s0f1.100"),
    ("vda", "name", "vda"),
    ("/dev/vda", "node", "/dev/vda"),
    ("/dev/input/event3", "node", "/dev/input/event3"),
    ("/dev/vfio/8", "node", "/dev/vfio/8"),
    ("/sys/class/net/eth0", "path", "/sys/class/net/eth0"),
    ("/sys/bus/pci/devices/0000:03:00.0/", "path", "/sys/bus/pci/devices/0000:03:00.0"),
]

MALFORMED = [
    "",
    " ",
    "03:00",
    "0000:03:00",
    "03:00.",
    "03:00.8",
    "0000:03:3f.0",
    "03:20.0",
    "103:00.0",
    "1000000000:03:00.0",
    "0000:03:00.0\n",
    " 03:00.0",
    "03:00.0 ",
    "0x03:00.0",
    "\u0663:00.0",
    "pci:0000:03:00.0",
    "mmio:feb02e00",
    "mmio:0x",
    "mmio:0x1g",
    "mmio:" + "0x" + "1" * 17,
    "LNRO0005:",
    "/dev/vhost-vdpa-0/..",
    "/dev/vhost-vdpa-",
    "/dev/vhost-vdpa-x",
    "/dev/vhost-vdpa-00",
    "/dev/",
    "/dev/../etc/passwd",
    "/sys",
    "/sys/../etc",
    "/sys//class",
    "/proc/1",
    "/etc/passwd",
    "../../etc",
    "vdpa:",
    "vdpa:..",
    "vdpa:a/b",
    "vdpa:a b",
    "qemu:",
    "scripted:",
    "eth0:1",
    "eth 0",
    "-x",
    "\x00",
    "1" * 5000,
]


@pytest.mark.parametrize(("text", "family", "canonical"), FORMS)
def test_every_form(text: str, family: str, canonical: str) -> None:
    found = parse(text)
    assert (found.family, found.canonical, str(found)) == (family, canonical, canonical)
    assert found.openable is (family in ("pci", "mmio", "vdpa", "qemu", "scripted"))
    assert parse(found.canonical) == found, "the canonical form is one of the forms"


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadAddress) as caught:
        parse(text)
    error = caught.value
    assert error.exit_code == 2 and error.remedy and len(error.message) < 400
    assert len(str(error.expected)) < 80, "one line, with the likely forms"
    assert any(form in str(error.expected) for form in ("0000:03:00.0", "qemu:[", "scripted:TYPE"))


def test_the_remedy_is_to_read_every_form() -> None:
    """The error names the man page, which is made of the table in docs/contract.md."""
    with pytest.raises(BadAddress, match="not the address") as caught:
        parse("eth 0")
    assert "`man uvirtio`" in str(caught.value.remedy)
    page = (Path(__file__).parents[3] / "man/uvirtio.1").read_text(encoding="utf-8").replace("\\-", "-")
    listed = page.partition(".SH ADDRESSES")[2].partition(".SH ")[0]
    for form in (
        *("0000:03:00.0", "3:0.0", "pci@", "pci/"),
        *("mmio:0x", "LNRO0005:07", "a003e00.virtio_mmio", "virtio-mmio.3"),
        *(
            "/dev/vhost-vdpa-0",
            "vdpa:NAME",
            "qemu:[MACHINE",
            "scripted:TYPE",
            "eth0",
            "/dev/vda",
            "/sys",
            "virtio3",
            "virtio@3",
        ),
    ):
        assert form in listed


@pytest.mark.parametrize(("text", "understood"), [("qemu:", parse_qemu), ("scripted:", build_scripted)])
def test_what_follows_is_asked_for(text: str, understood: Callable[[str], object]) -> None:
    with pytest.raises(BadAddress, match="names no device") as caught:
        parse(text)
    words = str(caught.value.remedy).replace(",", "").split()
    named = [word for word in words if word.startswith(text)]
    assert len(named) == 2
    for word in named:
        assert parse(word).family == text.rstrip(":")
        understood(word)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("00:1f.9", "function 9 is not 0 to 7"),
        ("00:1f.77", "function 77 is not 0 to 7"),
        ("0000:03:3f.0", "device 3f is not 0 to 1f"),
        ("0000:103:00.0", "bus 103 is not 0 to ff"),
        ("100000000:03:00.0", "domain 100000000 is not 0 to ffffffff"),
        ("03:00", "ends in a dot and the function"),
        ("", "it is empty"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(BadAddress) as caught:
        parse(text)
    message = f"{text!r} is not the address of a device: {why}"
    assert caught.value.message == message or (why.startswith("ends in") and why in caught.value.message)


def test_parts() -> None:
    assert parse("mmio:0xfeb02e00").base == parse("feb02e00.virtio").base == 0xFEB02E00
    assert parse("LNRO0005:07").base is None
    assert (parse("vdpa:a").name, parse("3:0.1").name, parse("/dev/input/event3").name) == (
        "a", "0000:03:00.1", "input/event3")  # fmt: skip


@given(st.text(max_size=40))
def test_parsing_is_idempotent_or_refuses(text: str) -> None:
    try:
        found = parse(text)
    except BadAddress:
        return
    assert parse(found.canonical) == found


@given(
    st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7),
    st.tuples(st.integers(1, 8), st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["", "pci@", "pci/", "PCI@"]), st.booleans(),
)  # fmt: skip
def test_all_spellings_of_a_pci_address_meet(
    domain: int, bus: int, device: int, function: int, widths: tuple[int, int, int], before: str, upper: bool
) -> None:
    one, two, three = widths
    spelled = f"{domain:0{one}x}:{bus:0{two}x}:{device:0{three}x}.{function}"
    expected = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
    assert parse(before + (spelled.upper() if upper else spelled)).canonical == expected


def test_spellings_are_of_the_address_and_begin_with_it() -> None:
    found = list(addresses.spellings("3:00.0"))
    assert found[0] == "0000:03:00.0" and {"03:00.0", "3:0.0", "0:03:00.0", "pci@0000:03:00.0"} <= set(found)
    assert all(parse(one).canonical == "0000:03:00.0" for one in found)
    assert not any(one.startswith(("03:", "3:")) for one in addresses.spellings("0001:03:00.0"))
    assert list(addresses.spellings("LNRO0005:0A")) == ["lnro0005:0a"]
    assert list(addresses.spellings("not an address")) == ["not an address"]


# --- every entrance takes the same --------------------------------------------------------------------------


def _command(*argv: str) -> Callable[[str, FakeSys], int]:
    def enter(text: str, fake: FakeSys) -> int:
        return cli.main([*argv, "--json", "--root", str(fake.top), "--", text])

    return enter


def _library(call: Callable[[str, FakeSys], object]) -> Callable[[str, FakeSys], int]:
    def enter(text: str, fake: FakeSys) -> int:
        try:
            call(text, fake)
        except UvirtioError as error:
            return error.exit_code
        return 0

    return enter


ENTRANCES: dict[str, Callable[[str, FakeSys], int]] = {
    "open": _library(lambda text, fake: opening.open_function(text, roots=fake.roots)),
    "bind": _library(lambda text, fake: bind([find(text, fake.roots, aliases=False)], fake.roots)),
    "restore": _library(lambda text, fake: restore(fake.roots, [text])),
    "inspect": _command("inspect"),
    "plan": _command("plan"),
    "cli bind": _command("bind"),
    "cli restore": _command("restore"),
    "diag": _command("diag"),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("text", [text for text in MALFORMED if "\x00" not in text])
def test_no_entrance_takes_what_is_no_address(entrance: str, text: str, fake: FakeSys) -> None:
    assert ENTRANCES[entrance](text, fake) == 2


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("text", [text for text, family, _ in FORMS if family in ("pci", "mmio", "vdpa")])
def test_every_entrance_takes_every_address(entrance: str, text: str, fake: FakeSys) -> None:
    # Well formed, and no such device here. A window may be given by hand: that is refused for want of a consent.
    by_hand = text.startswith("mmio:") and entrance in ("open", "diag")
    assert ENTRANCES[entrance](text, fake) == (3 if by_hand else 5)


@pytest.mark.parametrize("text", [text for text, _, canonical in FORMS if canonical == "0000:03:00.0"])
def test_every_spelling_leads_to_the_device(text: str, fake: FakeSys, capsys: pytest.CaptureFixture[str]) -> None:
    fake.pci("0000:03:00.0", "rng", group=7)
    fake.driver("vfio-pci")
    assert find(text, fake.roots, aliases=False).address == "0000:03:00.0"
    for verb in ("inspect", "plan"):
        assert cli.main([verb, text, "--json", "--root", str(fake.top)]) == 0
        assert json.loads(capsys.readouterr().out)["address"] == "0000:03:00.0"
    with pytest.raises(NotBound) as caught:
        opening.open_function(text, roots=fake.roots)
    assert caught.value.remedy == "uvirtio bind 0000:03:00.0"
    fake.text(fake.roots.etc / "uvirtio/deny", text + "\n")
    assert denylist.denying(["0000:03:00.0"], fake.roots) == text
    assert denylist.denying(["0000:03:00.1", "0000:13:00.0", "0003:00:00.0"], fake.roots) is None
    with pytest.raises(Refused):
        opening.open_function("0000:03:00.0", roots=fake.roots)


# --- by what people have at hand ----------------------------------------------------------------------------


def machine(fake: FakeSys) -> FakeSys:
    """A disk, two interfaces, a keyboard, a card that is not virtio, and things that are on no card."""
    disk = fake.pci("0000:03:00.0", "blk")
    fake.child(disk, "virtio0/block/vda", "block", {"dev": "254:0"})
    fake.child(disk, "virtio0/block/vda/vda1", "block", {"dev": "254:1"})
    net = fake.pci("0000:04:00.0", "net")
    fake.child(net, "virtio1/net/eth0", "net")
    fake.child(net, "virtio1/net/wan.5", "net")
    keyboard = fake.pci("0000:05:00.0", "input")
    fake.child(keyboard, "virtio2/input/input3", "input")
    fake.child(keyboard, "virtio2/input/input3/event3", "input", {"dev": "13:67"})
    other = fake.pci("0000:07:00.0", None, pci_id=(0x8086, 0x100E), driver="e1000")
    fake.child(other, "net/eth1", "net")
    fake.vdpa("vduse0", driver="virtio_vdpa")
    fake.child(fake.sys / "devices/virtual/vdpa/vduse0", "virtio3/block/vdb", "block", {"dev": "254:16"})
    fake.mmio("LNRO0005:07", "balloon")
    loop = fake.sys / "devices/virtual/net/lo"
    loop.mkdir(parents=True)
    fake.link(fake.sys / "class/net/lo", loop)
    for node in ("vda", "vda1", "vdb", "input/event3", "null"):
        fake.text(fake.roots.dev / node, "")
    (fake.roots.dev / "disk/by-id").mkdir(parents=True)
    (fake.roots.dev / "disk/by-id/virtio-serial1").symlink_to("../../vda")
    return fake


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vda", "0000:03:00.0"),
        ("vda1", "0000:03:00.0"),
        ("/dev/vda", "0000:03:00.0"),
        ("/dev/vda1", "0000:03:00.0"),
        ("/dev/disk/by-id/virtio-serial1", "0000:03:00.0"),
        ("eth0", "0000:04:00.0"),
        ("wan.5", "0000:04:00.0"),
        ("event3", "0000:05:00.0"),
        ("/dev/input/event3", "0000:05:00.0"),
        ("vdb", "vdpa:vduse0"),
        ("/sys/class/net/eth0", "0000:04:00.0"),
        ("/sys/class/block/vda", "0000:03:00.0"),
        ("/sys/bus/pci/devices/0000:04:00.0", "0000:04:00.0"),
        ("/sys/bus/pci/devices/0000:04:00.0/", "0000:04:00.0"),
        ("/sys/bus/pci/drivers/virtio-pci/0000:04:00.0", "0000:04:00.0"),
        ("/sys/bus/virtio/devices/virtio1", "0000:04:00.0"),
        ("/sys/devices/pci0000:00/0000:03:00.0/virtio0/block/vda", "0000:03:00.0"),
        ("/sys/devices/platform/LNRO0005:07", "LNRO0005:07"),
        ("/sys/bus/vdpa/devices/vduse0", "vdpa:vduse0"),
        ("pci@0000:04:00.0", "0000:04:00.0"),
        ("virtio@1", "0000:04:00.0"),
        ("virtio1", "0000:04:00.0"),
    ],
)
def test_a_device_is_found_by_what_the_kernel_made_of_it(
    fake: FakeSys, text: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(fake)
    assert find(text, fake.roots).address == address
    assert cli.main(["inspect", text, "--json", "--root", str(fake.top)]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == address
    assert cli.main(["plan", text, "--json", "--root", str(fake.top)]) in (0, 3, 4)
    assert json.loads(capsys.readouterr().out)["address"] == address
    if not text.startswith("virtio"):
        assert find(text, fake.roots, aliases=False).address == address
        with pytest.raises(UvirtioError) as caught:  # the kernel's driver has it
            opening.open_function(text, roots=fake.roots)
        assert address in caught.value.message


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("eth1", NotVirtio, "eth1 belongs to 0000:07:00.0, which is no virtio device"),
        ("/sys/class/net/eth1", NotVirtio, "0000:07:00.0"),
        ("lo", NotVirtio, "lo belongs to no device of a bus"),
        ("/sys/class/net", NotVirtio, "no device of a bus"),
        ("eth7", BadAddress, "no interface, disk"),
        ("toaster", BadAddress, "no interface, disk"),
        ("/dev/vdz", DeviceAbsent, "there is no /dev/vdz"),
        ("/dev/null", NotVirtio, "no device of a bus"),
        ("/sys/class/net/eth7", DeviceAbsent, "there is no /sys/class/net/eth7"),
        ("/sys/devices/pci0000:00/0000:03:00.0/0000:99:00.0", DeviceAbsent, "there is no"),
        ("/sys/out/x", BadAddress, "leads out of /sys"),
    ],
)
def test_names_that_lead_to_no_virtio_device(
    fake: FakeSys, text: str, error: type[UvirtioError], words: str
) -> None:
    machine(fake)
    (fake.sys / "out").symlink_to(fake.top / "etc")
    (fake.top / "etc/x").mkdir()
    with pytest.raises(error) as caught:
        find(text, fake.roots)
    assert words in caught.value.message and caught.value.remedy
    if "0000:07:00.0" in words:
        assert str(caught.value.seen).startswith("PCI id 8086:"), "what it is instead"
    with pytest.raises(error):
        opening.open_function(text, roots=fake.roots)


def test_a_name_of_two_devices_is_not_guessed_at(fake: FakeSys) -> None:
    for address, virtio in (("0000:03:00.0", "virtio0"), ("0000:04:00.0", "virtio1")):
        path = fake.pci(address, "net")
        fake.child(path, f"{virtio}/net/x{virtio}", "net")
    fake.link(fake.sys / "class/net/same", fake.sys / "devices/pci0000:00/0000:03:00.0/virtio0/net/xvirtio0")
    fake.link(fake.sys / "class/block/same", fake.sys / "devices/pci0000:00/0000:04:00.0/virtio1/net/xvirtio1")
    with pytest.raises(UsageError) as caught:
        find("same", fake.roots)
    assert caught.value.seen == ["0000:03:00.0", "0000:04:00.0"]


def test_a_node_of_two_devices_is_not_guessed_at(fake: FakeSys) -> None:
    for address in ("0000:03:00.0", "0000:04:00.0"):
        fake.pci(address, "rng", driver="vfio-pci", group=8)
    fake.pci("0000:05:00.0", "rng", driver="vfio-pci", group=9)
    assert find("/dev/vfio/9", fake.roots).address == "0000:05:00.0"
    with pytest.raises(UsageError) as caught:
        find("/dev/vfio/8", fake.roots)
    assert caught.value.seen == ["0000:03:00.0", "0000:04:00.0"]


def test_bind_by_an_interface_binds_its_device(fake: FakeSys) -> None:
    machine(fake)
    with pytest.raises(UvirtioError) as caught:  # it has an interface, and no IOMMU: the rules go on as ever
        bind([find("eth0", fake.roots, aliases=False)], fake.roots)
    assert "0000:04:00.0" in caught.value.message


@pytest.mark.parametrize(
    "line", ["eth0", "/dev/input/event3", "/sys/class/net/eth0", "VDB", "vdb", "Pci@0000:04:00.0"]
)
def test_the_deny_list_takes_such_names_too(fake: FakeSys, line: str) -> None:
    machine(fake)
    fake.text(fake.roots.etc / "uvirtio/deny", line + "\n")
    denied = [one.address for one in scan(fake.roots) if denylist.denying(one.names, fake.roots)]
    expected = {"eth0": "0000:04:00.0", "/sys/class/net/eth0": "0000:04:00.0", "Pci@0000:04:00.0": "0000:04:00.0",
                "/dev/input/event3": "0000:05:00.0", "vdb": "vdpa:vduse0"}  # fmt: skip
    assert denied == ([expected[line]] if line in expected else [])
    assert (line in denylist.without_effect(fake.roots)) is (line not in expected)


# --- list shows no name that no verb takes ------------------------------------------------------------------


def windows(fake: FakeSys) -> FakeSys:
    fake.mmio("LNRO0005:07", "balloon")
    fake.mmio("10008000.virtio", compatible=b"virtio,mmio\0")
    fake.mmio("a003e00.virtio_mmio", "rng", compatible=b"virtio,mmio\0")
    fake.mmio("virtio-mmio.0")
    fake.text(
        fake.roots.proc / "cmdline", "virtio_mmio.device=1K@0xfeb00c00:13 virtio_mmio.device=512@0xfeb00e00:12:7\n"
    )
    return fake


def user_drivers(fake: FakeSys) -> FakeSys:
    fake.pci("0000:05:00.0", "rng", driver="vfio-pci", group=9)
    path = fake.pci("10000:06:00.0", "rng", driver="uio_pci_generic")
    (path / "uio/uio4").mkdir(parents=True)
    noiommu = fake.pci("0000:08:00.0", "rng", driver="vfio-pci", group=0)
    fake.text(noiommu / "iommu_group/name", "vfio-noiommu\n")
    fake.vdpa("vdpa0", index=3)
    fake.vdpa("odd-name.1", driver=None)
    function = fake.pci("0000:09:00.0", "balloon", driver="vp-vdpa")
    fake.vdpa("vdpa9", driver=None)
    (fake.sys / "devices/virtual/vdpa/vdpa9").rename(function / "vdpa9")
    (fake.sys / "bus/vdpa/devices/vdpa9").unlink()
    fake.link(fake.sys / "bus/vdpa/devices/vdpa9", function / "vdpa9")
    return fake


@pytest.mark.parametrize("make", [machine, windows, user_drivers])
def test_list_shows_no_name_that_no_verb_takes(
    fake: FakeSys, make: Callable[[FakeSys], FakeSys], capsys: pytest.CaptureFixture[str]
) -> None:
    make(fake)
    root = ["--json", "--root", str(fake.top)]
    assert cli.main(["list", *root]) == 0
    listed = json.loads(capsys.readouterr().out)["devices"]
    assert listed
    for device in listed:
        named = [device[column] for column in ("address", "virtio_name", "node") if device[column]]
        for name in named:
            for verb in ("inspect", "plan"):
                assert cli.main([verb, name, *root]) in (0, 3, 4), name
                document = json.loads(capsys.readouterr().out)
                assert document["address"] == device["address"], name
        parent = device["parent"]
        if parent and addresses.is_pci(parent):
            assert find(parent, fake.roots).address == parent
    if make is windows:
        for one in listed:
            fake.text(fake.roots.etc / "uvirtio/deny", one["address"] + "\n")
            denied = [found.address for found in scan(fake.roots) if denylist.denying(found.names, fake.roots)]
            assert denied == [one["address"]]
