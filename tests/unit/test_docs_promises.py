"""docs/promises.md names tests that exist, some for each promise of the README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
PAGE = (CHECKOUT / "docs/promises.md").read_text()


def test_each_promise_names_tests_that_exist() -> None:
    parts = re.split(r"^## (\d)\. ", PAGE, flags=re.MULTILINE)[1:]
    numbers, texts = parts[::2], parts[1::2]
    promised = (CHECKOUT / "README.md").read_text().partition("## What it promises")[2].partition("\n## ")[0]
    assert numbers == re.findall(r"^(\d)\. ", promised, re.MULTILINE)
    for number, text in zip(numbers, texts, strict=True):
        named = re.findall(r"^\| `(tests/[\w/]+\.py)::(\w+)`", text, re.MULTILINE)
        assert len(named) == text.count("| `tests/") >= 3, f"promise {number}"
        for file, name in named:
            tree = ast.parse((CHECKOUT / file).read_text())
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (
                file,
                name,
            )


def test_the_figure_of_the_calls_is_that_of_the_table() -> None:
    from tests.support.deadlines import ROWS

    assert f"| {len(ROWS)} calls x time-outs" in PAGE
