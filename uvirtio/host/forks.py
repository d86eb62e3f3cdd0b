"""Forks whose child runs a few lines of this package and ends by ``os._exit``."""

from __future__ import annotations

import warnings


def unwarned() -> warnings.catch_warnings[None]:
    """A with statement for ``os.fork``: where this process has threads, CPython warns of it since 3.12.

    The warning is of locks that a thread held, which such a child takes none of. Where warnings are errors, 3.15
    raises it when there is a child already: the caller would not know of the child, which would go on by itself.
    """
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)
