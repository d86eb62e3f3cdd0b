"""Files that no kernel has and a foreign tree may: far too long, and in the place of what is read whole."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.cli.app import run

AT = "0000:03:00.0"
WHOLE = ["proc/config.gz", "proc/vmstat", "proc/meminfo", "proc/iomem", "etc/uvirtio/deny"]
HUGE = 1 << 36  # bytes, none of them on the disk


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.pci(AT, "rng")
    return made


@pytest.fixture
def little_memory() -> Iterator[None]:
    """So that what is read whole fails at once, wherever a machine has 64 GiB to give."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def huge(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE)
    return path


@pytest.mark.fault(97)
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_without_end_is_read_to_a_bound(
    fake: FakeSys, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    huge(fake.top / name)
    code = run(["doctor", "--json", "--root", str(fake.top)])
    told = json.loads(capsys.readouterr().out)
    assert code in (0, 4) and "error" not in told and told["checks"]
    if "deny" in name:  # what would be behind the bound may name any device
        assert run(["bind", AT, "--root", str(fake.top)]) == 3
        assert "UV-REFUSED-DENIED" in capsys.readouterr().err


@pytest.mark.fault(97)
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list", "-F", "FILE"], "UV-USAGE-DUMP"),
        (["report", "merge", "FILE", "-o", "OUT"], "UV-OPERATION"),
        (["replay", "FILE"], "UV-USAGE-TRACE"),
        (["conform", "scripted:rng", "--expect", "FILE"], "UV-OPERATION"),
        (["input", "replay", "FILE"], "UV-USAGE"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_given_file_without_end_is_refused(
    tmp_path: Path, words: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"FILE": str(huge(tmp_path / "file")), "OUT": str(tmp_path / "out")}
    assert run([names.get(word, word) for word in words]) in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith(f"uvirtio: {code}") and "UV-BUG" not in told
