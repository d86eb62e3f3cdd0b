"""udev-rules/: the helper on made-up trees, and what can be said about the rules file without a udev."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from uvirtio.host import denylist, drivers
from uvirtio.host.roots import Roots
from uvirtio.spec import features, ids

FOLDER = Path(__file__).resolve().parents[3] / "udev-rules"
HELPER = FOLDER / "uvirtio-node-safe"
RULES = FOLDER / "70-uvirtio.rules"

RNG, BALLOON, BRIDGE = 0x1044, 0x1045, 0x000C
ADDRESS = "0000:03:00.0"


class Tree:
    """A machine below a folder: functions, their IOMMU groups, nodes."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.pci = top / "sys/bus/pci/devices"
        self.groups = top / "sys/kernel/iommu_groups"
        self.notes = top / "run/uvirtio/translated"
        self.deny = top / "etc/uvirtio/deny"
        for folder in (self.pci, self.groups, top / "run", self.deny.parent, top / "dev/vfio"):
            folder.mkdir(parents=True)
        self.group_file = top / "etc/group"
        self.group_file.write_text(f"root:x:0:\nuvirtio:x:{os.getgid()}:alice,bob\nusers:x:100:\n")

    def function(
        self, address: str = ADDRESS, device: int = RNG, group: int = 7, vendor: int = 0x1AF4, kind: int = 0xFF0000
    ) -> Path:
        path = self.pci / address
        path.mkdir()
        for name, value in (
            ("vendor", f"0x{vendor:04x}"),
            ("device", f"0x{device:04x}"),
            ("class", f"0x{kind:06x}"),
        ):
            (path / name).write_text(f"{value}\n")
        members = self.groups / str(group) / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(path)
        (path / "iommu_group").symlink_to(self.groups / str(group))
        uevent = self.top / f"sys/class/vfio/{group}/uevent"
        uevent.parent.mkdir(parents=True, exist_ok=True)
        uevent.write_text("")
        self.node(group)
        return path

    def node(self, group: int = 7, mode: int = 0o600) -> Path:
        path = self.top / f"dev/vfio/{group}"
        path.touch()
        path.chmod(mode)
        return path

    def virtio(
        self, address: str = ADDRESS, *, status: str = "0x0000000f", bits: tuple[int, ...] = (32, 33)
    ) -> str:
        """What the kernel shows of the virtio device while its driver has it; the device's name."""
        path = self.pci / address / "virtio3"
        path.mkdir(exist_ok=True)
        (path / "status").write_text(f"{status}\n")
        (path / "features").write_text("".join("1" if bit in bits else "0" for bit in range(64)) + "\n")
        return path.name

    def seen(self, address: str = ADDRESS) -> None:
        """The function's driver negotiated translation, and then let go of it."""
        name = self.virtio(address)
        assert self.run("note", address, name) == {"UVIRTIO_TRANSLATED": "yes"}
        shutil.rmtree(self.pci / address / name)

    def run(self, *words: str, code: int = 0) -> dict[str, str]:
        done = subprocess.run(
            ["/bin/sh", str(HELPER), "--root", str(self.top), *words], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == code, done.stderr
        assert code or not done.stderr
        return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def safe(tree: Tree) -> Tree:
    """A machine whose group 7 is safe: each test spoils one thing."""
    tree.function()
    tree.seen()
    return tree


def test_a_safe_group_is_opened(safe):
    assert safe.run("group", "7") == {
        "UVIRTIO_LINKS": f"uvirtio/{ADDRESS}",
        "UVIRTIO_ACCESS": "uvirtio",
        "UVIRTIO_WHY": "the IOMMU holds every function of group 7",
    }


def no_group(tree: Tree) -> None:
    tree.group_file.write_text("root:x:0:\nuvirtio2:x:5:\n")


def no_group_file(tree: Tree) -> None:
    tree.group_file.unlink()


def never_seen(tree: Tree) -> None:
    tree.run("forget", ADDRESS)


def another_device(tree: Tree) -> None:
    """Gone, and another one at its address, before anybody was told."""
    kept = tree.pci / "kept"  # or the new folder might get the old one's inode, which sysfs never does
    (tree.pci / ADDRESS).rename(kept)
    for link in (tree.groups / "7/devices").iterdir():
        link.unlink()
    tree.function()


def with_balloon(tree: Tree) -> None:
    tree.function("0000:03:00.1", BALLOON)
    tree.seen("0000:03:00.1")


def with_unknown_neighbour(tree: Tree) -> None:
    tree.function("0000:03:00.1", RNG)


def with_disk_controller(tree: Tree) -> None:
    tree.function("0000:03:00.1", 0x2922, vendor=0x8086, kind=0x010601)


def with_isa_bridge(tree: Tree) -> None:
    tree.function("0000:03:00.1", 0x2918, vendor=0x8086, kind=0x060100)


def with_bridge_of_no_class(tree: Tree) -> None:
    (tree.function("0000:03:00.1", BRIDGE, vendor=0x1B36, kind=0x060400) / "class").unlink()


def with_platform_device(tree: Tree) -> None:
    (tree.groups / "7/devices/arm-thing.0").symlink_to(tree.top)


def denied(tree: Tree) -> None:
    tree.deny.write_text(f"# mine\n  {ADDRESS} # keep\n")


def denied_by_glob(tree: Tree) -> None:
    tree.deny.write_text("0000:00:*\n0000:0[3-5]:*")


def all_denied(tree: Tree) -> None:
    tree.deny.write_text("*\n")


def deny_list_unreadable(tree: Tree) -> None:
    tree.deny.mkdir()


def deny_list_dangling(tree: Tree) -> None:
    tree.deny.symlink_to("nowhere")


def unsafe_interrupts(tree: Tree) -> None:
    path = tree.top / "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    path.parent.mkdir(parents=True)
    path.write_text("Y\n")


def under(tree: Tree, driver: str) -> None:
    (tree.pci / ADDRESS / "driver").symlink_to(f"../../drivers/{driver}")


def under_a_variant(tree: Tree) -> None:
    """Linux 6.1 and later: by what VFIO makes of the function, whatever the driver is called."""
    under(tree, "any-name")
    (tree.pci / ADDRESS / "vfio-dev/vfio3").mkdir(parents=True)


def under_an_old_variant(tree: Tree) -> None:
    under(tree, "virtio_vfio_pci")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (under_a_variant, f"{ADDRESS} is bound to any-name, a variant of vfio-pci"),
        (under_an_old_variant, f"{ADDRESS} is bound to virtio_vfio_pci, a variant of vfio-pci"),
        (no_group, "no local group"),
        (no_group_file, "no local group"),
        (never_seen, f"{ADDRESS} was not seen to negotiate"),
        (another_device, f"{ADDRESS} was not seen to negotiate"),
        (with_balloon, "0000:03:00.1 is a balloon"),
        (with_unknown_neighbour, "0000:03:00.1 was not seen to negotiate"),
        (with_disk_controller, "0000:03:00.1 is neither"),
        (with_isa_bridge, "0000:03:00.1 is neither"),
        (with_bridge_of_no_class, "class of 0000:03:00.1"),
        (with_platform_device, "arm-thing.0 is no PCI function"),
        (denied, "deny list"),
        (denied_by_glob, "deny list"),
        (all_denied, "deny list"),
        (deny_list_unreadable, "deny list"),
        (deny_list_dangling, "deny list"),
        (unsafe_interrupts, "allow_unsafe_interrupts"),
    ],
)
def test_one_thing_that_is_not_safe_closes_the_group(safe: Tree, spoil: Callable[[Tree], None], why: str):
    spoil(safe)
    answer = safe.run("group", "7")
    assert answer["UVIRTIO_ACCESS"] == "no"
    assert why in answer["UVIRTIO_WHY"]
    assert f"uvirtio/{ADDRESS}" in answer["UVIRTIO_LINKS"].split(), "a name is no access"


@pytest.mark.parametrize("driver", ["vfio-pci", "virtio-pci"])
def test_vfio_pci_itself_is_no_hindrance(safe, driver):
    under(safe, driver)
    if driver == "vfio-pci":
        (safe.pci / ADDRESS / "vfio-dev/vfio3").mkdir(parents=True)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "uvirtio"


HARMLESS = {"net", "blk", "console", "rng", "scsi", "9p", "gpu", "input", "vsock", "crypto", "sound", "fs"}


@pytest.mark.parametrize("device", range(0x1000, 0x1080))
def test_types_that_are_opened(tree, device):
    """Those of a list, with a modern id; a type that was not thought about is not on it."""
    tree.function(device=device)
    tree.seen()
    opened = tree.run("group", "7")["UVIRTIO_ACCESS"] == "uvirtio"
    assert opened == (device > 0x1040 and ids.type_name(device - 0x1040) in HARMLESS)


@pytest.mark.parametrize(
    ("device", "why"), [(0x1002, "balloon"), (0x1045, "balloon"), (0x1058, "virtio-mem"), (0x1005, "legacy")]
)
def test_types_that_are_dangerous_are_named(tree, device, why):
    tree.function(device=device)
    tree.seen()
    assert why in tree.run("group", "7")["UVIRTIO_WHY"]


def test_a_bridge_in_the_group_is_no_hindrance_and_has_no_name(safe):
    safe.function("0000:02:00.0", BRIDGE, vendor=0x1B36, kind=0x060400)
    answer = safe.run("group", "7")
    assert answer["UVIRTIO_ACCESS"] == "uvirtio"
    assert answer["UVIRTIO_LINKS"] == f"uvirtio/{ADDRESS}"


def test_each_function_of_the_group_has_a_name(safe):
    safe.function("0000:03:00.1")
    safe.seen("0000:03:00.1")
    answer = safe.run("group", "7")
    assert answer["UVIRTIO_ACCESS"] == "uvirtio"
    assert answer["UVIRTIO_LINKS"] == f"uvirtio/{ADDRESS} uvirtio/0000:03:00.1"


def test_a_group_without_virtio_is_not_spoken_of(tree):
    tree.function(device=0x10D3, vendor=0x8086, kind=0x020000)
    assert tree.run("group", "7") == {}
    assert tree.run("group", "99") == {}


HERE = "0000:0a:00.0"

PATTERNS = r"""
0a:00.0|a:0.0|0A:00.0|0a:*|0000:0A:00.0|PCI@0000:0a:00.0|pci/a:0.0|00000:0a:00.0|0:a:0.0|000000000:0a:00.0|0b:00.0|*|**
?000:0a:00.0|[0-9]a:00.0|[!1]a:00.0|[^1]a:00.0|0[[:alpha:]]:00.0|0[]a]:00.0|0[a:00.0|0\\a:00.0|[z-a]a:00.0|[!]]a:00.0
[!z-a]a:00.0|0[--a]:00.0|0[a-]:00.0|0[a--b]:00.0|0a:20.0|0a:00.8|*[!]]|0a:00.[0|0a:00.[0-|.|[|[]|[!]|*0a:00.0|qemu:*
/dev/vfio/7|/dev/vfio/7/|/DEV/VFIO/7|/dev/vfio/*|/dev/vfio/devices/vfio3|/dev/vfio//7|vfio3|vfio4|balloon|rng|virtio3
/sys/bus/pci/devices/0000:0a:00.0|/sys/bus/pci/devices/0000:0a:00.0/|/sys/class/vfio-dev/vfio3|/sys/bus/pci/../0a:00.0
# 0a:00.0|0a:00.0 x|  0a:00.0 # c|0b:00.0\r0a:00.0|0b:00.0\v0a:00.0|0b:00.0\u00850a:00.0|0b:00.0\u20280a:00.0
\ufeff0a:00.0|\ufeff# x\r0a:00.0|0a:00.0\u00a0|\u30000a:00.0|0a:00.0\x1c|0a:00.0\x1f|x\x1e0a:00.0|\x000a:00.0
0a:00.0\x00|0a:00.\u0660|\u212a|0a:00.0\udc85|0b:00.0\udc850a:00.0
"""
"""Ways to write 0000:0a:00.0 and others in a deny list, as Python writes them."""


def _fuzzed(count: int) -> list[str]:
    drawn = random.Random(20261129)
    words = ["0a", "00", ":", ".", "0", "*", "?", "[", "]", "!", "-", "a", "[!", "0-", "#", "\r", "A", "\\", "^"]
    return ["".join(drawn.choices(words, k=drawn.randint(1, 9))) for _ in range(count)]


def test_the_helper_reads_the_deny_list_as_the_package_does(tree):
    """The same lists for both, one pattern each: short forms, capitals, globs, line ends, nodes, paths, a BOM."""
    function = tree.function(HERE)
    tree.seen(HERE)
    (function / "vfio-dev/vfio3").mkdir(parents=True)
    held = tree.top / "sys/bus/pci/drivers/vfio-pci"
    held.mkdir(parents=True)
    (function / "driver").symlink_to(held)
    named = tree.top / "sys/class/vfio-dev/vfio3"
    named.parent.mkdir()
    named.symlink_to(function / "vfio-dev/vfio3")
    (function / "vfio-dev/vfio3/dev").touch()
    roots = Roots.under(tree.top)
    names = [HERE, *drivers.user_nodes(function, roots)]
    told = [bytes(one, "ascii").decode("unicode_escape") for one in PATTERNS.strip().replace("\n", "|").split("|")]
    verdicts = set()
    for pattern in told + _fuzzed(20):
        tree.deny.write_bytes(pattern.encode("utf-8", "surrogateescape"))
        denied = denylist.denying(names, roots) is not None
        verdicts.add(denied)
        assert (tree.run("group", "7")["UVIRTIO_ACCESS"] == "no") is denied, repr(pattern)
    assert verdicts == {False, True}


def test_a_deny_list_that_names_others_is_no_hindrance(safe):
    safe.deny.write_text("# 0000:03:00.0\n\n0000:04:00.0\nmmio:*\n")
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "uvirtio"


def test_the_parameter_about_interrupts_may_say_no(safe):
    unsafe_interrupts(safe)
    (safe.top / "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts").write_text("N\n")
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "uvirtio"


# --- what an administrator set ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_kernels_mode_and_our_own_are_ours_to_decide_about(safe, mode):
    safe.node(mode=mode)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "uvirtio"
    never_seen(safe)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "no"


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o640, 0o606, 0o666, 0o700, 0o1660])
def test_another_mode_is_the_administrators(safe, mode):
    safe.node(mode=mode)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "administrator"


def test_a_node_of_another_group_is_the_administrators(safe):
    safe.group_file.write_text(f"uvirtio:x:{os.getgid() + 1}:\n")
    safe.node(mode=0o660)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "administrator"


def test_the_administrators_word_stands_whatever_else_is_wrong(safe):
    safe.node(mode=0o666)
    with_balloon(safe)
    no_group(safe)
    safe.node(mode=0o666)
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "administrator"


def test_a_node_that_is_not_there_is_not_ours(safe):
    (safe.top / "dev/vfio/7").unlink()
    assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "administrator"


# --- the notes --------------------------------------------------------------------------------------------


def test_the_bit_is_the_34th_character():
    assert features.ACCESS_PLATFORM == 33


@pytest.mark.parametrize(
    ("status", "bits"),
    [
        ("0x0000000f", (32,)),
        ("0x0000000f", (32, 34)),
        ("0x0000000f", ()),
        ("0x00000003", (32, 33)),  # not yet negotiated
        ("0x0000000b", (32, 33)),
        ("0x0000008f", (32, 33)),  # FAILED
        ("0x00000000", (32, 33)),
        ("0x", (32, 33)),
        ("", (32, 33)),
        ("$(reboot)", (32, 33)),
    ],
)
def test_a_driver_that_binds_without_the_bit_removes_the_note(safe, status, bits):
    name = safe.virtio(status=status, bits=bits)
    assert (safe.notes / ADDRESS).exists()
    assert safe.run("note", ADDRESS, name) == {"UVIRTIO_TRANSLATED": "no"}
    assert not (safe.notes / ADDRESS).exists()


def test_features_that_can_not_be_read_are_no_yes(safe):
    name = safe.virtio()
    (safe.pci / ADDRESS / name / "features").unlink()
    assert safe.run("note", ADDRESS, name) == {"UVIRTIO_TRANSLATED": "no"}


def test_a_virtio_device_that_is_not_the_functions_own_tells_nothing(tree):
    """One on a vDPA device of the function, say."""
    below = tree.function() / "vdpa0"
    below.mkdir()
    tree.virtio()
    (tree.pci / ADDRESS / "virtio3").rename(below / "virtio3")
    assert tree.run("note", ADDRESS, "virtio3") == {"UVIRTIO_TRANSLATED": "no"}


def test_a_note_can_not_be_written_by_others(safe):
    for path in (safe.notes, safe.notes / ADDRESS):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_a_note_that_says_something_else_is_none(safe):
    for text in ("", "yes\n", "1\n"):
        (safe.notes / ADDRESS).write_text(text)
        assert safe.run("group", "7")["UVIRTIO_ACCESS"] == "no"


def test_what_is_gone_is_forgotten(safe):
    safe.run("forget", ADDRESS)
    assert not (safe.notes / ADDRESS).exists()
    safe.run("forget", ADDRESS)


# --- the other verbs --------------------------------------------------------------------------------------


def test_a_function_has_its_address_and_its_group(safe):
    assert safe.run("function", ADDRESS) == {"UVIRTIO_ADDRESS": ADDRESS, "UVIRTIO_GROUP": "7"}


def test_a_function_without_an_iommu_has_no_group(safe):
    (safe.pci / ADDRESS / "iommu_group").unlink()
    assert safe.run("function", ADDRESS) == {"UVIRTIO_ADDRESS": ADDRESS}


def test_a_function_that_joins_a_group_has_its_node_looked_at_again(safe):
    uevent = safe.top / "sys/class/vfio/7/uevent"
    safe.run("recheck", ADDRESS)
    assert uevent.read_text() == "", "alone in its group"
    safe.function("0000:03:00.1")
    safe.run("recheck", "0000:03:00.1")
    assert uevent.read_text() == "change\n"
    uevent.write_text("")
    shutil.rmtree(safe.groups / "7/devices")
    safe.run("recheck", "0000:03:00.1")
    assert uevent.read_text() == "change\n", "a folder that can't be read is no proof of being alone"


def test_looking_again_needs_a_node(safe):
    safe.function("0000:03:00.1")
    shutil.rmtree(safe.top / "sys/class/vfio/7")
    safe.run("recheck", "0000:03:00.1")
    (safe.pci / ADDRESS / "iommu_group").unlink()
    safe.run("recheck", ADDRESS)


def test_a_vdpa_device_tells_its_node(tree):
    (tree.top / "sys/bus/vdpa/devices/vdpa0/vhost-vdpa-2").mkdir(parents=True)
    (tree.top / "sys/bus/vdpa/devices/vdpa0/power").mkdir()
    assert tree.run("vdpa", "vdpa0") == {"UVIRTIO_ADDRESS": "/dev/vhost-vdpa-2"}
    assert tree.run("vdpa", "vdpa1") == {}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("group",),
        ("group", "noiommu-0"),
        ("group", "../7"),
        ("forget", "../../../etc/group"),
        ("forget", ".."),
        ("forget", ""),
        ("forget", "a/bcd:03:00.0"),
        ("note", ADDRESS),
        ("note", ADDRESS, "../x"),
        ("vdpa", ".."),
        ("open", ADDRESS),
    ],
)
def test_words_that_make_no_sense_are_refused(tree, words):
    tree.run(*words, code=2)


# --- the rules file ---------------------------------------------------------------------------------------

TOKEN = re.compile(r'([A-Z]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,\s*|$)')
MATCHES = {"ACTION", "KERNEL", "SUBSYSTEM", "SUBSYSTEMS", "DRIVER", "DRIVERS", "ATTR", "ATTRS", "ENV", "TEST"}
ASSIGNS = {"ENV", "TAG", "SYMLINK", "RUN", "OPTIONS", "GOTO", "LABEL", "GROUP", "MODE"}
Rule = list[tuple[str, str, str, str]]


def rules() -> list[Rule]:
    text = RULES.read_text().replace("\\\n", "")
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        tokens = TOKEN.findall(line)
        assert TOKEN.sub("", line).strip() == "", f"not a rule: {line}"
        found.append(tokens)
    return found


def test_every_key_is_one_that_udev_knows():
    for rule in rules():
        for key, attribute, operator, _ in rule:
            if key == "IMPORT":
                assert (attribute, operator) in {("program", "="), ("db", "=")}
            else:
                assert key in (MATCHES if operator in ("==", "!=") else ASSIGNS), (key, operator)
            assert bool(attribute) == (key in ("ENV", "ATTR", "ATTRS", "IMPORT")), key


def test_every_goto_goes_forward_to_a_label():
    places = {value: at for at, rule in enumerate(rules()) for key, _, _, value in rule if key == "LABEL"}
    for at, rule in enumerate(rules()):
        for key, _, _, value in rule:
            if key == "GOTO":
                assert places[value] > at


def test_access_is_given_by_one_guarded_rule_and_taken_back_by_one():
    touching = [rule for rule in rules() if {"GROUP", "MODE", "OWNER"} & {key for key, *_ in rule}]
    assert touching == [
        [
            ("ENV", "UVIRTIO_ACCESS", "==", "uvirtio"),
            ("GROUP", "", "=", "$env{UVIRTIO_ACCESS}"),
            ("MODE", "", "=", "0660"),
        ],
        [
            ("ENV", "UVIRTIO_ACCESS", "!=", "uvirtio|administrator"),
            ("ENV", ".UVIRTIO_GAVE", "==", "yes"),
            ("GROUP", "", "=", "root"),
            ("MODE", "", "=", "0600"),
        ],
    ]


def section(label: str) -> list[Rule]:
    """The rules from a label to the next one."""
    found: list[Rule] = []
    inside = False
    for rule in rules():
        names = [value for key, _, _, value in rule if key == "LABEL"]
        if names:
            inside = names == [label]
        elif inside:
            found.append(rule)
    return found


def test_access_is_only_spoken_of_for_vfio_groups_and_freshly_asked():
    whole = [rule for rule in rules() if any(key in ("GROUP", "MODE") for key, *_ in rule)]
    vfio = section("uvirtio_vfio")
    assert all(rule in vfio for rule in whole)
    cleared = vfio.index([("ENV", "UVIRTIO_ACCESS", "=", "")])
    asked = vfio.index([("IMPORT", "program", "=", "uvirtio-node-safe group %k")])
    given = next(at for at, rule in enumerate(vfio) if ("MODE", "", "=", "0660") in rule)
    assert cleared < asked < given
    before = rules()[: rules().index([("LABEL", "", "=", "uvirtio_vfio")])]
    assert before[-1] == [("GOTO", "", "=", "uvirtio_end")], "nothing falls into it"


def test_every_type_has_its_name_for_its_ids():
    named = {
        int(rule[0][3], 16): rule[1][3]
        for rule in section("uvirtio_pci")
        if [token[:2] for token in rule] == [("ATTR", "device"), ("ENV", "UVIRTIO_TYPE")]
    }
    modern = {0x1040 + entry.id: entry.name for entry in ids.TYPES}
    assert named == modern | {number: ids.type_name(kind) for number, kind in ids.TRANSITIONAL.items()}


def test_the_rules_call_verbs_that_the_helper_has():
    helper = HELPER.read_text()
    called = {
        value.split()[1] for rule in rules() for _, _, _, value in rule if value.startswith("uvirtio-node-safe ")
    }
    assert called == {"note", "forget", "function", "group", "recheck", "vdpa"}
    for verb in called:
        assert re.search(rf"^    {verb}\) ", helper, re.MULTILINE)


def test_the_helper_can_be_run():
    assert os.access(HELPER, os.X_OK)
    assert HELPER.read_text().startswith("#!/bin/sh\n")
