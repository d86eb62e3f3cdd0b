"""A command line that is read without typer means what typer makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvirtio.cli import command, deferred, main, parser, plain
from uvirtio.cli.app import _find, make_tree
from uvirtio.cli.command import Invocation
from uvirtio.errors import UsageError


@cache
def tree() -> deferred.Typer:
    return make_tree()


@cache
def app() -> Any:
    return parser.make_app(tree(), options=False)


@cache
def verbs() -> dict[str, deferred.Verb]:
    groups = [tree(), *tree().groups.values()]
    return {one.name: one for group in groups for one in group.verbs.values()}


def ours(words: list[str]) -> dict[str, Any] | None:
    found = _find(tree(), words)
    assert found is not None
    return plain.read(*found)


def typers(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    """What typer gives to the function of a verb; None: the words have a mistake, or ask for help."""
    seen: list[dict[str, Any]] = []

    def note(_: deferred.Verb, given: dict[str, Any], invocation: Invocation) -> int:
        assert invocation.words == tuple(words)
        seen.append(given)
        return 0

    with monkeypatch.context() as patched:
        patched.setattr(command, "run", note)
        try:
            parser.run(app(), Invocation(tuple(words)))
        except UsageError:
            return None
    return seen.pop() if seen else None


def typed(found: dict[str, Any] | None) -> dict[str, tuple[type, Any]] | None:
    return None if found is None else {name: (type(value), value) for name, value in found.items()}


@pytest.mark.parametrize(
    "line",
    [
        "list",
        "list net --names --json --json",
        "list --from a --root /r --from b",
        "diag D --without 5 --backend uio --without 6 -v --vf-token x",
        "bind A --driver vfio-pci B C --owner me",
        "restore --all",
        "restore A B",
        "rng read D 32 --hex -o FILE",
        "net send D 00 11",
    ],
)
def test_a_plain_line_is_read_as_typer_reads_it(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = line.split()
    found = ours(words)
    assert found is not None
    assert typed(found) == typed(typers(words, monkeypatch))


@pytest.mark.parametrize(
    "line",
    [
        "list --help",
        "list net blk",
        "list --nam",
        "list --json=1",
        "list --root",
        "list --root --json",
        "list -F -",
        "list -- net",
        "list -vF x",
        "diag",
        "diag D --timeout 2",
        "diag D --ring packed",
        "diag D --trace FILE",
        "input led D capsl on",
        "bind",
    ],
)
def test_what_is_not_plain_is_left_to_typer(line: str) -> None:
    assert ours(line.split()) is None


def test_an_empty_word_is_left_to_typer() -> None:
    assert ours(["list", ""]) is None
    assert ours(["list", "--root", ""]) is None


def test_what_typer_is_told_beside_texts_is_left_to_typer() -> None:
    told = deferred.Option("--count", min=1)
    parameter = deferred.Parameter(str, told, "")
    verb = deferred.Verb("x", lambda cmd: 0, opens=False, streams=False, common={"count": parameter})
    assert plain.read(verb, []) == {"count": ""}
    assert plain.read(verb, ["--count", "3"]) is None


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_read_is_read_as_typer_reads_it(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(verbs())))
    one = verbs()[name]
    options = [word for each in {**one.own(), **one.common}.values() for word in each.told.names]
    words = st.one_of(
        st.sampled_from([*options, *(f"{option}=7" for option in options)]),
        st.sampled_from(["-", "D", "E", "7", "on", "polling", "packed", "all", "--", "-x"]),
        st.text(max_size=4),
    )
    line = [*name.split(), *data.draw(st.lists(words, max_size=6))]
    found = ours(line)
    if found is not None:
        assert typed(found) == typed(typers(line, pytest.MonkeyPatch())), line


def test_the_help_of_a_narrow_terminal_is_typers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = []
    for columns in ("", "80", "60"):
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        assert main(["--help"]) == 0
        shown.append(capsys.readouterr().out)
    kept, typers, narrow = shown
    assert kept == typers != narrow
    assert max(map(len, narrow.splitlines())) < 60


@pytest.mark.parametrize("line", ["list", "list --json", "explain UV-USAGE", "--help"])
def test_a_plain_line_does_not_import_typer(line: str, tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    words = [*line.split(), *(["--root", str(tmp_path)] if line != "--help" else [])]
    # dataclasses and inspect take as long as the rest of list's own imports: records are named tuples on its way.
    heavy = {"typer", "rich", "pydantic"} | ({"dataclasses", "inspect"} if "list" in words else set())
    script = (
        "import sys; from uvirtio.cli import main; code = main(sys.argv[1:]); "
        "print(code, *{one.partition('.')[0] for one in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert not heavy & set(loaded)
