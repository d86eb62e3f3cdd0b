"""The places of ``/sys``, ``/proc`` and the like, as a parameter.

No path in the package begins with a literal ``/sys`` or ``/proc``: functions that read there take ``Roots``. So a
test, or a tree captured on another machine, can replace the real one.
"""

from __future__ import annotations

import os
from functools import cached_property

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Roots:
    """The five trees that are read (and, by bind, written)."""

    def __init__(
        self,
        sys: str | Path = "/sys",
        proc: str | Path = "/proc",
        dev: str | Path = "/dev",
        run: str | Path = "/run",
        etc: str | Path = "/etc",
    ) -> None:
        """Note the five; pathlib is not imported before one is asked for."""
        self._places = tuple(os.fspath(place) for place in (sys, proc, dev, run, etc))

    @cached_property
    def sys(self) -> Path:
        """``/sys``."""
        return _path(self._places[0])

    @cached_property
    def proc(self) -> Path:
        """``/proc``."""
        return _path(self._places[1])

    @cached_property
    def dev(self) -> Path:
        """``/dev``."""
        return _path(self._places[2])

    @cached_property
    def run(self) -> Path:
        """``/run``."""
        return _path(self._places[3])

    @cached_property
    def etc(self) -> Path:
        """``/etc``."""
        return _path(self._places[4])

    @property
    def etc_name(self) -> str:
        """The last as text."""
        return self._places[4]

    @property
    def live(self) -> bool:
        """Whether ``sys`` is this machine's own sysfs: only then can the kernel be asked to load a module."""
        return str(self.sys) == "/sys"

    @classmethod
    def under(cls, root: str | Path) -> Roots:
        """The same five trees below a directory.

        Args:
            root: The directory; ``/`` for the real ones.
        """
        return cls(*(os.path.join(root, name) for name in ("sys", "proc", "dev", "run", "etc")))  # noqa: PTH118

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roots) and self._places == other._places

    def __hash__(self) -> int:
        return hash(self._places)

    def __repr__(self) -> str:
        return f"Roots{self._places}"


def _path(place: str) -> Path:
    from pathlib import Path

    return Path(place)
