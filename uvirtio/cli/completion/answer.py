"""The answer to one press of TAB.

The question is ``_UVIRTIO_COMPLETE=words uvirtio WORD...`` with the words up to the cursor, the last of them
perhaps empty; or ``_UVIRTIO_COMPLETE=line uvirtio LINE`` with the line up to the cursor, for bash, which splits
words at colons. The answer is a line ``KIND TAB WORD``, WORD the one that is completed. For the kind ``words`` a
line ``VALUE TAB DESCRIPTION`` follows for each value that begins with WORD; for ``files`` and ``dirs`` none does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

VARIABLE = "_UVIRTIO_COMPLETE"


def answer(mode: str, argv: Sequence[str]) -> int:
    """Print the candidates for the last word; no exception leaves it.

    Args:
        mode: The value of ``_UVIRTIO_COMPLETE``: ``words`` or ``line``.
        argv: The words, or the line.

    Returns:
        The exit code.
    """
    try:
        if mode not in ("words", "line"):
            return 1  # a script of another version: no completion is better than a wrong one
        from uvirtio.cli.completion.candidates import complete

        words = split_line(argv[0])[1:] if mode == "line" else list(argv)
        words = words or [""]
        kind, found = complete(words)
        lines = [f"{kind}\t{words[-1]}", *(f"{value}\t{what}" for value, what in found)]
        sys.stdout.buffer.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    except Exception:  # noqa: BLE001  # a command line that is being typed is no place for a message
        return 1
    return 0


def split_line(line: str) -> list[str]:
    """The words of a shell's line, without quotes and backslashes; the last is empty after a blank.

    A quote may still be open at the end, where the cursor is.
    """
    words, word, quote, begun = [], "", "", False
    at = 0
    while at < len(line):
        char = line[at]
        at += 1
        if quote == "'":
            quote, word = ("", word) if char == "'" else (quote, word + char)
        elif char == "\\" and at < len(line) and (not quote or line[at] in '"\\$`'):
            word, begun = word + line[at], True
            at += 1
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "'\"":
            quote, begun = char, True
        elif char.isspace():
            if begun or word:
                words.append(word)
            word, begun = "", False
        else:
            word += char
    return [*words, word]
