"""Memory that must never be reused: a device may still write there, for it did not confirm its reset (2.4.2)."""

from __future__ import annotations

from _ctypes import Py_DECREF, Py_INCREF  # of CPython; the module ctypes takes thrice as long to import


def keep_for_ever(thing: object) -> None:
    """Take a reference that is never dropped, so that this process never reuses this memory.

    Args:
        thing: What owns the memory.
    """
    Py_INCREF(thing)


def keep_no_longer(thing: object) -> None:
    """Drop the reference that ``keep_for_ever`` took, once the device cannot write any more.

    Args:
        thing: The same object.
    """
    Py_DECREF(thing)
