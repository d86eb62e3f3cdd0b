"""The loggers ``uvirtio`` (opening, bring-up, leaving) and ``uvirtio.registers`` (each register access and kick).

Importing ``logging`` takes as long as opening a device of sysfs. A program that has not imported it has no handler
either, so this module never imports it and only looks whether the program did.
"""

from __future__ import annotations

import sys

from uvirtio.interfaces.values import Trace
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

DEBUG, INFO, WARNING = 10, 20, 30
"""The levels of ``logging``."""

NAME, REGISTERS = "uvirtio", "uvirtio.registers"


def logger(name: str = NAME) -> Logger | None:
    """The logger of this name; None in a program that has not imported ``logging``.

    Args:
        name: ``uvirtio``, or one below it.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    top: Logger = logging.getLogger(NAME)
    if not top.handlers:
        top.addHandler(logging.NullHandler())  # or a warning without any handler would be printed
    found: Logger = logging.getLogger(name)
    return found


def register_trace(address: str, given: Trace | None) -> Trace | None:
    """The function that is called with one line of text for each register access and kick.

    Whether the logger is at DEBUG is looked up once, when a device is opened: untraced registers cost nothing.

    Args:
        address: The device's address, which the logger puts before each line.
        given: The caller's own trace function; None: none.

    Returns:
        A function that calls ``given`` and the logger; ``given`` itself where the logger is not at DEBUG.
    """
    registers = logger(REGISTERS)
    if registers is None or not registers.isEnabledFor(DEBUG):
        return given
    debug = registers.debug

    def trace(line: str) -> None:
        debug("%s: %s", address, line)
        if given is not None:
            given(line)

    return trace
