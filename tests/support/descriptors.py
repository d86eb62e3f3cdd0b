"""The descriptors that this process has open, before a test and after it."""

from __future__ import annotations

import gc
import os


def settled() -> list[str]:
    """As ``descriptors``, without those of what earlier tests left in reference cycles: for before a test."""
    gc.collect()
    return descriptors()


def descriptors() -> list[str]:
    """The numbers of the open descriptors, sorted as words; one of them is that of the list itself."""
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
