"""What a signal handler raises at any step of a session: its lock and its deadline end, but for one place."""

from __future__ import annotations

import itertools

import pytest

from tests.support.locks import is_free
from tests.support.steps import CtrlC, ended_at_step, within
from uvirtio import opening
from uvirtio.drivers.blk import Blk
from uvirtio.errors import DeviceTimeout
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.pci import ScriptedDevice

SESSIONS = within("/uvirtio/device/state.py")


@pytest.mark.fault(92)
@pytest.mark.parametrize("timed", [False, True], ids=["", "with a deadline"])
@pytest.mark.parametrize("failed", [False, True], ids=["", "left by an error"])
def test_a_session_ends_at_any_step(timed: bool, failed: bool) -> None:
    """The one place is where its exit is entered (see ``Session``); if this fails, it is no more."""
    left = set[str]()
    end = "_Timed.__exit__ entered" if timed else "Session.__exit__ entered"
    for number in itertools.count(1):
        found = ScriptedDevice(Disk())
        with opening.identify(found.address, found, timeout=2) as device, Blk(device) as disk:
            with ended_at_step(number, SESSIONS) as step:
                try:
                    with disk.session(1.0 if timed else None):
                        if failed:
                            raise DeviceTimeout("none", seen="", expected="")
                except (CtrlC, DeviceTimeout):
                    pass
            place = step.where.partition(",")[0] + step.where.rpartition(",")[2]
            assert (device._limit is not None) == (timed and place == end), step.where
            if not is_free(device, 0.2):
                left.add(place)
                device._lock.release()
                device._limit = None
        if not step.came:
            break
    assert number > 4, "it came at none of the steps"
    # Python does not look where a function of its own has returned.
    assert left - {"_Timed.__enter__ after a call"} == {end}
