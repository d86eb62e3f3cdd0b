"""Mutants: for each row of the battery a way to break a scripted device so that this row is violated.

A module here belongs to one area, and has ``MUTANTS``. A mutant is a function that is given the device as the
address makes it, before anything is opened, and spoils it:

    MUTANTS = Mutants("scripted:rng")

    @MUTANTS.of("D-STAT-06")
    def forgets_acknowledge(device):
        around(device, "_read_status", lambda read: read() & ~1)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvirtio.scripted import ScriptedCore
from uvirtio.scripted.address import build

Spoil = Callable[[Any], object]


@dataclass(frozen=True)
class Mutant:
    """A device that obeys, and how to spoil it."""

    row: str
    make: Callable[[], ScriptedCore]
    spoil: Spoil
    ring: str = "split"

    def device(self) -> ScriptedCore:
        """A spoilt device."""
        device = self.make()
        self.spoil(device)
        return device


class Mutants:
    """The mutants of one area."""

    def __init__(self, on: str | Callable[[], ScriptedCore]) -> None:
        """``on``: the device that is spoilt where a mutant names none, as an address or a function."""
        self._on = on
        self.found: dict[str, Mutant] = {}

    def of(
        self, *rows: str, on: str | Callable[[], ScriptedCore] | None = None, ring: str = "split"
    ) -> Callable[[Spoil], Spoil]:
        """Declare the function below as the mutant of these rows."""
        where = on or self._on

        def declare(spoil: Spoil) -> Spoil:
            for row in rows:
                assert row not in self.found, f"{row} has a mutant already"
                self.found[row] = Mutant(
                    row, (lambda: build(where)) if isinstance(where, str) else where, spoil, ring
                )
            return spoil

        return declare


def all_mutants() -> dict[str, Mutant]:
    """The mutants of all areas, by row."""
    found: dict[str, Mutant] = {}
    for module in pkgutil.iter_modules(__path__):
        own = importlib.import_module(f"{__name__}.{module.name}").MUTANTS.found
        assert not found.keys() & own.keys(), found.keys() & own.keys()
        found.update(own)
    return found


def around(thing: object, name: str, instead: Callable[..., Any]) -> None:
    """Put a function around a method of one object; it is given the method, and then what the method is given."""
    method = getattr(thing, name)
    setattr(thing, name, lambda *args, **how: instead(method, *args, **how))


def ring_of(device: ScriptedCore, packed: bool = False, **methods: Callable[..., Any]) -> None:
    """Let the device's rings have other methods; each is given the ring, and may call ``super`` by its class."""
    format_ = device.ring_formats[packed]
    device.ring_formats[packed] = type("Spoilt", (format_,), methods)
