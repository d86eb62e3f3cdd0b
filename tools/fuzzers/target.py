"""What is fuzzed: a target takes bytes, and ends as it may, or it is a finding."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import ClassVar

CORPUS = Path(__file__).resolve().parents[2] / "tests/unit/fuzz/corpus"
"""One text file a target: an input a line, in hexadecimal digits; what follows a ``#`` is for people."""


class Lie(AssertionError):
    """What a target delivered is not so, or it did what it may not: told by the target itself."""


class Target:
    """Bytes in; a normal result or a ``UvirtioError`` out. Everything else is a finding.

    A target starts from the same state at each input, so that an input is all that a finding needs.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    weight: ClassVar[int]
    """Its part of the executions of a run, by what one costs."""
    modules: ClassVar[tuple[str, ...]]
    """Paths below ``uvirtio/`` whose lines count as coverage."""
    most: ClassVar[int] = 512
    """Bytes of an input."""
    tokens: ClassVar[tuple[bytes, ...]] = ()
    """Pieces that its inputs are made of."""

    def seeds(self) -> Iterable[bytes]:
        """Inputs to begin with, beside those of the corpus."""
        return ()

    def run(self, data: bytes) -> Hashable:
        """Take one input.

        Returns:
            What kind of end it came to, coarsely: an input with a new one is kept.

        Raises:
            UvirtioError: It was refused, as it may be.
            Lie: A fault that shows in what came of it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release what the target holds between its runs; idempotent."""


class Feed:
    """Takes numbers off an input; zeros follow its end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        """The next byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, width: int) -> int:
        """The next ``width`` bytes, little-endian."""
        return int.from_bytes(self.take(width), "little")

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes, fewer at the end."""
        at = self._at
        self._at = at + length
        return self._data[at : at + length]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)


def corpus(name: str, folder: Path = CORPUS) -> list[bytes]:
    """The inputs that the tree has for a target."""
    path = folder / f"{name}.txt"
    if not path.exists():
        return []
    return [parse_line(line) for line in path.read_text(encoding="ascii").splitlines() if parse_line(line)]


def parse_line(line: str) -> bytes:
    """The input on a line of a corpus file; empty where it has none."""
    return bytes.fromhex(re.sub(r"\s", "", line.partition("#")[0]))
