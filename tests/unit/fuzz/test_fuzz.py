"""tools/fuzz: every input of the corpus ends as it may, and a fault that is put there is found."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from fuzzers import findings, libfuzzer, loop, target, targets

from uvirtio.errors import Closed, UvirtioError
from uvirtio.host import denylist
from uvirtio.transports import pci_base, pci_caps
from uvirtio.virtqueue.base import VirtqueueBase

_FEW = 25
"""Seeds of a target that are run here; tools/fuzz runs all."""


@pytest.fixture
def made() -> Iterator[Any]:
    """Make a target, which is closed at the end."""
    every: list[target.Target] = []

    def make(kind: type[target.Target]) -> target.Target:
        every.append(kind())
        return every[-1]

    yield make
    for one in every:
        one.close()


@pytest.mark.parametrize("name", targets.BY_NAME)
def test_the_corpus_and_the_seeds_end_as_they_may(made: Any, name: str) -> None:
    one = made(targets.BY_NAME[name])
    before = findings.descriptors()
    for data in [*target.corpus(name), *islice(one.seeds(), _FEW)]:
        error = findings.fault(one, data)
        if error is not None:
            raise error
    assert findings.descriptors() == before


def test_the_corpus_is_small_and_of_targets() -> None:
    files = sorted(target.CORPUS.iterdir())
    assert {path.stem for path in files} <= targets.BY_NAME.keys()
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        assert target.corpus(path.stem), path


def fuzzed(one: target.Target, executions: int, seed: int = 1) -> loop.Result:
    return loop.Loop(one, seed, most_findings=1).run(executions)


def _no_check(self: Any, written: int, room: int) -> int:
    return written


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "broken", "said"),
    [
        ("split", VirtqueueBase, "too_long", _no_check, "Lie"),
        ("packed", VirtqueueBase, "too_long", _no_check, "Lie"),
        ("capabilities", pci_caps, "judge", lambda cap, kind, bars: cap, "Lie"),
        ("deny", denylist, "patterns", lambda roots: [], "Lie"),
        ("traces", pci_base.PciBase, "_disconnect", lambda self: None, "Leaked"),
    ],
)
def test_a_fault_that_is_put_there_is_found(
    made: Any, monkeypatch: pytest.MonkeyPatch, name: str, owner: Any, attribute: str, broken: Any, said: str
) -> None:
    one = made(targets.BY_NAME[name])
    monkeypatch.setattr(owner, attribute, broken)
    result = fuzzed(one, 1500)
    (finding,) = result.findings
    assert finding.key.startswith(said) and finding.target == name
    again = findings.fault(one, finding.data)
    assert said == "Leaked" or (again is not None and findings.key(again) == finding.key)
    monkeypatch.undo()
    assert findings.fault(one, finding.data) is None, "without the fault it ends as it may"


class Toy(target.Target):
    """A target with a fault of each kind."""

    name = "toy"
    about = ""
    weight = 1
    modules = ()
    tokens = (b"wrong", b"hang", b"leak")

    def __init__(self) -> None:
        self.kinds: tuple[bytes, ...] = self.tokens
        self.left: list[int] = []

    def run(self, data: bytes) -> Hashable:
        if b"wrong" in data and b"wrong" in self.kinds:
            raise KeyError(data)
        if b"leak" in data and b"leak" in self.kinds:
            self.left.append(os.open("/dev/null", os.O_RDONLY))
        while b"hang" in data and b"hang" in self.kinds:
            pass
        if b"plain" in data:
            raise UvirtioError("an error without a code of its own")
        raise Closed("as it may")

    def close(self) -> None:
        for number in self.left:
            os.close(number)
        self.left.clear()


@pytest.mark.parametrize(
    ("kind", "key", "small"),
    [(b"wrong", "KeyError", b"wrong"), (b"hang", "Hung", None), (b"leak", "Leaked", None)],
)
def test_each_kind_of_finding(
    made: Any, monkeypatch: pytest.MonkeyPatch, kind: bytes, key: str, small: bytes | None
) -> None:
    monkeypatch.setattr(findings, "HANG", 0.2)
    one = made(Toy)
    one.kinds = (kind,)
    (finding,) = fuzzed(one, 5000).findings
    assert finding.key.startswith(key) and kind in finding.data
    assert small is None or finding.data == small, "made small"


def test_an_error_without_a_code_is_a_finding(made: Any) -> None:
    assert isinstance(findings.fault(made(Toy), b"plain"), UvirtioError)
    assert findings.fault(made(Toy), b"") is None


def test_the_same_seed_gives_the_same_run(made: Any) -> None:
    runs = [fuzzed(made(targets.BY_NAME["evemu"]), 700, seed) for seed in (3, 3, 4)]
    assert runs[0].kept == runs[1].kept != runs[2].kept
    assert runs[0].executions == runs[1].executions


def test_what_libfuzzer_is_told_to_run_tells_and_keeps_what_it_finds(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = libfuzzer.Once(made(Toy), tmp_path)
    once(b"")
    with pytest.raises(KeyError):
        once(b"what is wrong here")
    (file,) = tmp_path.iterdir()
    said = capsys.readouterr().out
    assert file.read_bytes() == b"wrong" and f"--replay {file}" in said and "execution 2; 18 bytes, made 5" in said


def test_libfuzzer_is_told_of_descriptors_that_stay_open(made: Any, tmp_path: Path) -> None:
    one = made(Toy)
    once = libfuzzer.Once(one, tmp_path)
    once(b"leak")  # what is opened once, and kept, is no leak
    once(b"")
    with pytest.raises(AssertionError, match="Leaked"):
        once(b"leak")
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"leak"


def test_without_atheris_that_is_said(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert libfuzzer.run("qmp", 1, 1, tmp_path) == 4
    assert "uvirtio[fuzz]" in capsys.readouterr().err
    assert libfuzzer.quoted(b'a"\0') == '"\\x61\\x22\\x00"' and not libfuzzer.quoted(b"")
