"""The form of findings/: what its scripts say of themselves. They are not run here: they download packages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
FOLDER = CHECKOUT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
FIELDS = ("Software", "Surprise", "Documentation", "Seen", "Matters")
# A name with a top-level domain that registries and mirrors use. Packages come from where the machine's apt and
# pip are told to take them.
HOST = re.compile(r"https?://|\b[\w-]+\.(?:org|com|net|io|dev)(?![\w-])")


def header(script: Path) -> dict[str, str]:
    """The fields of the comment at the script's head, each in one line."""
    comment = re.match(r"#!.*\n((?:#.*\n)+)", script.read_text())
    assert comment, f"{script.name} has no header"
    unfolded = comment[1].replace("\n#   ", " ")
    return dict(re.findall(r"^# (\w+): (.+)$", unfolded, re.MULTILINE))


def rows() -> dict[str, list[str]]:
    """The table of README by script: software, surprise, date."""
    told = (FOLDER / "README.md").read_text().splitlines()
    lines = [line for line in told if line.startswith("| `") and ".sh" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_table_has_every_script_and_no_other() -> None:
    assert SCRIPTS
    assert sorted(rows()) == [script.name for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_is_about_and_the_table_says_the_same(script: Path) -> None:
    assert os.access(script, os.X_OK)
    fields = header(script)
    assert tuple(fields) == FIELDS
    assert re.search(r"\d", fields["Software"]), "no version"
    assert (date := re.match(r"\d{4}-\d\d-\d\d", fields["Seen"])), "no date"
    assert rows()[script.name] == [fields["Software"], fields["Surprise"], date[0]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_pins_what_it_downloads_compares_and_does_without_uvirtio(script: Path) -> None:
    code = "".join(line for line in script.read_text().splitlines(keepends=True) if not line.startswith("#"))
    lines = code.replace("\\\n", " ").splitlines()
    assert lines[0] == "set -eu"
    downloads = [word for line in lines if line.startswith(("deb ", "pip ")) for word in line.split()[1:]]
    packages = [word for word in downloads if not word.startswith('"$T')]
    assert packages
    assert all(re.fullmatch(r"[\w.+-]+==?\d\S+", package) for package in packages), packages
    assert any(line.startswith("expect ") for line in lines)
    assert lines[-1] == "finish"
    assert "uvirtio" not in code


@pytest.mark.parametrize(
    "file",
    [path for path in sorted(FOLDER.rglob("*")) if path.suffix in (".sh", ".bash", ".py", ".md")],
    ids=lambda file: file.name,
)
def test_no_file_names_a_host(file: Path) -> None:
    assert HOST.findall(file.read_text()) == []
