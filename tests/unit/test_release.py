"""What a release has to agree on: one version, and a changelog that knows it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import uvirtio

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
HEADINGS = re.findall(r"^## (\S+)(.*)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_package_and_its_metadata_have_one_version() -> None:
    """It is written in one place, and the builder finds it there."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    source = (CHECKOUT / settings["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.findall(r'^__version__ = "([^"]*)"', source, re.MULTILINE) == [uvirtio.__version__]


def test_the_version_is_that_of_the_changelog_s_newest_section() -> None:
    """Unreleased: a development version of its number (0.2: 0.2.0.dev0); released: the number itself."""
    number, rest = HEADINGS[0]
    if "unreleased" in rest:
        assert re.fullmatch(rf"{re.escape(number)}(\.\d+)*\.dev\d+", uvirtio.__version__)
    else:
        assert number == uvirtio.__version__


def test_only_the_newest_section_of_the_changelog_may_be_unreleased() -> None:
    assert not [version for version, rest in HEADINGS[1:] if "unreleased" in rest]
    numbers = [tuple(map(int, version.split("."))) for version, _ in HEADINGS]
    assert numbers == sorted(numbers, reverse=True)
