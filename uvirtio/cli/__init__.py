"""The command line: ``uvirtio VERB DEV [ARGS]``. No other package of uvirtio prints."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; None: those of ``sys.argv``, and the process is the
            command's own, whose capabilities it may give up.

    Returns:
        The exit code.
    """
    import os
    import sys  # here, as the app is: importing this package costs nothing

    completing = os.environ.get("_UVIRTIO_COMPLETE") if argv is None else None
    if completing is not None:  # at each press of TAB: importing typer would take too long
        from uvirtio.cli.completion.answer import answer

        return answer(completing, sys.argv[1:])
    try:
        from uvirtio.cli.app import run
    except KeyboardInterrupt:  # while importing: no handler is installed yet, and no device open
        return 130
    return run(list(sys.argv[1:] if argv is None else argv), own_process=argv is None)
