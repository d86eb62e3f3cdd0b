"""tools/mutate: what it makes of a guard, that its draw is the seed's, and that a fork of pytest judges by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from mutants import books, guards, runner  # noqa: E402

_MODULE = """
class Gate:
    @property
    def open(self):
        def inner(value):
            if 0 <= value < 10 and value != 5:
                raise ValueError
        if self.shut:
            return None
        return inner

    def quiet(self, value):
        if value:
            value += 1
        return value
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkout of one module."""
    monkeypatch.setattr(guards, "ROOT", tmp_path)
    (tmp_path / "uvirtio/host").mkdir(parents=True)
    (tmp_path / "uvirtio/host/gate.py").write_text(_MODULE)
    return "uvirtio/host/gate.py"


def test_a_guard_is_deleted_negated_and_weakened(module: str) -> None:
    first, second = guards.of_file(module)
    assert [one.after for one in first] == [
        "False",
        "not (0 <= value < 10 and value != 5)",
        "value != 5",
        "0 <= value < 10",
        "0 < value < 10 and value != 5",
        "0 <= value <= 10 and value != 5",
    ]
    assert {one.function for one in (*first, *second)} == {"Gate.open"}, "the outermost function"
    assert [one.after for one in second] == ["False", "not self.shut"], (
        "and a condition that leaves nothing is none"
    )


def test_the_draw_is_the_seeds() -> None:
    drawn = guards.drawn(7, 30)
    assert drawn == guards.drawn(7, 30) != guards.drawn(8, 30)
    assert len({(one.file, one.number) for one in drawn}) == 30, "each guard once"
    assert {one.part for one in guards.drawn(7, 150)} == set(guards.PARTS)
    assert drawn[:12] == guards.drawn(7, 12), "a smaller draw is its beginning"


def test_guards_that_come_leave_the_draw_as_it_is(module: str) -> None:
    def names(count: int) -> list[tuple[str, str]]:
        return [(one.function, one.after) for one in guards.drawn(3, count)]

    before = names(2)
    path = guards.ROOT / module
    path.write_text("def new(value):\n    if value:\n        return 1\n\n" + path.read_text())
    assert [one for one in names(3) if one[0] != "new"] == before


def test_every_drawn_function_is_found_and_takes_its_mutant() -> None:
    for mutant in guards.drawn(1, 40):
        function = runner.function_of(mutant)
        made = guards.code(mutant)
        assert made.co_qualname == mutant.function == function.__code__.co_qualname
        assert made.co_freevars == function.__code__.co_freevars
        tells = guards.probed(mutant.file, mutant.function, [mutant.number], "probe")
        assert tells.co_freevars == made.co_freevars and tells.co_code != function.__code__.co_code, mutant
        assert made.co_code != function.__code__.co_code or made.co_consts != function.__code__.co_consts, mutant


def test_what_survived_once_can_still_be_made() -> None:
    assert len(books.once()) >= 7


def test_what_is_called_equivalent_is_there_and_has_a_reason() -> None:
    files = {file for file, *_ in books.equivalents()}
    every = {books.key(one) for file in files for guard in guards.of_file(file) for one in guard}
    for known, reason in books.equivalents().items():
        assert known in every, f"{known} is no mutant any more"
        assert len(reason) > 10


_TEST = """
from uvirtio.host import cpu
from uvirtio.virtqueue.chain import measure


def test_a(tmp_path):
    (tmp_path / "file").touch()
    assert measure([(1, 2)], [], 4) == 0


def test_b():
    import pytest
    from uvirtio.errors import BadChain

    with pytest.raises(BadChain):
        measure([], [], 4)


def test_c():
    import os
    from uvirtio.host import capabilities

    if (child := os.fork()) == 0:
        os._exit(capabilities.number("SYS_ADMIN") != 21)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_mutants_are_judged_by_the_tests_that_reach_them(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_TEST)
    (tmp_path / "judge.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import pytest\n"
        "from mutants import guards, runner\n"
        "chosen = [one for guard in guards.of_file('uvirtio/virtqueue/chain.py') for one in guard]\n"
        "chosen += guards.of_file('uvirtio/host/denylist.py')[0][:1]\n"
        "names = 'uvirtio/host/capabilities.py'\n"
        "chosen[:0] = next(guard for guard in guards.of_file(names) if guard[0].function == 'number')[:1]\n"
        "told, again = [], []\n"
        f"files = {str(tmp_path / 'files')!r}\n"
        "left = []\n"
        "judge = runner.Judge(chosen, lambda one: (told.append(one), left.append(os.path.exists(files))))\n"
        "words = ['-q', '-s', '-p', 'no:cacheprovider', '-p', 'no:randomly', '--basetemp', files]\n"
        f"words += [{str(tmp_path / 'test_it.py')!r}]\n"
        "pytest.main(words, plugins=[judge])\n"
        "print(*[f'{one.end} {one.mutant.after} {one.by}' for one in told], sep='\\n')\n"
        "print('left', any(left))\n"
        "noticed = [one for one in told if one.by][:1]\n"
        "known = {noticed[0].mutant: noticed[0].by, chosen[-1]: noticed[0].by}\n"
        "pytest.main(words, plugins=[runner.Judge(list(known), again.append, known)])\n"
        "print('again', [one.mutant.after for one in again] == [noticed[0].mutant.after])\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "judge.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )
    ends = done.stdout.splitlines()
    killed = [line for line in ends if line.startswith("killed False")]
    assert killed and all("test_it.py::test_" in line for line in killed), done.stdout + done.stderr
    assert any(line.startswith("survived ") for line in ends), "two tests do not notice everything"
    assert any(line.startswith("unreached ") for line in ends), "nothing here reaches the deny list"
    assert any(line.endswith("test_it.py::test_c") for line in killed), "what comes to it is a fork of the test"
    assert "left False" in ends, (
        "the files of thousands of tests would use up the time of the next fork's first test"
    )
    assert "again True" in ends, "what a test is known to notice is noticed by that test alone"


def test_verdicts_are_kept_by_mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "RECORD", tmp_path / "record")
    one, two, three = guards.drawn(7, 3)
    assert books.kept() == {}
    monkeypatch.setattr(books, "_kept_names", lambda: {books.key(one), books.key(two)})
    books.keep([runner.Verdict(one, "survived", "", 1.0), runner.Verdict(two, "hung", "test", 1.0)])
    monkeypatch.setattr(books, "_kept_names", lambda: {books.key(one), books.key(three)})
    books.keep([runner.Verdict(one, "killed", "tests/x.py::test", 1.0)])
    assert [(name, kept.end, kept.by) for name, kept in books.kept().items()] == [
        (books.key(one), "killed", "tests/x.py::test")
    ], "and what is not drawn any more is forgotten"
