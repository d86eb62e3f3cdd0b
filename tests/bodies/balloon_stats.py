"""Statistics and following on any cell with a balloon; guest-stats and query-balloon are the witnesses."""

from __future__ import annotations

import pytest

from tests.bodies import Cell
from uvirtio.drivers.balloon import Balloon
from uvirtio.errors import Refused
from uvirtio.spec import features as f

MIB = 256  # pages


def _device(cell: Cell) -> str:
    return cell.path.removesuffix("/virtio-backend")


@pytest.mark.fault(63)
@pytest.mark.spec("BAL-S01", "BAL-S02", "BAL-S03", "BAL-S04")
def test_the_host_sees_our_statistics_and_asks_again(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        stats = balloon.stats
        assert stats is not None
        try:
            cell.qmp("qom-set", path=_device(cell), property="guest-stats-polling-interval", value=1)
            for _ in range(20):
                balloon.hold(timeout=0.25)
                if stats.requests >= 2:
                    break
            assert stats.requests >= 2 and not stats.failures
            seen = cell.qmp("qom-get", path=_device(cell), property="guest-stats")
        finally:
            cell.qmp("qom-set", path=_device(cell), property="guest-stats-polling-interval", value=0)
        assert seen["last-update"] > 0
        named = {name: value for name, value in seen["stats"].items() if value != (1 << 64) - 1}
        assert named["stat-total-memory"] == stats.values[5] > 0
        assert 0 < named["stat-free-memory"] <= named["stat-total-memory"]
        assert 0 < named["stat-available-memory"] <= named["stat-total-memory"]
        assert named["stat-minor-faults"] > 0


@pytest.mark.fault(59)
@pytest.mark.spec("BAL-01", "BAL-02")
def test_the_floor_is_not_crossed(cell: Cell) -> None:
    with cell.open() as device:
        with Balloon(device, floor=1 << 60) as balloon:
            assert device.has(f.Balloon.DEFLATE_ON_OOM) is f.has(device.offered, f.Balloon.DEFLATE_ON_OOM)
            with pytest.raises(Refused, match="free-memory"):
                balloon.inflate(1)
            size = int(cell.qmp("query-balloon")["actual"])
            told: list[Exception] = []
            try:
                cell.qmp("balloon", value=size - 2 * MIB * 4096)
                balloon.follow(timeout=0.5, shortage=lambda why, delay: told.append(why))
                assert balloon.held == 0 == balloon.actual
                assert told and all(isinstance(why, Refused) for why in told)
            finally:
                cell.qmp("balloon", value=size)
        with Balloon(device, floor=0) as balloon:
            assert balloon.inflate(MIB) == MIB
