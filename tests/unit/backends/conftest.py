"""Fixtures for the tests of back ends: a played vhost-user back end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.played_vhost_user import PlayedBackEnd

Play = Callable[..., PlayedBackEnd]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Starts back ends at ``tmp_path / "s"``, and ends them."""
    with ExitStack() as stack:

        def start(**how: Any) -> PlayedBackEnd:
            made = PlayedBackEnd(tmp_path / "s", **how)
            stack.callback(made.close)
            return made

        yield start
