"""The places of ``/sys``, ``/proc`` and the like, as a parameter.

No path in the package begins with a literal ``/sys`` or ``/proc``: functions that read there take ``Roots``. So a
test, or a tree captured on another machine, can replace the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Roots(NamedTuple):
    """The five trees that are read (and, by bind, written)."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")
    etc: Path = Path("/etc")

    @property
    def live(self) -> bool:
        """Whether ``sys`` is this machine's own sysfs: only then can the kernel be asked to load a module."""
        return self.sys == Path("/sys")

    @classmethod
    def under(cls, root: str | Path) -> Roots:
        """The same five trees below a directory.

        Args:
            root: The directory; ``/`` for the real ones.
        """
        top = Path(root)
        return cls(sys=top / "sys", proc=top / "proc", dev=top / "dev", run=top / "run", etc=top / "etc")
