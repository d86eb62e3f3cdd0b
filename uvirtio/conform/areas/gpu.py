"""5.7: the GPU device, without 3D. What is shown on its screen needs consent."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.lane import Lane
from uvirtio.conform.row import ANY, Area, Level, Need, P
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, Unfit, Violated
from uvirtio.diag.probes.gpu import HEIGHT, WIDTH, command, named, picture, shows
from uvirtio.diag.probes.outcome import other_side
from uvirtio.scripted import Gpu, ScriptedCore
from uvirtio.spec import gpu
from uvirtio.spec.gpu import Command, Response
from uvirtio.spec.layout import by_name
from uvirtio.spec.status import Status
from uvirtio.transports.pci import PciModern

AREA = Area("gpu", 180, "5.7: GPU", transports=ANY, types=frozenset({"gpu"}))

_HOST: Final[frozenset[Need]] = frozenset({"host"})
_RESOURCE: Final = 1
_NO_RESOURCE: Final = 0x7FFF_FFFF
_NO_SCANOUT: Final = 99
_NO_COMMAND: Final = 0x01FF
_FENCES: Final = (1, 0x8000_0001_7FFF_FFFF)
_REGIONS: Final = (0, 1)
_CLEAR: Final = by_name(gpu.CONFIG)["events_clear"]


def ask(t: Trial, lane: Lane, request: bytes, room: int = gpu.HEADER.size) -> bytes:
    """Send a request; what lies in the room for its answer.

    Args:
        t: The trial.
        lane: The control queue.
        request: All of it.
        room: Bytes for the answer.
    """
    answer = t.writable(room)
    lane.post(t.readable(request), answer)
    t.await_used(lane, 1)
    return answer.data


def done(t: Trial, lane: Lane, kind: Command, body: bytes, *, fence: int = 0) -> None:
    """Send a request that has to succeed.

    Args:
        t: The trial.
        lane: The control queue.
        kind: Its type.
        body: What follows the header.
        fence: ``fence_id`` where FENCE is asked for; 0: it is not.
    """
    flags = gpu.FLAG_FENCE if fence else 0
    seen = gpu.HEADER.unpack(ask(t, lane, command(kind, body, flags=flags, fence=fence)))[0]
    t.expect(seen == Response.OK_NODATA, f"{kind.name}: {named(seen)}", named(Response.OK_NODATA))


@AREA.row("D-GPU-07", "5.7.4", "DESC", "num_scanouts is 1 to 16.", level=Level.LOOK)
def scanouts(t: Trial) -> Outcome:
    """It is read."""
    seen = t.config_field(gpu.CONFIG, "num_scanouts")
    t.expect(1 <= seen <= gpu.SCANOUTS_MAX, f"num_scanouts {seen}", f"1 to {gpu.SCANOUTS_MAX}")
    return None


@AREA.row(
    "D-GPU-01", "5.7.5", "MUST", "Ids of shared memory are 0 or 1.", level=Level.LOOK, transports=frozenset({P})
)
def regions(t: Trial) -> Outcome:
    """The regions are listed."""
    assert isinstance(t.transport, PciModern)
    seen = [region.shmid for region in t.transport.shared_memory()]
    t.expect(all(one in _REGIONS for one in seen), f"regions {seen}", f"of {list(_REGIONS)}")
    return None


@AREA.row(
    "D-GPU-04",
    "5.7.6.7",
    "MUST",
    "The response to a request with FENCE has the flag and its fence_id.",
    severity=Severity.SILENT,
)
def fences_come_back(t: Trial) -> Outcome:
    """GET_DISPLAY_INFO with FENCE, and ids with bits in both halves."""
    lane = t.start()
    for fence in _FENCES:
        request = command(Command.GET_DISPLAY_INFO, flags=gpu.FLAG_FENCE, fence=fence)
        _, flags, seen, *_ = gpu.HEADER.unpack_from(ask(t, lane, request, gpu.DISPLAY_INFO_SIZE))
        right = bool(flags & gpu.FLAG_FENCE) and seen == fence
        t.expect(right, f"flags {flags:#x}, fence_id {seen:#x}", f"FENCE and {fence:#x}")
    return None


@AREA.row(
    "D-GPU-06",
    "5.7.6.8",
    "DESC",
    "An unknown request, resource or scanout gives an error.",
    level=Level.ODD,
    severity=Severity.SILENT,
)
def errors(t: Trial) -> Outcome:
    """One of each, and then a good request."""
    lane = t.start()
    whole = (0, 0, WIDTH, HEIGHT)
    asked = {
        "an unknown request": gpu.HEADER.pack(_NO_COMMAND, 0, 0, 0, 0),
        "an unknown resource": command(Command.RESOURCE_UNREF, gpu.RESOURCE.pack(_NO_RESOURCE, 0)),
        "an unknown scanout": command(Command.SET_SCANOUT, gpu.SET_SCANOUT.pack(*whole, _NO_SCANOUT, 0)),
    }
    for what, request in asked.items():
        seen = gpu.HEADER.unpack(ask(t, lane, request))[0]
        t.expect(Response.ERR_UNSPEC <= seen < 0x1300, f"{what}: {named(seen)}", "an error of 5.7.6.7")
    t.good(lane)
    status = t.status()
    t.expect(not status & Status.DEVICE_NEEDS_RESET, f"status {status:#x}", "a device that goes on")
    return None


@AREA.row(
    "D-GPU-03",
    "5.7.6.5",
    "MUST",
    "A request with FENCE is done when it comes back.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def fences_are_kept(t: Trial) -> Outcome:
    """A picture is transferred and flushed with FENCE, and the screen shows it when that has come back."""
    side = other_side(t.device, "screen")
    if side is None:
        raise Unfit("this process does not see the screen")
    lane = t.start()
    pixels = t.readable(picture())
    entries = b"".join(gpu.MEMORY.pack(address, length, 0) for address, length in pixels.segments)
    whole = (0, 0, WIDTH, HEIGHT)
    create = gpu.CREATE_2D.pack(_RESOURCE, gpu.FORMAT_B8G8R8X8, WIDTH, HEIGHT)
    done(t, lane, Command.RESOURCE_CREATE_2D, create)
    backing = gpu.ATTACH_BACKING.pack(_RESOURCE, len(pixels.segments)) + entries
    done(t, lane, Command.RESOURCE_ATTACH_BACKING, backing)
    done(t, lane, Command.SET_SCANOUT, gpu.SET_SCANOUT.pack(*whole, 0, _RESOURCE))
    transfer = gpu.TRANSFER.pack(*whole, 0, _RESOURCE, 0)
    done(t, lane, Command.TRANSFER_TO_HOST_2D, transfer, fence=_FENCES[0])
    done(t, lane, Command.RESOURCE_FLUSH, gpu.FLUSH.pack(*whole, _RESOURCE, 0), fence=_FENCES[1])
    wrong = shows(side.screen())
    if wrong is not None:
        raise Violated(f"the screen: {wrong[0]}", wrong[1])
    done(t, lane, Command.SET_SCANOUT, gpu.SET_SCANOUT.pack(*whole, 0, 0))
    return None


@AREA.row(
    "D-GPU-05",
    "5.7.4",
    "DESC",
    "events_clear clears the events that are written to it, and no others.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def events_are_cleared(t: Trial) -> Outcome:
    """The display gets another size; another bit is written, then that of the event."""
    backend = t.device.transport.backend
    if not isinstance(backend, ScriptedCore) or not isinstance(backend.model, Gpu):
        raise Unfit("its host cannot be asked for a display of another size")
    t.good(t.start())
    backend.model.resize(1024, 600)
    seen = [t.config_field(gpu.CONFIG, "events_read")]
    for bits in (gpu.EVENT_DISPLAY << 1, gpu.EVENT_DISPLAY):
        t.transport.write_config(_CLEAR.offset, _CLEAR.width, bits)
        seen.append(t.config_field(gpu.CONFIG, "events_read"))
    right = [gpu.EVENT_DISPLAY, gpu.EVENT_DISPLAY, 0]
    t.expect(seen == right, f"events_read {seen}", f"{right}")
    return None
