"""The command line: ``uvirtio VERB DEV [ARGS]``. It prints, and nothing below it does."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` without the program's name (default: sys.argv's)."""
    import os
    import sys  # here, as the app is: importing this package costs nothing

    completing = os.environ.get("_UVIRTIO_COMPLETE") if argv is None else None
    if completing is not None:  # a shell asks at each press of TAB: typer would take too long
        from uvirtio.cli.completion.answer import answer

        return answer(completing, sys.argv[1:])
    try:
        from uvirtio.cli.app import run
    except KeyboardInterrupt:  # a tenth of a second in which no handler of ours is there yet, nor any device
        return 130
    return run(list(sys.argv[1:] if argv is None else argv))
