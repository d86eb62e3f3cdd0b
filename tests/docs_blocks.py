"""The Python code in a Markdown page, for tests that run it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\s*)?"
    r"^```python(?: title=\"(?P<title>[^\"\n]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. ``line``: where its first line of code is in the page; ``reason``: why it is not run."""

    line: int
    title: str | None
    code: str
    reason: str | None

    def in_place(self) -> str:
        """The code behind as many empty lines as make its line numbers those of the page."""
        return "\n" * (self.line - 1) + self.code


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page. A comment ``not run: REASON`` before one keeps it from being run."""
    text = page.read_text()
    found = [
        Block(text.count("\n", 0, one.start("code")) + 1, one["title"], one["code"], one["reason"])
        for one in _BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^ *```python", text, re.MULTILINE)), (
        f"{page}: a block was not understood"
    )
    return found


def files(page: Path) -> dict[str, str]:
    """The files that a page makes: blocks with one title are one file."""
    made: dict[str, list[str]] = defaultdict(list)
    for block in blocks(page):
        if block.title is not None and block.reason is None:
            made[block.title].append(block.code)
    return {title: "\n\n".join(parts) for title, parts in made.items()}


def script(page: Path) -> str:
    """The blocks without a title, in their order, at the page's own line numbers."""
    lines: list[str] = []
    for block in blocks(page):
        if block.title is None and block.reason is None:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.splitlines()
    return "\n".join(lines)


def shell(page: Path) -> list[str]:
    """The blocks of a page that are commands of a shell (``sh``)."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
