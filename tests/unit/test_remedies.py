"""Remedies: what they name exists, and works where they are printed."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvirtio
from uvirtio.binding import journal
from uvirtio.cli import plain
from uvirtio.cli.app import _find, make_tree, run
from uvirtio.cli.completion.table import GROUPS, HIDDEN, TOP, VERBS
from uvirtio.device import QueueSpec
from uvirtio.errors import EnvironmentLack, FeatureMissing, FeaturesRefused, UvirtioError
from uvirtio.evidence.files import Evidence
from uvirtio.host.roots import Roots
from uvirtio.opening import identify
from uvirtio.scripted import Rng, ScriptedDevice, ScriptedLegacy, ScriptedMmio
from uvirtio.spec import features as f

PACKAGE = Path(uvirtio.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"\buvirtio( (?!and\b|or\b|is\b)[a-z][a-z-]*( [a-z][a-z-]*)?[^,;:)`(]*)")
CALL = re.compile(r"\w\(|\w=|\b[a-z]+_[a-z]+\b|\bcapacity\b")

FLAGS = {flag for _, _, options in VERBS.values() for flag in options} | set(TOP) | HIDDEN
PROGRAMS = ("uvirtio diag", "uvirtio input record")
"""Commands that are meant as such: a look at the device from outside, and what writes a kind of file."""

THEIRS = {"--memlock", "--device", "--show-completion", "--export"}
"""Options of prlimit, qemu-storage-daemon and of containers' tools; an option without a verb."""


def texts(node: ast.expr) -> Iterator[str]:
    """The strings in an expression; what an f-string puts in is X."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from texts(child)


def told(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of a remedy in a node: an argument of that name, the fourth of a check of doctor's, what is
    kept under such a name, and what a function of such a name returns."""
    if isinstance(node, ast.keyword) and node.arg == "remedy":
        yield node.value
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Check":
        yield from node.args[3:4]
    elif isinstance(node, ast.Assign) and any("remedy" in ast.unparse(one).lower() for one in node.targets):
        yield node.value
    elif isinstance(node, ast.FunctionDef) and "remedy" in node.name:
        yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None)


def remedies() -> Iterator[tuple[str, str]]:
    """Every remedy in the package that is written where an error is made, and the place of it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "remed" not in source.lower() and "Check(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            for value in told(node):
                for text in texts(value):
                    yield f"{path.relative_to(PACKAGE)}:{value.lineno}", text


EVERY = list(remedies())


def verb_of(words: list[str]) -> str | None:
    """The verb that a command begins with; None: there is none such."""
    pair = " ".join(words[:2])
    if words[0] in GROUPS:
        return pair if pair in VERBS else None
    return words[0] if words[0] in VERBS else None


def test_there_are_remedies_to_look_at():
    assert len(EVERY) > 200
    assert sum(1 for _, text in EVERY if COMMAND.search(text)) > 40


def test_each_command_exists_and_takes_its_flags():
    wrong = []
    for place, text in EVERY:
        for found in COMMAND.finditer(text):
            words = found[1].split()
            if words[0].startswith("--"):
                continue
            verb = verb_of(words)
            flags = FLAG.findall(found[1].split(" or ")[0])
            if verb is None or set(flags) - set(VERBS[verb][2]):
                wrong.append(f"{place}: {found[0]}")
    assert not wrong


VALUES = {"SIZE": "64M", "SECONDS": "5", "N": "5", "LUN": "0:0", "-": "DEV"}
MENTIONED = {"bind --group", "diag"}
"""Verbs that a remedy names and does not print to be typed."""


def test_each_command_is_one_that_can_be_typed():
    """Its words, up to the prose behind them, have all arguments of the verb, and values that the verb takes."""
    wrong = []
    for place, text in EVERY:
        for found in COMMAND.finditer(text):
            words = [VALUES.get(word, word) for word in found[1].split(" or ")[0].split()]
            if words[0].startswith("--") or " ".join(words) in MENTIONED:
                continue
            verb = _find(make_tree(words[0]), words)
            assert verb is not None, f"{place}: {found[0]}"
            one, rest = verb
            read = [count for count in range(len(rest) + 1) if plain.read(one, rest[:count]) is not None]
            named = [count for count, word in enumerate(rest, 1) if word.startswith("-") or word.isupper()]
            if not read or max(named, default=0) > max(read):
                wrong.append(f"{place}: {found[0]}")
    assert not wrong


def test_each_flag_is_one_of_some_verb():
    assert not [f"{place}: {text}" for place, text in EVERY if set(FLAG.findall(text)) - FLAGS - THEIRS]


def test_a_driver_s_remedy_says_it_in_python_too():
    """Who calls ``Blk.read`` has no command line; where an option or a verb helps, its call stands beside it."""
    lacking = [
        f"{place}: {text}"
        for place, text in EVERY
        if place.startswith(("drivers/", "device/"))
        and (COMMAND.search(text) or set(FLAG.findall(text)) - THEIRS)
        and not CALL.search(text)
        and not any(program in text for program in PROGRAMS)
    ]
    assert not lacking


# --- by transport ---------------------------------------------------------------------------------------------

LEGACY_ID = 0x1005
PACKED = f.mask(f.VERSION_1, f.RING_PACKED)


def refusal(function: object, *, required: int = 0, **how: object) -> str:
    with identify("0000:00:04.0", function, **how) as device:  # type: ignore[arg-type]
        with pytest.raises((FeatureMissing, FeaturesRefused)) as raised:
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0")], required=required)
        return str(raised.value.remedy)


@pytest.mark.parametrize(
    ("made", "how", "names", "not_named"),
    [
        (lambda: ScriptedDevice(Rng(), features=0), {}, "no legacy interface", "--force-legacy"),
        (lambda: ScriptedDevice(Rng(), features=0, pci_device=LEGACY_ID), {}, "--force-legacy", "no legacy"),
        (lambda: ScriptedMmio(Rng(), features=0), {}, "no legacy interface", "--force-legacy"),
        (lambda: ScriptedLegacy(Rng()), {"required": f.mask(f.VERSION_1)}, "--force-legacy", "virtio-mmio"),
        (
            lambda: ScriptedMmio(Rng(), version=1),
            {"required": f.mask(f.VERSION_1)},
            "virtio-mmio.force-legacy=off",
            "--force-legacy",
        ),
        (
            lambda: ScriptedDevice(Rng(), features=PACKED, refuse_features=True),
            {},
            "--without RING_PACKED",
            "its log",
        ),
        (
            lambda: ScriptedDevice(Rng(), features=PACKED, refuse_features=True),
            {"ring": "split"},
            "its log",
            "--without",
        ),
    ],
    ids=["modern", "transitional", "mmio", "legacy", "mmio-legacy", "refused-packed", "refused-split"],
)
def test_a_remedy_is_one_of_this_transport(made, how, names, not_named):
    remedy = refusal(made(), **how)
    assert names in remedy and not_named not in remedy


# --- as they are typed ------------------------------------------------------------------------------------------


def typed(command: str) -> list[str]:
    """The words that a shell makes of a command."""
    script = f'for word in {command}; do printf "%s\\n" "$word"; done'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


ODD = "my dump; echo $HOME `id` 'x'"


def test_a_file_in_a_remedy_is_one_word_of_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / ODD
    file.write_text("0000:00:04.0 Entropy source [1af4:1044]\n")  # no form of dump: a name in it is what counts
    evidence = Evidence(str(file), "dump", {"devices": []})
    with pytest.raises(UvirtioError) as raised:
        evidence.device("virtio0")
    assert typed(str(raised.value.remedy))[-1] == str(file)

    home = tmp_path / "run/uvirtio/journal.d"
    home.mkdir(parents=True)
    bad = home / f"{ODD.replace('/', '')}.json"
    bad.write_text("{}")
    assert run(["journal", "--json", "--root", str(tmp_path)]) == 1
    remedy = json.loads(capsys.readouterr().out)["error"]["remedy"]
    assert typed(remedy[remedy.index("as root: ") + 9 :]) == ["rm", str(bad)]

    file.write_text("E: 0.000000 0001 001e 0001\nE: 0.000000 0000 0000 0000\n")
    assert run(["input", "replay", "-", str(file)]) == 2
    told = capsys.readouterr().err.split("remedy:")[1].strip()
    assert typed(told[told.rindex("uvirtio input replay DEV") :])[-1] == str(file)


def test_the_directory_that_is_to_be_looked_at_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where not even /run/uvirtio could be made, df of it says only that there is none."""
    roots = Roots.under(tmp_path)
    roots.run.mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(EnvironmentLack) as raised:
        journal.store(journal.new([], roots), roots)
    assert raised.value.remedy is not None and raised.value.remedy.endswith(f"df {roots.run}")
    subprocess.run(typed(raised.value.remedy.split(": ")[-1]), capture_output=True, check=True)
