"""The curves and the paths of the benches on how cost grows: each runs, once and small."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from benches import growth, kept  # noqa: E402

SMALL = [curve for curve in growth.CURVES if not curve.name.startswith(("ring", "n queues"))]


@pytest.mark.parametrize("curve", SMALL, ids=[curve.name for curve in SMALL])
def test_a_curve_has_a_first_point(curve: growth.Curve):
    assert curve.cost(curve.sizes[0], True) > 0


@pytest.mark.parametrize("path", kept.PATHS)
def test_a_path_keeps_little(path: str):
    assert kept.kept(kept.PATHS[path], 60) < kept.MOST


def test_what_is_kept_is_counted():
    """A path that keeps an object for each completion is seen."""
    found: list[bytes] = []

    def leaky(stack: ExitStack) -> kept.Step:
        step = kept.PATHS["rng: read"](stack)

        def more() -> int:
            found.append(bytes(99))
            return step()

        return more

    assert kept.kept(leaky, 600) > kept.MOST
