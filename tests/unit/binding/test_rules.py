"""The in-use rules, each with trees where it speaks and trees where it is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fakesys import KERNEL, FakeSys
from uvirtio.binding import discover, journal, plan, rules
from uvirtio.binding.facts import Facts
from uvirtio.binding.rules import Finding, check, refusals
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

AT = "0000:03:00.0"
IOMEM = "00000000-00000000 : System RAM\n"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.text(made.roots.proc / "iomem", IOMEM)
    return made


def verdicts(fake: FakeSys, address: str = AT) -> rules.Verdicts:
    return check(discover.find(address, fake.roots), fake.roots)


def found(fake: FakeSys, rule: str, address: str = AT) -> list[Finding]:
    return [finding for finding in verdicts(fake, address).findings if finding.rule == rule]


def disk(fake: FakeSys) -> Path:
    """vda with vda1 and vda2."""
    device = fake.pci(AT, "blk", group=7)
    path = fake.child(device, "virtio0/block/vda", "block", {"dev": "254:0\n"})
    for number in (1, 2):
        fake.child(device, f"virtio0/block/vda/vda{number}", "block", {"dev": f"254:{number}\n"})
    return path


def mapper(fake: FakeSys, below: Path, name: str = "dm-0", label: str = "vg-root", number: str = "253:0") -> Path:
    path = fake.sys / "devices/virtual/block" / name
    fake.text(path / "dev", number + "\n")
    fake.text(path / "dm/name", label + "\n")
    (fake.sys / "class/block").mkdir(exist_ok=True)
    fake.link(fake.sys / "class/block" / name, path)
    fake.link(below / "holders" / name, path)
    return path


def test_a_device_that_nobody_uses_is_free(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    assert verdicts(fake) == ([], [])


def test_every_rule_has_a_name_of_the_catalogue() -> None:
    assert {rule.__name__.replace("_", "-") for rule in rules.RULES} == {
        "mounted", "network", "memory-in-use", "balloon-inflated", "console", "root-share", "iommu-device",
        "display-input", "other-use", "group", "vf-pf", "not-virtio", "foreign-override",
        "earlier-bind", "no-way-back", "unsafe-dma", "suspend", "lockdown", "container"}  # fmt: skip


def test_rules_survive_a_machine_without_anything(tmp_path: Path, fake: FakeSys) -> None:
    fake.pci(AT, "blk", group=7)
    device = discover.find(AT, fake.roots)
    empty = Roots.under(tmp_path / "nothing")
    for kind in ("blk", "net", "mem", "balloon", "console", "9p", "fs", "gpu", "input", "crypto", "rng", "vsock"):
        check(device._replace(type=kind, kernel_driver="x", path=tmp_path / "none"), empty)


# --- mounted -----------------------------------------------------------------------------------------------


@pytest.mark.fault("R1")
@pytest.mark.parametrize("name", ["vda", "vda1", "vda2"])
@pytest.mark.parametrize(
    ("point", "forceable"),
    [("/srv", True), ("/home", True), ("/", False), ("/boot", False), ("/boot/efi", False), ("/usr", False),
     ("/usr/local", False), ("/usrx", True)],
)  # fmt: skip
def test_mounted_by_device_number(fake: FakeSys, name: str, point: str, forceable: bool) -> None:
    disk(fake)
    number = {"vda": 0, "vda1": 1, "vda2": 2}[name]
    fake.mountinfo(["19 1 0:5 / /proc rw - proc proc rw", f"20 1 254:{number} / {point} rw - ext4 /dev/{name} rw"])
    (finding,) = found(fake, "mounted")
    assert point in finding.evidence and finding.severity == "refuse" and finding.forceable is forceable
    assert bool(refusals([finding], ["mounted"])) is not forceable


def scsi_disks(fake: FakeSys, count: int = 1) -> list[Path]:
    """A SCSI host with so many disks: sda, sdb ... each with a partition and its generic node."""
    device, made = fake.pci(AT, "scsi", group=7), []
    for number in range(count):
        name, unit = f"sd{chr(97 + number)}", f"virtio0/host2/target2:0:{number}/2:0:{number}:0"
        made.append(fake.child(device, f"{unit}/block/{name}", "block", {"dev": f"8:{16 * number}\n"}))
        fake.child(device, f"{unit}/block/{name}/{name}1", "block", {"dev": f"8:{16 * number + 1}\n"})
        fake.child(device, f"{unit}/scsi_generic/sg{number}", "scsi_generic", {"dev": f"21:{number}\n"})
    return made


def test_a_scsi_host_whose_disk_is_in_use_stays(fake: FakeSys) -> None:
    disks = scsi_disks(fake, 3)
    assert verdicts(fake) == ([], [])
    fake.opened("/dev/sg1")
    assert [finding.evidence for finding in found(fake, "other-use")] == [
        "/dev/sg1 is open in process 4242 (holder --run)"
    ]
    fake.mountinfo(["20 1 8:33 / / rw - ext4 /dev/sdc1 rw"])
    (finding,) = found(fake, "mounted")
    assert "/dev/sdc1" in finding.evidence and not finding.forceable
    fake.mountinfo(["20 1 253:0 / /srv rw - ext4 /dev/mapper/vg-root rw"])
    mapper(fake, disks[1])
    assert any("sdb is held by dm-0" in finding.evidence for finding in found(fake, "mounted"))


def test_a_scsi_host_with_more_than_can_be_looked_at_is_not_called_free(
    fake: FakeSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    scsi_disks(fake, 3)
    monkeypatch.setattr(sysfs, "DIRECTORIES_MAX", 20)
    assert {unchecked.rule for unchecked in verdicts(fake).unchecked} >= {"mounted", "other-use"}
    monkeypatch.undo()
    monkeypatch.setattr(sysfs, "DEPTH_MAX", 5)
    assert {unchecked.rule for unchecked in verdicts(fake).unchecked} >= {"mounted", "other-use"}


def test_an_unmounted_disk_is_free(fake: FakeSys) -> None:
    disk(fake)
    fake.mountinfo(["20 1 8:1 / / rw - ext4 /dev/sda1 rw"])
    assert verdicts(fake) == ([], [])


def test_mounted_in_another_name_space(fake: FakeSys) -> None:
    disk(fake)
    fake.opened("/dev/null", pid=77)
    (fake.roots.proc / "77/ns/mnt").unlink()
    (fake.roots.proc / "77/ns/mnt").symlink_to("mnt:[2]")
    fake.mountinfo(["20 1 254:1 / /data rw - ext4 /dev/vda1 rw"], pid=77)
    assert "/data" in found(fake, "mounted")[0].evidence


@pytest.mark.fault("R1")
def test_a_process_that_has_ended_hides_no_mount(fake: FakeSys) -> None:
    disk(fake)
    (fake.roots.proc / "4242/fd").mkdir(parents=True)  # it was there when they were listed: it has no ns any more
    assert Facts(fake.roots).mounts_complete and verdicts(fake) == ([], [])


@pytest.mark.fault("R1")
def test_mounted_below_lvm_on_crypt(fake: FakeSys) -> None:
    path = disk(fake)
    crypt = mapper(fake, path / "vda2", "dm-0", "crypt", "253:0")
    mapper(fake, crypt, "dm-1", "vg-root", "253:1")
    fake.mountinfo(["20 1 253:1 / / rw - ext4 /dev/mapper/vg-root rw"])
    findings = found(fake, "mounted")
    assert any("mounted on /" in f.evidence for f in findings)
    assert any("vda2 is held by dm-0 (crypt)" in f.evidence for f in findings)
    assert all(not f.forceable for f in findings)


def test_a_holder_alone_refuses_and_can_be_forced(fake: FakeSys) -> None:
    mapper(fake, disk(fake) / "vda1")
    (finding,) = found(fake, "mounted")
    assert "vg-root" in finding.evidence and finding.forceable


def test_holders_in_a_circle_end(fake: FakeSys) -> None:
    path = disk(fake)
    dm = mapper(fake, path)
    fake.link(dm / "holders/vda", path)
    assert found(fake, "mounted")


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/dev/vda2", "/dev/vda2 is swap"),
        ("/dev/mapper/vg-swap", "/dev/mapper/vg-swap is swap"),
        ("/swapfile", "the swap file /swapfile lies on it"),
    ],
)
def test_swap_is_never_forced(fake: FakeSys, line: str, told: str) -> None:
    path = disk(fake)
    mapper(fake, path / "vda1", label="vg-swap")
    fake.mountinfo(["20 1 254:1 / / rw - ext4 /dev/vda1 rw"])
    fake.text(fake.roots.proc / "swaps", f"Filename Type Size Used Priority\n{line} partition 100 0 -2\n")
    swap = [f for f in found(fake, "mounted") if "swap" in f.evidence and "held" not in f.evidence]
    assert [(f.evidence, f.forceable) for f in swap] == [(told, False)]


def test_btrfs_has_no_device_number(fake: FakeSys) -> None:
    disk(fake)
    (fake.sys / "fs/btrfs/uuid/devices/vda1").mkdir(parents=True)
    (fake.sys / "fs/btrfs/uuid/devices/sda1").mkdir(parents=True)
    fake.text(fake.sys / "class/block/sda1/dev", "8:1\n")
    fake.mountinfo(["20 1 0:33 /@ / rw - btrfs /dev/sda1 rw"])
    (finding,) = found(fake, "mounted")
    assert "btrfs" not in finding.rule and not finding.forceable


@pytest.mark.parametrize(("root", "forceable"), [("ext4", True), ("overlay", False)])
def test_a_mount_that_nobody_sees(fake: FakeSys, root: str, forceable: bool) -> None:
    disk(fake)
    (fake.sys / "fs/ext4/vda1").mkdir(parents=True)
    (fake.sys / "fs/ext4/features").mkdir()
    fake.mountinfo([f"20 1 8:1 / / rw - {root} /dev/sda1 rw"])
    (finding,) = found(fake, "mounted")
    assert "vda1: ext4" in finding.evidence and finding.forceable is forceable


def test_what_lies_below_an_overlay_is_unchecked(fake: FakeSys) -> None:
    disk(fake)
    fake.mountinfo(["20 1 0:25 / / rw - overlay overlay rw,lowerdir=/ro,upperdir=/rw/up"])
    assert [u.why for u in verdicts(fake).unchecked] == ["what lies below the overlay on /"]


@pytest.mark.fault("R6")
def test_a_share_may_lie_below_an_overlay(fake: FakeSys) -> None:
    device = fake.pci(AT, "9p", group=7)
    fake.text(device / "virtio0/mount_tag", "hostroot\0")
    overlay = "20 1 0:25 / / rw - overlay overlay rw,lowerdir=/ro,upperdir=/rw/up"
    fake.mountinfo([overlay])
    assert "overlay" in found(fake, "root-share")[0].evidence
    fake.mountinfo([overlay, "21 1 0:26 / /share rw - 9p hostroot rw,trans=virtio"])
    (finding,) = found(fake, "root-share")
    assert "/share" in finding.evidence


def test_loop_on_the_disk(fake: FakeSys) -> None:
    disk(fake)
    fake.text(fake.sys / "class/block/loop0/loop/backing_file", "/dev/vda2\n")
    assert "loop0" in found(fake, "mounted")[0].evidence


def test_a_disk_that_is_open(fake: FakeSys) -> None:
    disk(fake)
    fake.opened("/dev/vda1", pid=321)
    (finding,) = found(fake, "mounted")
    assert "process 321 (holder --run)" in finding.evidence and finding.forceable


@pytest.mark.parametrize(
    ("kind", "severity"), [("ext4", "warn"), ("zfs_member", "refuse"), ("LVM2_member", "refuse")]
)
def test_data_that_udev_saw(fake: FakeSys, kind: str, severity: str) -> None:
    disk(fake)
    fake.text(fake.roots.run / "udev/data/b254:1", f"S:disk/x\nE:ID_FS_TYPE={kind}\n")
    (finding,) = found(fake, "mounted")
    assert finding.severity == severity and kind in finding.evidence


def test_blanks_in_mount_points(fake: FakeSys) -> None:
    disk(fake)
    fake.mountinfo(["20 1 254:1 / /my\\040disk rw shared:1 master:2 - ext4 /dev/vda1 rw", "nonsense", ""])
    assert "/my disk" in found(fake, "mounted")[0].evidence


@pytest.mark.unprivileged
def test_what_an_ordinary_user_cannot_see_as_user(fake: FakeSys) -> None:
    disk(fake)
    space = fake.roots.proc / "1/ns/mnt"
    space.unlink()
    space.symlink_to("mnt:[2]")  # the mounts of ours are readable, and are not these
    assert verdicts(fake).unchecked == []
    (fake.roots.proc / "1/mountinfo").chmod(0)
    assert [(u.rule, u.why) for u in verdicts(fake).unchecked] == [("mounted", "the mounts of other name spaces")]


def test_what_an_ordinary_user_cannot_see(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(fake)
    monkeypatch.setattr(Facts, "open_complete", property(lambda self: False))
    answer = verdicts(fake)
    assert answer.findings == [] and [u.rule for u in answer.unchecked] == ["mounted"]
    assert "other users" in answer.unchecked[0].why
    fake.mountinfo(["20 1 254:1 / / rw - ext4 /dev/vda1 rw"])
    assert verdicts(fake).unchecked == []  # refused anyway


@pytest.mark.parametrize(
    ("kind", "child", "subsystem", "rules_"),
    [
        ("vsock", "", "", ["other-use"]),
        ("sound", "sound/card0/seq", "sound", ["other-use"]),
        ("console", "", "", ["console"]),
        ("gpu", "drm/card0", "drm", ["display-input"]),
        ("input", "input/input3/event3", "input", ["display-input"]),
        ("rng", "", "", []),
    ],
)
def test_open_files_that_cannot_be_seen_matter_where_something_can_be_opened(
    fake: FakeSys, monkeypatch: pytest.MonkeyPatch, kind: str, child: str, subsystem: str, rules_: list[str]
) -> None:
    device = fake.pci(AT, kind, group=7)
    if child:
        fake.child(device, f"virtio0/{child}", subsystem, {"dev": "116:2\n"})
    if kind not in KERNEL:
        fake.attach(fake.sys / "bus/virtio/devices/virtio0", kind, bus="virtio")
    assert verdicts(fake).unchecked == []
    monkeypatch.setattr(Facts, "open_complete", property(lambda self: False))
    assert [one.rule for one in verdicts(fake).unchecked] == rules_


# --- network -----------------------------------------------------------------------------------------------


def nic(fake: FakeSys, flags: str = "0x1002") -> Path:
    device = fake.pci(AT, "net", group=7)
    return fake.child(device, "virtio0/net/eth0", "net", {"flags": flags + "\n", "operstate": "down\n"})


def test_an_idle_interface_is_free(fake: FakeSys) -> None:
    nic(fake)
    assert verdicts(fake) == ([], [])


def test_an_interface_that_is_up(fake: FakeSys) -> None:
    nic(fake, "0x1003")
    assert found(fake, "network")[0].evidence == "eth0 is up"


@pytest.mark.fault("R2")
@pytest.mark.parametrize(
    ("table", "line", "what"),
    [
        ("route", "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000", "the default route"),
        ("route", "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF", "a route"),
        ("ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 00000400 1 0 3 eth0", "the default route"),
        ("ipv6_route", f"{'fe80' + '0' * 28} 40 {'0' * 32} 00 {'0' * 32} 00000100 1 0 1 eth0", None),
        ("route", "eth1\t00000000\t0202000A\t0003\t0\t0\t0\t00000000", None),
    ],
)
def test_routes(fake: FakeSys, table: str, line: str, what: str | None) -> None:
    nic(fake)
    path = fake.roots.proc / "net" / table
    fake.text(path, path.read_text() + line + "\n")
    assert [f.evidence for f in found(fake, "network")] == ([f"eth0 carries {what}"] if what else [])


def test_the_network_below_the_root_is_never_forced(fake: FakeSys) -> None:
    nic(fake, "0x1003")
    path = fake.roots.proc / "net/route"
    fake.text(path, path.read_text() + "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\n")
    assert all(f.forceable for f in found(fake, "network"))
    fake.mountinfo(["20 1 0:40 / / rw - nfs4 10.0.2.2:/root rw"])
    assert not any(f.forceable for f in found(fake, "network"))


@pytest.mark.fault("R2")
def test_bridges_and_vlans(fake: FakeSys) -> None:
    path = nic(fake)
    (path / "master").symlink_to("../../../../virtual/net/br0")
    (path / "upper_br0").symlink_to("../../../../virtual/net/br0")
    assert {f.evidence for f in found(fake, "network")} == {"eth0 belongs to br0", "br0 stands on eth0"}


def session(fake: FakeSys, peer: str, *, ancestor: bool = False) -> None:
    """We were started over SSH from ``peer``; ``ancestor``: by a shell whose sudo has dropped that."""
    setting = f"HOME=/root\0SSH_CONNECTION={peer} 50022 10.0.2.15 22\0"
    fake.text(fake.roots.proc / "self/environ", "HOME=/root\0" if ancestor else setting)
    fake.text(fake.roots.proc / "self/status", "Name:\tpython3\nPPid:\t90\n")
    fake.text(fake.roots.proc / "90/environ", setting if ancestor else "")
    fake.text(fake.roots.proc / "90/status", "Name:\tbash\nPPid:\t0\n")


ROUTES4 = "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\neth1\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\n"
ROUTES6 = (
    f"20010db8{'0' * 24} 20 {'0' * 32} 00 {'0' * 32} 00000100 1 0 1 eth0\n"
    f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 00000400 1 0 3 eth1\n"
    f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 200200 lo\n"
)


@pytest.mark.fault("R2")
@pytest.mark.parametrize("ancestor", [False, True])
@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        ("10.0.2.2", True),
        ("::ffff:10.0.2.2", True),
        ("2001:db8::7", True),
        ("192.0.2.9", False),  # by the default route, which is eth1's
        ("2001:db9::7", False),
        ("nonsense", False),
    ],
)
def test_the_interface_that_one_came_by_is_never_forced(
    fake: FakeSys, peer: str, ours: bool, ancestor: bool
) -> None:
    nic(fake, "0x1003")
    for name, lines in (("route", ROUTES4), ("ipv6_route", ROUTES6)):
        path = fake.roots.proc / "net" / name
        fake.text(path, path.read_text() + lines)
    session(fake, peer, ancestor=ancestor)
    findings = found(fake, "network")
    assert any("SSH session" in one.evidence for one in findings) == ours
    assert any(one.forceable for one in findings) != ours
    assert refusals(findings, {"network"}) == (findings if ours else [])


def test_the_interface_below_the_bridge_that_one_came_by(fake: FakeSys) -> None:
    path = nic(fake)
    (path / "master").symlink_to("../../../../virtual/net/br0")
    table = fake.roots.proc / "net/route"
    fake.text(table, table.read_text() + ROUTES4.replace("eth0", "br0"))
    session(fake, "10.0.2.2")
    assert not any(one.forceable for one in found(fake, "network"))


def test_an_interface_in_another_name_space(fake: FakeSys) -> None:
    fake.pci(AT, "net", group=7)
    assert "name space" in found(fake, "network")[0].evidence


# --- memory, balloon ---------------------------------------------------------------------------------------


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("iomem", "refused"),
    [
        (IOMEM, False),
        (IOMEM + "0-0 : virtio0\n  0-0 : System RAM (virtio_mem)\n", True),
        (IOMEM + "100000000-11fffffff : virtio0\n  100000000-107ffffff : System RAM (virtio_mem)\n", True),
        (IOMEM + "0-0 : virtio0\n0-0 : PCI Bus\n  0-0 : System RAM (kmem)\n", False),
        (IOMEM + "0-0 : virtio9\n  0-0 : System RAM (virtio_mem)\n0-0 : virtio0\n", False),
        (IOMEM + "0-0 : System RAM (virtio_mem)\n", True),
    ],
)
def test_memory_in_use_is_never_forced(fake: FakeSys, iomem: str, refused: bool) -> None:
    fake.pci(AT, "mem", group=7)
    fake.pci("0000:04:00.0", "mem", group=8, virtio="virtio9")
    fake.text(fake.roots.proc / "iomem", iomem)
    findings = found(fake, "memory-in-use")
    assert bool(findings) is refused and all(not f.forceable for f in findings)
    assert verdicts(fake).unchecked == []


@pytest.mark.parametrize("iomem", [None, "", "0-0 : PCI Bus\n"])
def test_memory_that_cannot_be_seen(fake: FakeSys, iomem: str | None) -> None:
    fake.pci(AT, "mem", group=7)
    if iomem is None:
        (fake.roots.proc / "iomem").unlink()
    else:
        fake.text(fake.roots.proc / "iomem", iomem)
    assert [u.rule for u in verdicts(fake).unchecked] == ["memory-in-use"]


@pytest.mark.fault("R4")
@pytest.mark.parametrize(
    ("vmstat", "findings", "unchecked"),
    [
        ("balloon_inflate 100\nballoon_deflate 100\n", 0, 0),
        ("balloon_inflate 300\nballoon_deflate 100\n", 1, 0),
        ("nr_balloon_pages 5\n", 1, 0),
        ("nr_free_pages 5\n", 0, 1),
    ],
)
def test_an_inflated_balloon(fake: FakeSys, vmstat: str, findings: int, unchecked: int) -> None:
    fake.pci(AT, "balloon", group=7)
    fake.text(fake.roots.proc / "vmstat", vmstat)
    answer = verdicts(fake)
    assert len(answer.findings) == findings and len(answer.unchecked) == unchecked
    assert all(f.rule == "balloon-inflated" and f.forceable for f in answer.findings)


# --- console, shares ---------------------------------------------------------------------------------------


@pytest.mark.fault("R5")
@pytest.mark.parametrize(
    ("line", "forceable"), [("hvc0 -W- (EC p  ) 229:0", False), ("hvc1 -W- (E  p  ) 229:1", True)]
)
def test_a_console_of_the_system(fake: FakeSys, line: str, forceable: bool) -> None:
    fake.pci(AT, "console", group=7)
    fake.text(fake.roots.proc / "consoles", f"ttyS0 -W- (EC a ) 4:64\n{line}\n")
    (finding,) = found(fake, "console")
    assert finding.forceable is forceable


@pytest.mark.fault("R5")
def test_the_port_of_a_guest_agent(fake: FakeSys) -> None:
    device = fake.pci(AT, "console", group=7)
    files = {"dev": "245:1\n", "uevent": "MAJOR=245\nDEVNAME=vport0p1\n", "name": "org.qemu.guest_agent.0\n"}
    fake.child(device, "virtio0/virtio-ports/vport0p1", "virtio-ports", files)
    assert verdicts(fake).findings == []
    fake.opened("/dev/vport0p1")
    (finding,) = found(fake, "console")
    assert "guest_agent" in finding.evidence and "4242" in finding.evidence


@pytest.mark.fault("R6")
@pytest.mark.parametrize(("point", "forceable"), [("/", False), ("/usr", False), ("/share", True)])
def test_a_9p_share(fake: FakeSys, point: str, forceable: bool) -> None:
    device = fake.pci(AT, "9p", group=7)
    fake.text(device / "virtio0/mount_tag", "hostroot\0")
    fake.mountinfo([f"20 1 0:30 / {point} ro - 9p hostroot ro,trans=virtio"])
    (finding,) = found(fake, "root-share")
    assert finding.forceable is forceable and point in finding.evidence
    fake.mountinfo([f"20 1 0:30 / {point} ro - 9p other ro,trans=virtio"])
    assert verdicts(fake).findings == []


def test_a_share_without_a_tag_is_any_share(fake: FakeSys) -> None:
    fake.pci(AT, "fs", group=7)
    fake.mountinfo(["20 1 0:30 / /data rw - virtiofs tag0 rw"])
    assert "may be this one" in found(fake, "root-share")[0].evidence


@pytest.mark.fault("R6")
def test_a_virtiofs_tag(fake: FakeSys) -> None:
    device = fake.pci(AT, "fs", group=7)
    fake.text(fake.sys / "fs/virtiofs/1/tag", "tag1\n")
    fake.link(fake.sys / "fs/virtiofs/1/device", device / "virtio0")
    fake.mountinfo(["20 1 0:30 / /data rw - virtiofs tag0 rw"])
    assert verdicts(fake).findings == []
    fake.mountinfo(["20 1 0:30 / /data rw - virtiofs tag1 rw"])
    assert found(fake, "root-share")


# --- the others --------------------------------------------------------------------------------------------


@pytest.mark.fault("R7")
def test_an_iommu_is_never_taken(fake: FakeSys) -> None:
    fake.pci(AT, "iommu", group=7)
    (finding,) = found(fake, "iommu-device")
    assert not finding.forceable


@pytest.mark.fault("R7")
def test_a_bridge_or_supplier_is_never_taken(fake: FakeSys) -> None:
    path = fake.pci(AT, "rng", group=7, pci_class=0x060400)
    (path / "consumer:pci:0000:04:00.0").symlink_to("../nowhere")
    assert {f.forceable for f in found(fake, "iommu-device")} == {False} and len(found(fake, "iommu-device")) == 2


@pytest.mark.fault("R8")
def test_a_display(fake: FakeSys) -> None:
    device = fake.pci(AT, "gpu", group=7)
    fake.text(device / "boot_vga", "0\n")
    card = {"dev": "226:0\n", "uevent": "DEVNAME=dri/card0\n"}
    fake.child(device, "virtio0/drm/card0", "drm", card)
    assert found(fake, "display-input") == []
    fake.opened("/dev/dri/card0")
    fake.text(device / "boot_vga", "1\n")
    fake.child(device, "virtio0/graphics/fb0", "graphics", {"dev": "29:0\n"})
    assert len(found(fake, "display-input")) == 3
    assert {f.severity for f in found(fake, "display-input")} == {"refuse"}


@pytest.mark.fault("R8")
@pytest.mark.parametrize("uevent", ["DEVNAME=input/event3\n", ""])
def test_an_input_device_warns(fake: FakeSys, uevent: str) -> None:
    device = fake.pci(AT, "input", group=7)
    fake.child(device, "virtio0/input/input3/event3", "input", {"dev": "13:67\n", "uevent": uevent})
    fake.opened("/dev/input/event3")
    (finding,) = verdicts(fake).findings
    assert (finding.rule, finding.severity) == ("display-input", "warn")


@pytest.mark.fault("R9")
def test_the_only_hardware_rng_warns(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    fake.text(fake.sys / "class/misc/hw_random/rng_current", "virtio_rng.0\n")
    fake.text(fake.sys / "class/misc/hw_random/rng_available", "virtio_rng.0 \n")
    assert found(fake, "other-use")[0].severity == "warn"
    fake.text(fake.sys / "class/misc/hw_random/rng_available", "virtio_rng.0 tpm-rng-0\n")
    assert found(fake, "other-use") == []


@pytest.mark.fault("R9")
def test_what_the_kernel_uses_is_not_held_against_a_function_that_it_has_not(fake: FakeSys) -> None:
    """Another function is the source of /dev/hwrng, and has the keys: this one is vfio-pci's."""
    fake.text(fake.sys / "class/misc/hw_random/rng_current", "virtio_rng.0\n")
    fake.text(fake.sys / "class/misc/hw_random/rng_available", "virtio_rng.0\n")
    stanza = "name : cbc(aes)\ndriver : virtio_crypto_aes_cbc\nrefcnt : 2\n"
    fake.text(fake.roots.proc / "crypto", stanza)
    fake.pci(AT, "rng", group=7, driver="vfio-pci")
    fake.pci("0000:04:00.0", "crypto", group=8, driver="vfio-pci")
    for address in (AT, "0000:04:00.0"):
        assert found(fake, "other-use", address) == []


@pytest.mark.fault("R9")
def test_keys_in_use(fake: FakeSys) -> None:
    fake.pci(AT, "crypto", group=7)
    stanza = "name : cbc(aes)\ndriver : virtio_crypto_aes_cbc\nrefcnt : {}\n\nname : x\ndriver : y\nrefcnt : 9\n"
    fake.text(fake.roots.proc / "crypto", stanza.format(1))
    assert verdicts(fake).findings == []
    fake.text(fake.roots.proc / "crypto", stanza.format(2))
    assert "refcnt 2" in found(fake, "other-use")[0].evidence


@pytest.mark.fault("R9")
def test_vsock_connections(fake: FakeSys) -> None:
    fake.pci(AT, "vsock", group=7)
    fake.attach(fake.sys / "bus/virtio/devices/virtio0", rules.VSOCK_TRANSPORT, bus="virtio")
    assert verdicts(fake) == ([], [])  # as where it is built in, and has no count
    fake.text(fake.sys / "module/vmw_vsock_virtio_transport/refcnt", "0\n")
    assert verdicts(fake) == ([], [])
    fake.text(fake.sys / "module/vmw_vsock_virtio_transport/refcnt", "2\n")
    (finding,) = verdicts(fake).findings
    assert (finding.rule, finding.severity, finding.forceable) == ("other-use", "refuse", True)
    assert finding.evidence.startswith("2 vsock connections")


@pytest.mark.fault("R9")
@pytest.mark.parametrize("name", ["pcmC0D0p", "controlC0", "seq"])
def test_a_sound_card_that_is_open(fake: FakeSys, name: str) -> None:
    device = fake.pci(AT, "sound", group=7)
    files = {"dev": "116:2\n", "uevent": f"DEVNAME=snd/{name}\n"}
    fake.child(device, f"virtio0/sound/card0/{name}", "sound", files)
    assert verdicts(fake) == ([], [])
    fake.opened(f"/dev/snd/{name}")
    (finding,) = verdicts(fake).findings
    assert (finding.rule, finding.severity) == ("other-use", "refuse")
    assert f"/dev/snd/{name} is open in" in finding.evidence


PMEM = "virtio0/ndbus0/region0"


@pytest.mark.fault("R1", "R3", "R9")
@pytest.mark.parametrize("use", ["mounted", "open", "ram"])
def test_persistent_memory_in_use(fake: FakeSys, use: str) -> None:
    device = fake.pci(AT, "pmem", group=7)
    fake.child(device, f"{PMEM}/namespace0.0/block/pmem0", "block", {"dev": "259:0\n"})
    node = fake.child(device, f"{PMEM}/dax0.1/dax0.0", "dax", {"dev": "252:0\n", "uevent": "DEVNAME=dax0.0\n"})
    fake.attach(node, "device_dax", bus="dax")
    assert verdicts(fake) == ([], [])
    if use == "mounted":
        fake.mountinfo(["20 1 259:0 / /data rw - ext4 /dev/pmem0 rw,dax"])
    elif use == "open":
        fake.opened("/dev/dax0.0")
    else:
        (node / "driver").unlink()
        fake.attach(node, "kmem", bus="dax")
    (finding,) = verdicts(fake).findings
    rule = {"mounted": "mounted", "open": "other-use", "ram": "memory-in-use"}[use]
    assert (finding.rule, finding.severity, finding.forceable) == (rule, "refuse", use != "ram")


@pytest.mark.fault("R9")
@pytest.mark.parametrize(("driver", "node"), [("vfio-pci", "/dev/vfio/7"), ("uio_pci_generic", "/dev/uio0")])
def test_a_user_space_driver_at_work_is_not_disturbed(fake: FakeSys, driver: str, node: str) -> None:
    device = fake.pci(AT, "rng", group=7, driver=driver)
    (device / "uio/uio0").mkdir(parents=True)
    assert found(fake, "other-use") == []
    fake.opened(node)
    (finding,) = found(fake, "other-use")
    assert not finding.forceable


@pytest.mark.fault("R10")
def test_the_group(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    fake.pci("0000:03:00.1", "balloon", group=7, driver="vfio-pci")
    fake.pci("0000:00:1c.0", None, pci_id=(0x8086, 1), driver="pcieport", pci_class=0x060400, group=7)
    assert found(fake, "group") == []
    fake.pci("0000:03:00.2", None, pci_id=(0x8086, 2), driver="e1000e", group=7)
    (finding,) = found(fake, "group")
    assert "0000:03:00.2 (e1000e)" in finding.evidence and "pcieport" not in finding.evidence


@pytest.mark.fault("R10")
def test_the_page_of_a_window_is_its_group(fake: FakeSys) -> None:
    fake.mmio("a003c00.virtio_mmio", "rng")
    fake.mmio("a003e00.virtio_mmio", "balloon")
    fake.mmio("a004000.virtio_mmio", "rng")
    (finding,) = found(fake, "group", "mmio:0xa003e00")
    assert "0xa003c00" in finding.evidence and "0xa004000" not in finding.evidence


@pytest.mark.fault("R11")
def test_virtual_functions(fake: FakeSys) -> None:
    path = fake.pci(AT, "net", group=7, driver=None)
    fake.text(path / "sriov_numvfs", "0\n")
    assert found(fake, "vf-pf") == []
    fake.text(path / "sriov_numvfs", "4\n")
    assert "4 virtual" in found(fake, "vf-pf")[0].evidence
    parent = fake.pci("0000:03:00.1", "net", group=8, driver="vfio-pci")
    fake.link(path / "physfn", parent)
    assert any("token" in f.evidence for f in found(fake, "vf-pf"))


@pytest.mark.fault("R13")
def test_overrides_of_others(fake: FakeSys) -> None:
    path = fake.pci(AT, "rng", group=7)
    fake.text(path / "driver_override", "pci-stub\n")
    fake.text(fake.roots.etc / "driverctl.d" / AT, "vfio-pci\n")
    assert [f.forceable for f in found(fake, "foreign-override")] == [True, True]


@pytest.mark.fault("R13")
def test_an_open_journal_entry(fake: FakeSys) -> None:
    path = fake.pci(AT, "rng", group=7)
    fake.text(path / "driver_override", "vfio-pci\n")  # bind was killed after its first write
    device = journal.DeviceEntry(AT, "pci", AT, "vfio-pci", "virtio-pci", None, steps=("override",))
    entry = journal.new([device], fake.roots)
    journal.store(entry, fake.roots)
    (finding,) = found(fake, "earlier-bind")
    assert not finding.forceable and "journal" in finding.evidence
    assert found(fake, "foreign-override") == []
    fake.text(path / "driver_override", "(null)\n")
    assert found(fake, "earlier-bind") == [], "it is as it was"
    journal.remove(entry, fake.roots)
    fake.text(journal.directory(fake.roots) / "0.json", "{")
    assert [one.rule for one in verdicts(fake).unchecked] == ["earlier-bind"]


@pytest.mark.fault("R14", "R15")
def test_no_way_back_and_no_iommu(fake: FakeSys) -> None:
    fake.pci(AT, "rng", driver=None)
    assert [(f.rule, f.severity) for f in verdicts(fake).findings] == [
        ("no-way-back", "warn"), ("unsafe-dma", "refuse")]  # fmt: skip


@pytest.mark.fault("R16")
@pytest.mark.parametrize(("text", "refused"), [("[none] integrity confidentiality", False),
                                               ("none [integrity] confidentiality", True)])  # fmt: skip
def test_lockdown(fake: FakeSys, text: str, refused: bool) -> None:
    fake.pci(AT, "rng")
    fake.text(fake.sys / "kernel/security/lockdown", text + "\n")
    assert bool(found(fake, "lockdown")) is refused
    fake.vdpa("vdpa0", driver="virtio_vdpa")
    assert not found(fake, "lockdown", "vdpa:vdpa0")  # its node stays open to root


def test_a_vdpa_disk_that_is_mounted_stays(fake: FakeSys) -> None:
    device = fake.vdpa("vduse0", driver="virtio_vdpa")
    fake.child(device, "virtio0/block/vda", "block", {"dev": "254:0\n"})
    fake.mountinfo(["30 1 254:0 / /data rw - ext4 /dev/vda rw"])
    assert [f.evidence for f in found(fake, "mounted", "vdpa:vduse0")] == ["/dev/vda is mounted on /data"]


@pytest.mark.fault(94, "R16")
def test_a_container(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    fake.mountinfo(["20 1 0:20 / /sys ro,nosuid - sysfs sysfs ro"])
    (finding,) = found(fake, "container")
    assert not finding.forceable


def test_warnings_refuse_nothing() -> None:
    findings = [Finding("a", "x", "warn"), Finding("b", "y"), Finding("c", "z", forceable=False)]
    assert [f.rule for f in refusals(findings)] == ["b", "c"]
    assert [f.rule for f in refusals(findings, ["b", "c"])] == ["c"]


# --- suspend and many ---------------------------------------------------------------------------------------


@pytest.mark.fault("R17")
def test_a_machine_about_to_sleep_is_warned_about(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    assert not found(fake, "suspend")
    fake.text(fake.roots.proc / "77/comm", "systemd-sleep\n")
    fake.text(fake.roots.run / "systemd/shutdown/scheduled", "USEC=1\n")
    assert [(one.evidence, one.severity) for one in found(fake, "suspend")] == [
        ("systemd-sleep (77) is at work", "warn"),
        ("a shutdown is scheduled", "warn"),
    ]


@pytest.mark.fault("R18")
def test_many_devices_at_once_have_to_be_meant(fake: FakeSys) -> None:
    addresses = [f"0000:0{slot}:00.0" for slot in range(1, 7)]
    for number, address in enumerate(addresses):
        fake.pci(address, "rng", group=10 + number)
    founds = [discover.find(address, fake.roots) for address in addresses]

    def refused(founds: list[discover.DiscoveredDevice], force: tuple[str, ...] = ()) -> bool:
        made = plan.plans(founds, fake.roots, force=force)
        return any("the rule many" in problem.message for one in made for problem in one.problems)

    assert not refused(founds[: rules.MANY])
    assert refused(founds[: rules.MANY + 1])
    assert not refused(founds, ("many",))
