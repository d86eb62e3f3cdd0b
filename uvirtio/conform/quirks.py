"""Quirks: violations of implementations that are known, by version, so that a run tells what is new.

Each is a table of ``known/IMPLEMENTATION.toml`` in this package; a key that is not known, or a quirk without a
source, is an error. No quirk holds an input that ends or hangs other software: such rows have
``expect = "skip"``, and words.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from uvirtio.conform.implementation import Implementation
from uvirtio.conform.verdict import Kind
from uvirtio.errors import Misuse
from uvirtio.spec import features as f

_MUST: Final = {"rows", "implementation", "versions", "expect", "seen", "source", "driver"}
_MAY: Final = {"types", "transports", "rings", "kinds", "lacks", "tests"}
_LISTS: Final = {"rows", *_MAY}
_EXPECTS: Final = ("fail", "wedged", "gone", "skip")
_KINDS: Final = frozenset(kind.value for kind in Kind)
_COMPARE: Final = re.compile(r"(==|>=|<=|>|<)\s*([0-9]+(?:\.[0-9]+)*)")


@dataclass(frozen=True, slots=True)
class Quirk:
    """A violation that one implementation is known for."""

    rows: tuple[str, ...]
    implementation: str
    versions: str
    """As far as it was seen: ``>=7.2.22, <=10.0.13``."""
    expect: str
    """``fail``, ``wedged`` or ``gone``; ``skip``: the test is not made."""
    seen: str
    source: str
    driver: str
    """What uvirtio's own drivers do about it, or ``none``."""
    types: tuple[str, ...] = ("*",)
    transports: tuple[str, ...] = ("*",)
    rings: tuple[str, ...] = ("*",)
    kinds: tuple[str, ...] = (Kind.ROW.value,)
    """Of a ``fail``, in what way (``verdict.Kind``); a failure of another kind is told as one."""
    lacks: tuple[str, ...] = ()
    """Names of features: it is about devices that do not offer them."""
    tests: tuple[str, ...] = ()
    """Of uvirtio's own tests, ``FILE::NAME``, those that hold the drivers to it."""

    def foretells(self, verdict: str, kind: Kind | None) -> bool:
        """Whether it is this that it foretells.

        Args:
            verdict: Of a result.
            kind: Of a row that failed; None: it did not.
        """
        return verdict == self.expect and (kind is None or kind.value in self.kinds)

    def fits(self, found: Implementation, type_name: str, letter: str, ring: str, offered: int) -> bool:
        """Whether it is about a device.

        Args:
            found: What implements the device.
            type_name: Its type.
            letter: Of its transport (``row.TRANSPORTS``).
            ring: ``split`` or ``packed``.
            offered: The features that it offers.
        """
        lacking = [f.numbered(type_name, name) for name in self.lacks]
        return (
            self.implementation == found.name
            and _within(found.version, self.versions)
            and _one_of(type_name, self.types)
            and _one_of(letter, self.transports)
            and _one_of(ring, self.rings)
            and not any(bit is None or f.has(offered, bit) for bit in lacking)
        )


def _one_of(word: str, words: Sequence[str]) -> bool:
    return "*" in words or word in words


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _within(version: str, conditions: str) -> bool:
    if not version:
        return False
    mine = _numbers(version)
    for sign, number in _COMPARE.findall(conditions):
        theirs = _numbers(number)
        holds = {
            "==": mine[: len(theirs)] == theirs,
            ">=": mine >= theirs,
            "<=": mine[: len(theirs)] <= theirs,
            ">": mine[: len(theirs)] > theirs,
            "<": mine < theirs,
        }[sign]
        if not holds:
            return False
    return True


def parse(text: str, name: str = "quirks") -> list[Quirk]:
    """The quirks of one file.

    Args:
        text: TOML.
        name: The file, for errors.

    Raises:
        Misuse: It is no TOML, or a quirk lacks a key, has one that is not known, or has a value of another kind.
    """
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"{name} is no TOML", seen=str(error)[:200], expected="tables [[quirk]]") from error
    tables = found.pop("quirk", [])
    if found or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise Misuse(
            f"{name} has something else than quirks", seen=sorted(found), expected="tables [[quirk]] alone"
        )
    return [_one(table, name) for table in tables]


def _one(table: dict[str, Any], name: str) -> Quirk:
    lacking, odd = _MUST - table.keys(), table.keys() - _MUST - _MAY
    wrong = {
        key for key, value in table.items() if not (_is_list(value) if key in _LISTS else isinstance(value, str))
    }
    kinds = set() if wrong else set(table.get("kinds", ())) - _KINDS
    if lacking or odd or wrong or kinds or table["expect"] not in _EXPECTS or not _conditions(table["versions"]):
        raise Misuse(
            f"{name}: the quirk of {table.get('rows')} cannot be read",
            seen=sorted(odd or lacking or wrong or kinds) or [table["expect"], table["versions"]],
            expected=f"{', '.join(sorted(_MUST))}; {', '.join(sorted(_MAY))}",
        )
    return Quirk(**{**table, **{key: tuple(table[key]) for key in _LISTS if key in table}})


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _conditions(text: str) -> bool:
    return all(_COMPARE.fullmatch(part.strip()) for part in text.split(","))


def all_quirks(implementation: str | None = None) -> list[Quirk]:
    """The quirks in this package.

    Args:
        implementation: Whose; None: all.
    """
    folder = resources.files("uvirtio.conform") / "known"
    files = sorted((one for one in folder.iterdir() if one.name.endswith(".toml")), key=lambda one: one.name)
    return [
        quirk
        for one in files
        if implementation in (None, one.name.removesuffix(".toml"))
        for quirk in parse(one.read_text(encoding="utf-8"), one.name)
    ]


def of(
    quirks: Iterable[Quirk], found: Implementation, type_name: str, letter: str, ring: str, offered: int
) -> dict[str, Quirk]:
    """The quirks of a device, by row.

    Args:
        quirks: All.
        found: What implements the device.
        type_name: Its type.
        letter: Of its transport.
        ring: ``split`` or ``packed``.
        offered: The features that it offers.
    """
    fitting = [quirk for quirk in quirks if quirk.fits(found, type_name, letter, ring, offered)]
    return {row: quirk for quirk in fitting for row in quirk.rows}
