"""vDPA devices on PCI functions and on their sub-functions: what holds for the one below holds for those above."""

from __future__ import annotations

from pathlib import Path

import pytest

import uvirtio
from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.backends.vhost_vdpa import names
from uvirtio.binding import discover
from uvirtio.binding.bind import bind
from uvirtio.binding.owner import check_owner_allowed
from uvirtio.binding.plan import plan, plans
from uvirtio.binding.rules import check, in_use
from uvirtio.cli import main
from uvirtio.errors import Denied, InUse, Refused
from uvirtio.opening import open_function

FUNCTION, SUB = "0000:03:00.0", "mlx5_core.sf.4"
MLX5 = (0x15B3, 0x101E)


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.text(made.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    return made


def deny(fake: FakeSys, *lines: str) -> None:
    fake.text(fake.roots.etc / "uvirtio/deny", "".join(f"{line}\n" for line in lines))


def on_sub_function(fake: FakeSys, driver: str | None = "vhost_vdpa") -> Path:
    """A vDPA device on a sub-function of a network card's function, whose DMA is the function's."""
    function = fake.pci(FUNCTION, None, pci_id=MLX5, driver="mlx5_core", group=7, pci_class=0x020000)
    fake.vdpa("vdpa0", on=fake.sub_function(function), driver=driver, kind="net", dma=function)
    return function


def uses(fake: FakeSys, address: str) -> list[tuple[str, str, bool]]:
    findings = check(discover.find(address, fake.roots), fake.roots).findings
    return [(one.rule, one.evidence, one.forceable) for one in in_use(findings)]


# --- the deny list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [FUNCTION, "3:0.0", "0000:03:*", SUB, "vdpa:vdpa0", "/dev/vhost-vdpa-0", "*"])
def test_denying_a_function_denies_what_stands_on_its_sub_functions(fake: FakeSys, line: str) -> None:
    on_sub_function(fake)
    uvirtio.check_denied("vdpa:vdpa0", roots=fake.roots)
    deny(fake, line)
    found = discover.find("vdpa:vdpa0", fake.roots)
    assert [one.code for one in plan(found, fake.roots).problems] == ["UV-REFUSED-DENIED"]
    for address in ("vdpa:vdpa0", "/dev/vhost-vdpa-0"):
        with pytest.raises(Denied):
            uvirtio.check_denied(address, roots=fake.roots)
        with pytest.raises(Denied):
            open_function(address, roots=fake.roots)


def test_denying_a_bridge_denies_nothing_behind_it(fake: FakeSys) -> None:
    """As for functions: a line names one device, a glob many."""
    on_sub_function(fake)
    deny(fake, "0000:00:01.0", "pci0000:00")
    uvirtio.check_denied("vdpa:vdpa0", roots=fake.roots)


@pytest.mark.parametrize("line", ["vdpa:vdpa0", "/dev/vhost-vdpa-0"])
def test_a_function_is_not_taken_from_below_a_denied_device(fake: FakeSys, line: str) -> None:
    """Unbinding the function would remove the vDPA device."""
    fake.driver("vfio-pci")
    fake.vdpa("vdpa0", on=fake.pci(FUNCTION, "blk", driver="vp-vdpa", group=7))
    deny(fake, line)
    with pytest.raises(Denied):
        bind(
            [discover.find(FUNCTION, fake.roots)],
            fake.roots,
            force=["other-use"],
            writer=FakeKernel(fake),
            sleep=lambda _: None,
        )


@pytest.mark.parametrize("line", ["/dev/vfio/7", "/dev/vfio/devices/vfio3"])
def test_a_node_that_is_denied_denies_the_function_by_its_address(fake: FakeSys, line: str) -> None:
    fake.vfio(fake.pci(FUNCTION, "rng", driver=None, group=7), 3)
    deny(fake, line)
    with pytest.raises(Denied):
        open_function(FUNCTION, roots=fake.roots)


# --- what it is, and on what it stands ---------------------------------------------------------------------


def test_a_sub_function_is_shown_with_its_function(fake: FakeSys, capsys: pytest.CaptureFixture[str]) -> None:
    on_sub_function(fake)
    found = discover.find("vdpa:vdpa0", fake.roots)
    assert (found.parent, found.above) == (SUB, (SUB, FUNCTION))
    assert names.behind("vdpa0", fake.roots) == f"{SUB} (auxiliary) of {FUNCTION}"
    assert main(["inspect", "vdpa:vdpa0", "--root", str(fake.top)]) == 0
    assert f"{SUB} of {FUNCTION}" in capsys.readouterr().out


@pytest.mark.parametrize("driver", ["vp-vdpa", "ifcvf"])
@pytest.mark.parametrize("sub", [False, True])
def test_the_type_is_that_of_the_virtio_function(fake: FakeSys, driver: str, sub: bool) -> None:
    function = fake.pci(FUNCTION, "balloon", driver=driver, group=7)
    fake.vdpa("vdpa0", on=fake.sub_function(function) if sub else function)
    found = discover.find("vdpa:vdpa0", fake.roots)
    assert (found.type, found.device_id, found.notes) == ("balloon", 5, ())
    with pytest.raises(Refused) as caught:
        check_owner_allowed(plans([found], fake.roots), ())
    assert "a balloon device takes memory" in str(caught.value.seen)


def test_a_network_cards_function_has_no_virtio_type(fake: FakeSys) -> None:
    on_sub_function(fake)
    assert discover.find("vdpa:vdpa0", fake.roots).device_id is None


# --- what this machine does with it ------------------------------------------------------------------------


def mounted(fake: FakeSys, virtio: Path) -> None:
    fake.child(virtio, "block/vda", "block", {"dev": "254:0\n"})
    fake.mountinfo(["30 1 254:0 / / rw - ext4 /dev/vda rw"])


def test_the_disk_of_a_vdpa_device_lies_below_its_function(fake: FakeSys) -> None:
    """virtio_vdpa puts the virtio device below what does the DMA: the function, beside the vDPA device."""
    function = fake.pci(FUNCTION, "blk", driver="vp-vdpa", group=7)
    fake.vdpa("vdpa0", on=function, driver="virtio_vdpa", dma=function)
    mounted(fake, function / "virtio0")
    found = discover.find("vdpa:vdpa0", fake.roots)
    assert (found.virtio_name, found.kernel_driver) == ("virtio0", "virtio_blk")
    assert ("mounted", "/dev/vda is mounted on /", False) in uses(fake, "vdpa:vdpa0")
    with pytest.raises(InUse):
        bind([found], fake.roots, force=["mounted"], writer=FakeKernel(fake), sleep=lambda _: None)


def test_a_disk_that_may_belong_to_either_keeps_both(fake: FakeSys) -> None:
    """Where several vDPA devices share a function, sysfs does not say whose the virtio devices are."""
    function = fake.pci(FUNCTION, None, pci_id=MLX5, driver="mlx5_core", group=7)
    for number in (0, 1):
        fake.vdpa(
            f"vdpa{number}",
            on=fake.sub_function(function, f"mlx5_core.sf.{number}"),
            driver="virtio_vdpa",
            kind="net",
            dma=function,
        )
    fake.child(function, "virtio1/net/eth1", "net", {"flags": "0x1003\n"})
    for number in (0, 1):
        found = discover.find(f"vdpa:vdpa{number}", fake.roots)
        assert found.virtio_name is None and len(found.elsewhere) == 2
        assert ("network", "eth1 is up", True) in uses(fake, f"vdpa:vdpa{number}")
    fake.vdpa("vdpa2", on=function, driver="vhost_vdpa")
    assert not uses(fake, "vdpa:vdpa2"), "that one is open in a process, or free"


def test_a_function_is_in_use_by_what_stands_on_its_sub_functions(fake: FakeSys) -> None:
    """And by what the kernel does with the virtio device below that."""
    function = fake.pci(FUNCTION, "mem", driver="vp-vdpa", group=7)
    sub = fake.sub_function(function)
    fake.vdpa("vdpa0", on=sub, driver="virtio_vdpa", kind="mem")
    fake.text(fake.roots.proc / "iomem", "0-0 : System RAM\n0-0 : virtio0\n  0-0 : System RAM (virtio_mem)\n")
    assert uses(fake, FUNCTION) == [
        ("memory-in-use", "/proc/iomem: System RAM (virtio_mem) inside virtio0", False),
        ("other-use", "the vDPA device vdpa:vdpa0 stands on it", True),
    ]


def test_the_process_that_drives_a_vdpa_device_keeps_its_function(fake: FakeSys) -> None:
    """Unbinding the function would wait until that process ends: no --force changes that."""
    fake.vdpa("vdpa0", on=fake.sub_function(fake.pci(FUNCTION, "rng", driver="vp-vdpa", group=7)))
    fake.opened("/dev/vhost-vdpa-0")
    assert ("other-use", "/dev/vhost-vdpa-0 is open in process 4242 (holder --run)", False) in uses(fake, FUNCTION)


def test_another_functions_device_is_nothing_to_this_one(fake: FakeSys) -> None:
    fake.pci("0000:04:00.0", "rng", driver="vp-vdpa", group=8)
    fake.vdpa("vdpa0", on=fake.sub_function(fake.pci(FUNCTION, "rng", driver="vp-vdpa", group=7)))
    fake.opened("/dev/vhost-vdpa-0")
    assert not uses(fake, "0000:04:00.0")
