"""What a remedy says to an ordinary user, and to root, who cannot become more than root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.host import privilege

EVERYTHING = "CapEff:\t000001ffffffffff\n"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.text(made.roots.proc / "self/status", EVERYTHING)
    made.text(made.roots.proc / "self/uid_map", "         0          0 4294967295\n")
    return made


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege.os, "geteuid", lambda: 0)


def test_an_ordinary_user_may_become_root(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege.os, "geteuid", lambda: 1000)
    fake.text(fake.sys / "kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert privilege.remedy(roots=fake.roots) == "run as root"
    assert privilege.remedy("as root: x", also="do y", roots=fake.roots) == "as root: x; or do y"


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "locked down (integrity)"),
        ("proc/self/uid_map", "         0       1000          1\n", "user namespace"),
        ("proc/self/status", "CapEff:\t00000000a80425fb\n", "CAP_SYS_ADMIN"),
        (
            "proc/self/mountinfo",
            "20 1 0:20 / / rw - ext4 x rw\n21 1 0:20 / /sys ro - sysfs sysfs ro\n",
            "/sys is mounted",
        ),
        ("etc/none", "", "security module"),
    ],
)
@pytest.mark.usefixtures("root")
def test_root_is_told_what_refuses_it(fake: FakeSys, file: str, text: str, word: str) -> None:
    fake.text(fake.top / file, text)
    told = privilege.remedy("run as root", path=fake.sys / "bus/pci/drivers_probe", roots=fake.roots)
    assert word in told and "run as root" not in told
    assert privilege.remedy(also="do y", roots=fake.roots).endswith("; or do y")


@pytest.mark.usefixtures("root")
def test_a_file_system_that_can_be_written_is_not_blamed(fake: FakeSys) -> None:
    fake.mountinfo(["20 1 0:20 / / ro - ext4 x ro", "21 1 0:21 / /run rw - tmpfs x rw"])
    assert "read-only" not in privilege.remedy(path=fake.roots.run / "uvirtio", roots=fake.roots)
    fake.mountinfo(["20 1 0:20 / / rw - ext4 x rw", "21 1 0:21 / /run ro - tmpfs x ro"])
    assert "/run is mounted read-only" in privilege.remedy(path=fake.roots.run / "uvirtio", roots=fake.roots)


def test_no_remedy_sends_root_to_root() -> None:
    """What says to run as root goes through privilege.remedy; "as root: COMMAND" is a command for both."""
    package = Path(privilege.__file__).parents[1]
    found = 0
    for path in sorted(package.rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for match in re.finditer(r"""["']run (?:this )?as root""", text):
            before = text[max(0, match.start() - 60) : match.start()]
            assert re.search(r"privilege\.remedy\( ?$|become: str = $", before), (path, before)
            found += 1
    assert found > 10
