"""A call that is alone on its queue: what it leaves out, and what it does all the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.support.locks import is_free
from tests.unit.drivers.test_blk import driven
from uvirtio import opening
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.requests import LOOK
from uvirtio.errors import DeviceBroken, DeviceGone, DeviceTimeout
from uvirtio.scripted.blk import FEATURES, Disk
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f


def test_a_call_that_finds_its_answer_at_once_ends_the_skipping():
    """Else looks in vain that lie far apart would add up."""
    with driven(Disk()) as (_, _, blk):
        requests = blk._requests
        requests._skip, requests._skipping = 8, 2
        for skip in (8, 8, 0):
            blk.read(0, 1)
            assert (requests._skip, requests._skipping) == (skip, max(0, requests._skipping))
        assert requests._skipping == 0


def test_calls_that_never_wait_see_in_time_what_the_device_has_to_say():
    """Else a disk that answers at once would keep its size for as long as it is read."""
    model = Disk()
    with driven(model) as (_, device, blk):
        blk.read(0, 1)
        model.grow(4096)
        for _ in range(LOOK):
            blk.read(0, 1)
        assert device.counters.config_changes == 1


@pytest.mark.parametrize("how", ["kick", "status"])
def test_a_read_that_ends_the_device_leaves_no_lock(how: str):
    """It holds the lock of the session without the session, and says all the same what an error means."""
    scripted = ScriptedDevice(Disk())
    with opening.identify("0000:00:04.0", scripted, timeout=0.05) as device, Blk(device) as blk:
        assert blk.read(0, 1) == bytes(512)

        def ring(_value: int) -> None:
            if how == "kick":
                raise DeviceGone("it was pulled out")

        device.queues[0]._doorbell.ring = ring  # type: ignore[method-assign]
        with pytest.raises(DeviceGone if how == "kick" else DeviceTimeout) as caught:
            blk.read(0, 1)
        assert device.broken is caught.value
        with pytest.raises(DeviceGone if how == "kick" else DeviceBroken, match="after an earlier error"):
            blk.read(0, 1)
        assert is_free(device, 1)


@pytest.mark.parametrize("word", [0, f.mask(f.EVENT_IDX)])
def test_a_read_that_is_answered_at_once_makes_few_calls(word: int):
    """What it costs where Python is slow (docs/performance.md); the scripted device's own are not counted."""
    features = FEATURES | f.mask(f.VERSION_1, f.INDIRECT_DESC) | word
    with driven(Disk(), features=features) as (_, _, blk):
        for _ in range(3):
            blk.read(0, 8)
        calls: list[str] = []

        def note(frame: Any, event: str, _argument: object) -> None:
            if event == "call":
                name, code = frame.f_code.co_qualname, frame.f_code
                while frame is not None and "/scripted/" not in frame.f_code.co_filename:
                    frame = frame.f_back
                if frame is None and "/uvirtio/" in code.co_filename:
                    calls.append(name)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            blk.read(0, 8)
        finally:
            sys.setprofile(before)
        assert "SplitQueue.take" in calls and len(calls) <= 8, calls
