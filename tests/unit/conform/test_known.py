"""The list of known violations, what was measured, and the page that is made of both."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

import uvirtio
from tests.support import tool
from uvirtio.conform import battery, quirks
from uvirtio.conform.implementation import Implementation
from uvirtio.conform.row import LETTERS
from uvirtio.conform.verdict import Kind
from uvirtio.spec import features as f

CHECKOUT = Path(uvirtio.__file__).parent.parent
KNOWN = quirks.all_quirks()


TOOL = tool.load("gen-conform")

ALL_FEATURES = (1 << 128) - 1
"""As if all were offered; what a measurement lacks stands behind the type."""

PACKED = ("D-PKD", "D-MMIO-15")
"""Rows that were measured with packed rings."""


def numbered(kind: str, name: str) -> int:
    """The number of a feature bit."""
    bit = f.numbered(kind, name)
    assert bit is not None, name
    return bit


def test_what_the_drivers_do_about_a_quirk_has_a_test_that_there_is() -> None:
    named = [one for quirk in KNOWN for one in quirk.tests]
    assert len(named) >= 10
    for one in named:
        file, _, name = one.partition("::")
        assert f"def {name}(" in (CHECKOUT / file).read_text(), one


def test_a_file_has_the_quirks_of_the_implementation_that_it_is_called_after() -> None:
    names = {one.implementation for one in KNOWN}
    assert names == {"qemu", "qemu-storage-daemon", "vduse", "vdpasim_net"}
    for name in names:
        assert [one for one in KNOWN if one.implementation == name] == quirks.all_quirks(name)
    assert quirks.all_quirks("") == quirks.all_quirks("scripted") == []


def test_what_was_measured_is_what_is_known() -> None:
    """Each violation in docs/conformance-devices/ is a quirk of its version, and each quirk of a row shows."""
    known_of = functools.cache(functools.partial(quirks.of, tuple(KNOWN)))
    wrong = []
    for (name, version), cells in TOOL.measured().items():
        for (row, transport), verdicts in cells.items():
            for label, verdict in verdicts.items():
                kind, *lacking = label.split("-")
                offered = ALL_FEATURES & ~f.mask(*(numbered(kind, bit) for bit in lacking))
                ring = "packed" if row.startswith(PACKED) else "split"
                known = known_of(Implementation(name, version), kind, LETTERS[transport], ring, offered).get(row)
                word, _, way = verdict.partition(":")
                foretold = known is not None and known.foretells(word, Kind(way or "row"))
                right = foretold if word in TOOL.BAD else known is None
                if verdict != "skip" and not right:
                    wrong.append(f"{row}, {name} {version}, {transport}, {label}: {verdict}; known: {known}")
    assert not wrong, "\n".join(wrong)


def test_the_page_is_what_the_tool_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["gen-conform", "--check"])
    assert TOOL.main() == 0, "run tools/gen-conform"
    monkeypatch.setattr(TOOL, "CHECKOUT", tmp_path)
    monkeypatch.setattr(TOOL, "PAGE", tmp_path / "page.md")
    assert TOOL.main() == 1, "there is none"
    (tmp_path / "page.md").write_text(TOOL.page().replace("pass", "fail", 1))
    assert TOOL.main() == 1


def test_versions_are_ordered_as_numbers() -> None:
    assert [version for name, version in TOOL.measured() if name == "qemu"][:2] == ["7.2.22", "10.0.13"]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, ""),
        ({"rng": "pass", "blk": "pass"}, "pass"),
        ({"rng": "pass", "blk": "skip"}, "pass"),
        ({"rng": "skip", "blk": "skip"}, "-"),
        ({"rng": "fail", "blk": "fail"}, "**fail**"),
        ({"rng": "skip", "blk": "fail"}, "**fail** blk"),
        ({"rng": "pass", "blk": "gone", "mem": "reject"}, "**gone** blk; pass; reject mem"),
    ],
)
def test_a_cell_has_what_is_bad_first(found: dict[str, str] | None, told: str) -> None:
    assert TOOL.cell(found) == told


WORDS = {"fail": "violates", "free": "free", "reject": "rejects", "pass": "obeys", "skip": "-"}
TABLE = (CHECKOUT / "docs/conform.md").read_text().partition("## What QEMU is known for")[2].partition("\n## ")[0]


def test_the_table_of_behaviours_is_what_was_measured() -> None:
    """docs/conform.md: what a row finds is told as it was measured; a row that is not there is told as such."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line[:3] == "| D"
    ]
    assert len(rows) >= 44
    assert sum(not row[-1].startswith("yes") for row in rows) == 2, "all but two are found, as the page says"
    there = {row.id for row in battery.all_rows()}
    wrong = []
    for names, _, *words, found in rows:
        idents = set(names.split(", "))
        if not found.startswith("yes"):
            continue
        assert idents <= there, names
        for version, word in zip(("7.2.22", "10.0.13"), words, strict=True):
            cells = TOOL.measured()["qemu", version]
            of_these = [one for (row, _), one in cells.items() if row in idents]
            verdicts = {verdict.partition(":")[0] for one in of_these for verdict in one.values()}
            told = next((word for verdict, word in WORDS.items() if verdict in verdicts), "was not measured")
            if word != told:
                wrong.append(f"{names}, {version}: {told}, not {word}")
    assert not wrong, "\n".join(wrong)


def test_the_tests_that_the_table_names_are_there() -> None:
    named = re.findall(r"(tests/\S+)::(\w+)", TABLE)
    assert len(named) == 8
    for file, name in named:
        assert f"def {name}(" in (CHECKOUT / file).read_text(), name
