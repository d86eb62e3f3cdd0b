"""Checks a document against the schema that is published with it, and says where in the text it does not fit.

This knows the part of JSON Schema that ``schema.json`` uses. The tests hold it against the library ``jsonschema``,
which is no dependency of the command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any, Final

from uvirtio.evidence.text import SHOWN, bad, place
from uvirtio.report.documents import finite

Path = tuple[str | int, ...]
"""A place in a document: keys and indices from the top."""

_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}

_DEPTH: Final = 64
"""Levels of a document; no dump has more, and Python's own limit is an exception of another kind."""


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The published schema."""
    made: dict[str, Any] = json.loads(text_of_schema())
    return made


def text_of_schema() -> str:
    """The published schema, as the text of its file."""
    return (resources.files("uvirtio.evidence") / "schema.json").read_text(encoding="utf-8")


def load(file: str, text: str, line: int = 1, column: int = 1) -> dict[str, Any]:
    """Parse and check a document.

    Args:
        file: The name of the file, for errors.
        text: The document.
        line: The line of the file on which the text begins.
        column: The column at which it begins there.

    Raises:
        BadDump: It is not JSON, or does not fit the schema.
    """

    def refuse(offset: int, message: str, seen: object, expected: str) -> Exception:
        return bad(file, *place(text, offset, line, column), message, seen=seen, expected=expected)

    _refuse_depth(text, refuse)
    try:
        found = json.loads(text, parse_constant=_no_constant, parse_float=finite)
    except JSONDecodeError as error:
        raise refuse(error.pos, f"not JSON: {error.msg}", text[error.pos : error.pos + SHOWN], "JSON") from None
    except (ValueError, RecursionError) as error:
        raise refuse(0, "not JSON that can be read", str(error)[:200], "JSON as uvirtio dump writes it") from None
    for path, message, expected in faults(found, schema()):
        value = _at(found, path)
        shown = repr(value)[:SHOWN]
        where = "/".join(str(part) for part in path) or "the document"
        raise refuse(locate(text, path), f"{where}: {message}", shown, expected)
    made: dict[str, Any] = found
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_depth(text: str, refuse: Any) -> None:
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', text, re.DOTALL):
        if match[0] in "[{":
            depth += 1
            if depth > _DEPTH:
                raise refuse(match.start(), "nested too deeply", f"more than {_DEPTH} levels", "a dump")
        elif match[0] in "]}":
            depth -= 1


# --- the part of JSON Schema that is used --------------------------------------------------------------------


def faults(value: Any, rule: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, str, str]]:
    """What does not fit: the place, what is wrong, what was expected.

    Args:
        value: The part of the document.
        rule: The part of the schema.
        path: The place of ``value``.
    """
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    wanted = rule.get("type")
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else wanted
        if not any(_is(value, name) for name in names):
            yield path, "is of another type", " or ".join(names)
            return
    if value is None:
        return
    if "const" in rule and value != rule["const"]:
        yield path, "has another value", repr(rule["const"])
    if "enum" in rule and value not in rule["enum"]:
        yield path, "is none of the values", ", ".join(str(one) for one in rule["enum"])
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        yield path, "has another form", rule["pattern"]
    if isinstance(value, int) and not isinstance(value, bool):
        if value < rule.get("minimum", value):
            yield path, "is too small", f"{rule['minimum']} or more"
        if value > rule.get("maximum", value):
            yield path, "is too large", f"{rule['maximum']} or less"
    if isinstance(value, dict):
        yield from _of_object(value, rule, path)
    if isinstance(value, list) and "items" in rule:
        for index, item in enumerate(value):
            yield from faults(item, rule["items"], (*path, index))


def _of_object(value: dict[str, Any], rule: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, str, str]]:
    for name in rule.get("required", ()):
        if name not in value:
            yield path, f"lacks {name!r}", name
    named = rule.get("properties", {})
    rest = rule.get("additionalProperties", True)
    for name, item in value.items():
        if name in named:
            yield from faults(item, named[name], (*path, name))
        elif isinstance(rest, dict):
            yield from faults(item, rest, (*path, name))


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


# --- where a part of a document is in its text -----------------------------------------------------------------


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def locate(text: str, path: Path) -> int:
    """The offset of the value at ``path`` in a text that is valid JSON."""
    decoder = JSONDecoder()
    at = _skip(text, 0)
    for part in path:
        at = _skip(text, at + 1)
        index = 0
        best = at
        while text[at] not in "]}":
            if isinstance(part, str):
                name, at = decoder.raw_decode(text, at)
                at = _skip(text, _skip(text, at) + 1)
                if name == part:
                    best = at  # the last of several counts, as for the parser
            elif index == part:
                best = at
            _, at = decoder.raw_decode(text, at)
            at = _skip(text, at)
            index += 1
            if text[at] == ",":
                at = _skip(text, at + 1)
        at = best
    return at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
