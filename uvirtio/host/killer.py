"""The kernel's OOM killer, by ``/proc/self/oom_score_adj`` (proc(5))."""

from __future__ import annotations

from contextlib import suppress

from uvirtio.host.roots import Roots

SCORE = 500
"""Of 1000: as if this process used half of the machine's memory on top of its own. Anyone may raise it."""


def prefer(roots: Roots) -> None:
    """Have this process ended before others where memory runs out; one that is preferred already stays so.

    Args:
        roots: Where /proc is.
    """
    path = roots.proc / "self/oom_score_adj"
    with suppress(OSError, ValueError):
        if int(path.read_text(encoding="ascii")) < SCORE:
            path.write_text(f"{SCORE}\n", encoding="ascii")
