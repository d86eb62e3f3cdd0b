"""The command line: ``uvirtio VERB DEV [ARGS]``. It prints, and nothing below it does."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` without the program's name (default: sys.argv's)."""
    import sys  # here, as the app is: importing this package costs nothing

    from uvirtio.cli.app import run

    return run(list(sys.argv[1:] if argv is None else argv))
