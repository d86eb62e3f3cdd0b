"""What ``list`` does for each device does not grow with the number of devices: counted in calls, not in time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from benches.growing_machines import KINDS  # noqa: E402

from uvirtio.binding import api  # noqa: E402
from uvirtio.host.roots import Roots  # noqa: E402

TIMES = 4


def calls(work: Callable[[], object]) -> int:
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("name", "make"), KINDS, ids=[name for name, _ in KINDS])
def test_list_costs_the_same_for_each_device(tmp_path: Path, name: str, make: Callable[[Path, int], Roots]):
    few = 12 if name == "PCI functions" else 6
    spent = []
    for count in (few, TIMES * few):
        roots = make(tmp_path / str(count), count)
        assert len(api.list(roots=roots)) >= count  # and the imports
        spent.append(calls(lambda roots=roots: api.list(roots=roots)) / count)
    assert spent[1] <= 1.02 * spent[0]
