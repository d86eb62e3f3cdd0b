"""The VM lab: a stock distribution kernel under QEMU, with this checkout and its environment inside.

Only the standard library is used here, because ``tools/vm``, ``tools/test`` and ``tools/demo`` run before
there is a virtual environment.
"""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


class LabError(Exception):
    """Something that a person has to know; ``exit_code`` is what the tool ends with."""

    def __init__(self, message: str, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code
