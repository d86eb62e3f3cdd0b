"""A failed test keeps nothing open: no QEMU that goes on running, no device that later tests find taken.

An object that a test has opened outlives the test when it fails. pytest keeps the traceback, and so every local
variable of it, until the next failure; and a device that was started is kept by atexit, to be left in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

_FAILED = pytest.StashKey[bool]()


class _Closable(Protocol):
    def close(self) -> None: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note which tests failed; a conftest that imports this by its name has it run."""
    report: Any = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


def failed(item: pytest.Item) -> bool:
    """Whether the test, or setting it up, has failed so far."""
    return item.stash.get(_FAILED, False)


@contextlib.contextmanager
def closed_at_the_end(*kinds: type[_Closable]) -> Iterator[list[_Closable]]:
    """Close what is made of these classes within the block, the last first; yields the list of it.

    What a fixture of a wider scope has made before is not in it. Errors of closing are left out: it is the
    test that has to say what is wrong.
    """
    made: list[_Closable] = []
    before = {kind: kind.__init__ for kind in kinds}

    def noting(init: Any) -> Any:
        def __init__(self: _Closable, *args: Any, **how: Any) -> None:
            init(self, *args, **how)
            made.append(self)

        return __init__

    for kind, init in before.items():
        kind.__init__ = noting(init)  # type: ignore[method-assign]
    try:
        yield made
    finally:
        for kind, init in before.items():
            kind.__init__ = init  # type: ignore[method-assign]
        for one in reversed(made):
            with contextlib.suppress(Exception):
                one.close()
