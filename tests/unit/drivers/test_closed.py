"""After ``close()`` every method of every driver says that it is closed, whatever it used of the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.drivers import scsi
from uvirtio.drivers.base import Driver
from uvirtio.drivers.mem import Request
from uvirtio.drivers.scsi import Task
from uvirtio.errors import Closed, UsageError

BOOKS = {"close", "lost", "status_lost", "status_pending", "held", "poison_val", "survives_suspend", "take_frame"}
BOOKS |= {"judge", "short", "transport_error", "beyond_end"}
BOOKS |= {"addr", "block_size", "unplugged_inaccessible", "patiently", "check_range", "refusal", "session"}
BOOKS |= {
    "known_capacity",
    "read_only",
    "queue_count",
    "depth",
    "request_size",
    "in_flight",
    "capacity",
    "write_cache",
}
"""What needs no device: the driver's own books, what the start has left, and what only raises or calls back."""

REQUEST = scsi.Request(None, scsi.Lun(0), scsi.commands.inquiry(), 1, 2)  # type: ignore[arg-type]

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Rng.read": (4,),
    "Input.absinfo": (0,),
    "Input.codes": (1,),
    "Input.query": (1,),
    "Input.send": (17, 0, 1),
    "Input.set_led": (0, True),
    "Balloon.arena": (4096,),
    "Balloon.deflate": (1,),
    "Balloon.grow": (lambda: 1, None, None),
    "Balloon.shrink": (lambda: 0, None, None),
    "Balloon.inflate": (1,),
    "Balloon.lend": (None,),
    "Balloon.report": (None,),
    "Mem.ask": (Request.STATE,),
    "Mem.pause": (0.01,),
    "Mem.plug": (0, 1),
    "Mem.state": (0, 1),
    "Mem.unplug": (0, 1),
    "Blk.burst": (1,),
    "Blk.discard": (0, 1),
    "Blk.discard_ranges": ([(0, 1)],),
    "Blk.read": (0, 1),
    "Blk.secure_erase": (0, 1),
    "Blk.set_write_cache": (True,),
    "Blk.submit_read": (0, 1),
    "Blk.submit_write": (0, bytes(512)),
    "Blk.write": (0, bytes(512)),
    "Blk.write_zeroes": (0, 1),
    "Scsi.abort": (REQUEST,),
    "Scsi.abort_all": (REQUEST.lun,),
    "Scsi.burst": (REQUEST.lun, 1),
    "Scsi.capacity": (REQUEST.lun,),
    "Scsi.check_ready": (REQUEST.lun,),
    "Scsi.execute": (REQUEST.lun, REQUEST.command),
    "Scsi.flush": (REQUEST.lun,),
    "Scsi.identifications": (REQUEST.lun,),
    "Scsi.inquiry": (REQUEST.lun,),
    "Scsi.is_pending": (REQUEST,),
    "Scsi.manage": (Task.QUERY_TASK, REQUEST.lun),
    "Scsi.mode": (REQUEST.lun,),
    "Scsi.read": (REQUEST.lun, 0, 1),
    "Scsi.report_luns": (0,),
    "Scsi.reset_lun": (REQUEST.lun,),
    "Scsi.reset_target": (0,),
    "Scsi.serial": (REQUEST.lun,),
    "Scsi.submit": (REQUEST.lun, REQUEST.command),
    "Scsi.vpd": (REQUEST.lun, 0x83),
    "Scsi.vpd_pages": (REQUEST.lun,),
    "Scsi.write": (REQUEST.lun, 0, bytes(512)),
}
KEYWORDS: dict[str, dict[str, Any]] = {
    name: {"timeout": 0.1} for name in ("Input.flush", "Blk.wait_for_change", "Scsi.wait_for_event")
}

MAKE: dict[type[Driver], tuple[Callable[[], Any], dict[str, Any]]] = {
    uvirtio.Rng: (scripted.Rng, {}),
    uvirtio.Input: (scripted.Input, {}),
    uvirtio.Balloon: (scripted.Balloon, {}),
    uvirtio.Mem: (scripted.Mem, {}),
    uvirtio.Blk: (scripted.Disk, {"allow_write": True}),
    uvirtio.Scsi: (scripted.ScsiHost, {"allow_write": True}),
}

CALLS = [
    (kind, name)
    for kind in MAKE
    for name, thing in inspect.getmembers_static(kind)
    if not name.startswith("_") and name not in BOOKS
    if callable(thing) or isinstance(thing, property)
]


@pytest.mark.parametrize("again", [False, True], ids=["closed", "another has it"])
@pytest.mark.parametrize(("kind", "name"), CALLS, ids=lambda one: getattr(one, "__name__", one))
def test_a_closed_driver_says_so(kind: type[Driver], name: str, again: bool) -> None:
    model, keywords = MAKE[kind]
    with uvirtio.open(scripted.ScriptedDevice(model()), timeout=1) as device:
        driver = kind(device, **keywords)
        other = None
        driver.close() if not again else (other := kind(device, **keywords))
        with pytest.raises((Closed, UsageError) if name in ("lend", "report") else Closed) as caught:
            found = getattr(driver, name)
            if callable(found):
                key = f"{kind.__name__}.{name}"
                made = found(*ARGUMENTS.get(key, ()), **KEYWORDS.get(key, {}))
                list(made) if inspect.isgenerator(made) else None
        assert kind.__name__ in str(caught.value)
        if other is not None:
            assert device.state == "DRIVER_OK"
            other.close()


@pytest.mark.parametrize("kind", ["blk", "scsi"])
def test_a_burst_of_a_closed_driver_says_so(kind: str) -> None:
    """Also what only copies: the views of its memory were released."""
    model, keywords = MAKE[uvirtio.Blk if kind == "blk" else uvirtio.Scsi]
    with uvirtio.open(scripted.ScriptedDevice(model())) as device:
        if kind == "blk":
            burst: Any = uvirtio.Blk(device, **keywords).burst(1, depth=4, write=True)
        else:
            burst = uvirtio.Scsi(device, **keywords).burst(REQUEST.lun, 1, depth=4, write=True)
        burst.fill(0, bytes(512))
        assert burst.contents([0]) == [burst.content(0)]
        device.stop()
        for call in (
            lambda: burst.content(0),
            lambda: burst.contents([0]),
            lambda: burst.fill(0, bytes(512)),
            lambda: burst.post(burst.slots[:1], [0]),
            burst.take,
            burst.wait,
        ):
            with pytest.raises(Closed):
                call()
