"""Where this machine's kernel shows itself, as a parameter.

Nothing in the package writes ``/sys`` or ``/proc`` into a path of its own: every function that looks takes a
:class:`Roots`. So a test, or a tree captured on another machine, can stand in the place of the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Roots:
    """The five trees that are read (and, by bind, written)."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")
    etc: Path = Path("/etc")

    @property
    def live(self) -> bool:
        """Whether sysfs is this machine's own: only then does the kernel behind it answer, or load a module."""
        return self.sys == Path("/sys")

    @classmethod
    def under(cls, root: str | Path) -> Roots:
        """The same five trees below ``root`` (``Roots.under("/")`` are the real ones)."""
        top = Path(root)
        return cls(sys=top / "sys", proc=top / "proc", dev=top / "dev", run=top / "run", etc=top / "etc")
