"""The command line: ``uvirtio VERB DEV [ARGS]``. It prints, and nothing below it does."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` without the program's name (default: sys.argv's)."""
    import sys  # here, as the app is: importing this package costs nothing

    try:
        from uvirtio.cli.app import run
    except KeyboardInterrupt:  # a tenth of a second in which no handler of ours is there yet, nor any device
        return 130
    return run(list(sys.argv[1:] if argv is None else argv))
