"""What a release has to agree on: one version, and a changelog that knows it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import uvirtio

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
HEADINGS = re.findall(r"^## (\S+)(.*)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_package_and_its_metadata_have_one_version() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["version"] == uvirtio.__version__


def test_the_changelog_has_the_version() -> None:
    assert uvirtio.__version__ in [version for version, _ in HEADINGS]


def test_only_the_newest_section_of_the_changelog_may_be_unreleased() -> None:
    assert not [version for version, rest in HEADINGS[1:] if "unreleased" in rest]
    numbers = [tuple(map(int, version.split("."))) for version, _ in HEADINGS]
    assert numbers == sorted(numbers, reverse=True)
