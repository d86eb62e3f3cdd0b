"""A row: one statement about devices, with its test and all that is known of it before a device is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from uvirtio.conform.verdict import Outcome, Severity

if TYPE_CHECKING:
    from uvirtio.conform.trial import Trial

Keyword = Literal["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "SHALL", "MAY", "REC", "DESC"]
"""How the standard says it; DESC: without a keyword, though drivers depend on it."""


class Level(IntEnum):
    """What a test needs of the device, and of whoever owns it; tests run in this order."""

    LOOK = 0
    """Registers and configuration are read; of the status only 0, ACKNOWLEDGE and DRIVER are written."""
    LEGAL = 1
    """What an ordinary driver does: bring-up, traffic, resets."""
    ODD = 2
    """What the standard allows a driver and few drivers do."""
    REGISTERS = 3
    """Register writes that the standard forbids a driver."""
    RINGS = 4
    """Rings that the standard forbids a driver to make."""


MEANS: Final = {
    Level.LOOK: "registers and configuration are read",
    Level.LEGAL: "what an ordinary driver does",
    Level.ODD: "what the standard allows a driver and few do",
    Level.REGISTERS: "register writes that the standard forbids a driver",
    Level.RINGS: "rings that the standard forbids a driver to make",
}

P, L, M2, M1, V, U = "P", "L", "M2", "M1", "V", "U"
TRANSPORTS: Final = {
    P: "pci-modern",
    L: "pci-legacy",
    M2: "mmio",
    M1: "mmio-legacy",
    V: "vdpa",
    U: "vhost-user",
}
"""The letters of the transports, with their ``Transport.kind``."""

LETTERS: Final = {kind: letter for letter, kind in TRANSPORTS.items()}

ANY: Final = frozenset(TRANSPORTS)
MODERN: Final = frozenset({P, M2, V, U})
"""Transports without a legacy interface."""
REGISTERS: Final = frozenset({P, M2})
"""Transports whose status and features are registers, not calls."""
LEGACY: Final = frozenset({L, M1})
PCI: Final = frozenset({P})

ALL_TYPES: Final = frozenset({"*"})

Need = Literal["write", "host", "flr"]
"""What is done to a device of somebody else's only with consent: writing to a disk, a lever of its host, a
function-level reset. Faults need it too: those are the levels from ``Level.REGISTERS`` on."""

Witness = Literal["host", "image", "memory", "network"]
"""What a test goes by beside the device's own registers, configuration and rings, where there is one: what the
host shows, or was told to do; the file behind a disk; memory that the test maps itself; another station on the
network."""

Check = Callable[["Trial"], Outcome]


@dataclass(frozen=True, slots=True)
class Row:
    """One statement of the standard about devices, and its test."""

    id: str
    """``D-`` and the area's word and a number; an ``L`` before the number: of the legacy interface."""
    section: str
    """Of virtio 1.4."""
    keyword: Keyword
    title: str
    """What the device does if it is right, in one sentence."""
    level: Level
    severity: Severity
    transports: frozenset[str]
    """Letters of ``TRANSPORTS``."""
    types: frozenset[str]
    """Names of device types; ``*``: every type."""
    needs: frozenset[Need]
    witness: Witness | None
    """None: the device alone says what it did."""
    area: str
    check: Check = field(repr=False)

    @property
    def how(self) -> str:
        """How it is tested, in a sentence."""
        return " ".join((self.check.__doc__ or "").split())

    def as_dict(self) -> dict[str, Any]:
        """The row as a member of a document."""
        return {
            "id": self.id,
            "area": self.area,
            "section": self.section,
            "keyword": self.keyword,
            "level": f"L{self.level.value}",
            "severity": self.severity.value,
            "title": self.title,
            "how": self.how,
            "transports": [kind for letter, kind in TRANSPORTS.items() if letter in self.transports],
            "types": sorted(self.types),
            "needs": sorted(self.needs),
            "witness": self.witness,
        }

    def fits_type(self, type_name: str) -> bool:
        """Whether the statement is about devices of this type."""
        return "*" in self.types or type_name in self.types


class Area:
    """The rows of one part of the standard, in the order in which their tests are declared."""

    def __init__(
        self,
        name: str,
        place: int,
        title: str,
        *,
        transports: frozenset[str] = ANY,
        types: frozenset[str] = ALL_TYPES,
        level: Level = Level.LEGAL,
    ) -> None:
        """Make an area without rows.

        Args:
            name: Its word: of the module, and of ``--area``.
            place: Where it stands among the areas.
            title: What it is about, with sections.
            transports: Those of its rows, where a row names none.
            types: The device types of its rows, where a row names none.
            level: The level of its rows, where a row names none.
        """
        self.name = name
        self.place = place
        self.title = title
        self._transports = transports
        self._types = types
        self._level = level
        self._rows: list[Row] = []

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows."""
        return tuple(self._rows)

    def row(
        self,
        ident: str,
        section: str,
        keyword: Keyword,
        title: str,
        *,
        level: Level | None = None,
        severity: Severity | None = None,
        transports: frozenset[str] | None = None,
        types: frozenset[str] | None = None,
        needs: frozenset[Need] = frozenset(),
        witness: Witness | None = None,
    ) -> Callable[[Check], Check]:
        """Declare the function below as the test of a row.

        Args:
            ident: The id.
            section: Of the standard.
            keyword: Of the standard.
            title: The statement.
            level: None: the area's.
            severity: Of a violation; None: ADVICE for a recommendation, else VISIBLE.
            transports: None: the area's.
            types: None: the area's.
            needs: What it needs consent for.
            witness: What the test goes by beside the device.
        """
        if severity is None:
            advice = keyword in ("SHOULD", "SHOULD NOT", "REC")
            severity = Severity.ADVICE if advice else Severity.VISIBLE

        def declare(check: Check) -> Check:
            self._rows.append(
                Row(
                    id=ident,
                    section=section,
                    keyword=keyword,
                    title=title,
                    level=self._level if level is None else level,
                    severity=severity,
                    transports=self._transports if transports is None else transports,
                    types=self._types if types is None else types,
                    needs=needs,
                    witness=witness,
                    area=self.name,
                    check=check,
                )
            )
            return check

        return declare
