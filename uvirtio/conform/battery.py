"""All rows: each module of ``areas`` has an ``AREA``."""

from __future__ import annotations

import importlib
import pkgutil
from fnmatch import fnmatchcase

from uvirtio.conform import areas
from uvirtio.conform.row import Area, Row
from uvirtio.errors import UsageError


def all_areas() -> list[Area]:
    """The areas, in the order of the standard."""
    names = [found.name for found in pkgutil.iter_modules(areas.__path__)]
    found: list[Area] = [importlib.import_module(f"{areas.__name__}.{name}").AREA for name in names]
    return sorted(found, key=lambda area: area.place)


def all_rows() -> list[Row]:
    """The rows of all areas, in the order of the standard."""
    return [row for area in all_areas() for row in area.rows]


def find(ident: str) -> Row:
    """The row with an id.

    Args:
        ident: ``D-STAT-01``, in any case.

    Raises:
        UsageError: There is none.
    """
    rows = all_rows()
    for row in rows:
        if row.id == ident.upper():
            return row
    part = ident.upper().rstrip("0123456789-")
    near = [row.id for row in rows if part and row.id.startswith(part)]
    raise UsageError(
        f"there is no row {ident}",
        seen=ident,
        expected=", ".join(near[:8]) or "an id such as D-STAT-01",
        remedy="uvirtio conform --list shows all rows",
    )


def chosen(pattern: str | None, area: str | None, level: int | None) -> list[Row]:
    """The rows that are asked for.

    Args:
        pattern: A glob for ids, in any case; None: all.
        area: The name of one area; None: all.
        level: The highest level; None: all.

    Raises:
        UsageError: Nothing fits.
    """
    known = all_areas()
    if area is not None and area not in [one.name for one in known]:
        raise UsageError(f"there is no area {area}", seen=area, expected=", ".join(one.name for one in known))
    found = [
        row
        for one in known
        if area in (None, one.name)
        for row in one.rows
        if (pattern is None or fnmatchcase(row.id, pattern.upper())) and (level is None or row.level <= level)
    ]
    if not found:
        raise UsageError(
            "no row is asked for",
            seen=", ".join(str(one) for one in (pattern, area, level) if one is not None),
            expected="a glob of ids, an area and a level that go together",
            remedy="uvirtio conform --list shows all rows",
        )
    return found
