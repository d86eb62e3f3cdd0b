"""The data path of a GPU (5.7): its displays, and a picture that QEMU's screen dump shows.

Nothing of it needs a display: GET_DISPLAY_INFO and GET_EDID are answered without one. A picture on a screen that
others look at is for machines of our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult, other_side
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath, Room, in_words
from uvirtio.drivers.base import runs
from uvirtio.spec import features as f
from uvirtio.spec import gpu as spec
from uvirtio.spec.gpu import Command, Response
from uvirtio.spec.layout import by_name

_FIELDS: Final = by_name(spec.CONFIG)
WIDTH, HEIGHT = 64, 48
"""Of the picture, in pixels."""
PIXEL: Final = 4
"""Bytes."""
_RESOURCE: Final = 1
_FENCE: Final = 0x7569_7274_696F_0001
"""An id with bits in both halves."""
_COLOURS: Final = ((0xE0, 0x20, 0x10), (0x10, 0xC0, 0x30), (0x20, 0x40, 0xF0), (0xF0, 0xF0, 0x08))
"""Red, green and blue of the quarters, in reading order."""


def command(kind: Command, body: bytes = b"", *, flags: int = 0, fence: int = 0) -> bytes:
    """A request of the control queue (5.7.6.7).

    Args:
        kind: Its type.
        body: What follows the header.
        flags: Of the header, 32 bits.
        fence: ``fence_id``, 64 bits.
    """
    return spec.HEADER.pack(kind, flags, fence, 0, 0) + body


def named(kind: int) -> str:
    """The type of a response in words.

    Args:
        kind: 32 bits.
    """
    return in_words(kind, Response, "no response")


def response(rooms: Sequence[Room], expected: int) -> str | None:
    """What is wrong with the type of a response; None: nothing.

    Args:
        rooms: The rooms of the request.
        expected: The type.
    """
    data = b"".join(room.data for room in rooms)
    kind = spec.HEADER.unpack_from(data)[0]
    return None if kind == expected else f"type {named(kind)} instead of {named(expected)}"


def display_info() -> Ask:
    """GET_DISPLAY_INFO (5.7.6.8), which changes nothing."""
    return Ask(
        "GET_DISPLAY_INFO",
        spec.CONTROLQ,
        (command(Command.GET_DISPLAY_INFO),),
        (spec.DISPLAY_INFO_SIZE,),
        _wrong_displays,
    )


def _wrong_displays(rooms: Sequence[Room]) -> str | None:
    wrong = response(rooms, Response.OK_DISPLAY_INFO)
    if wrong is not None:
        return wrong
    for number, (_, _, width, height, enabled, _) in enumerate(displays(rooms[0].data)):
        if enabled not in (0, 1) or (enabled and not (width and height)):
            return f"scanout {number} is {width}x{height}, enabled {enabled:#x}"
    return None


def displays(answer: bytes) -> list[tuple[int, ...]]:
    """The displays of an answer to GET_DISPLAY_INFO, as x, y, width, height, enabled, flags.

    Args:
        answer: All of it.
    """
    return list(spec.DISPLAY.iter_unpack(answer[spec.HEADER.size :]))


def edid() -> Ask:
    """GET_EDID of scanout 0 (5.7.6.8)."""
    return Ask(
        "GET_EDID",
        spec.CONTROLQ,
        (command(Command.GET_EDID, spec.RESOURCE.pack(0, 0)),),
        (spec.HEADER.size + spec.EDID_HEAD.size + spec.EDID_MAX,),
        _wrong_edid,
    )


def _wrong_edid(rooms: Sequence[Room]) -> str | None:
    wrong = response(rooms, Response.OK_EDID)
    if wrong is not None:
        return wrong
    body = rooms[0].data[spec.HEADER.size :]
    size, _ = spec.EDID_HEAD.unpack_from(body)
    begins = body[spec.EDID_HEAD.size :][: len(spec.EDID_MAGIC)]
    if not 128 <= size <= spec.EDID_MAX or begins != spec.EDID_MAGIC:
        return f"an EDID of {size} bytes that begins {begins.hex(' ')}"
    return None


def plain(kind: Command, body: bytes, *, fence: int = 0) -> Ask:
    """A request that is answered with a header alone.

    Args:
        kind: Its type.
        body: What follows the header.
        fence: ``fence_id`` where FENCE is asked for; 0: it is not.
    """
    flags = spec.FLAG_FENCE if fence else 0

    def wrong(rooms: Sequence[Room]) -> str | None:
        no = response(rooms, Response.OK_NODATA)
        if no is not None:
            return no
        _, got, ident, _, _ = spec.HEADER.unpack_from(rooms[0].data)
        if fence and (not got & flags or ident != fence):
            return f"flags {got:#x} and fence_id {ident:#x} for the fence {fence:#x} (5.7.6.7)"
        return None

    asked = command(kind, body, flags=flags, fence=fence)
    return Ask(kind.name, spec.CONTROLQ, (asked,), (spec.HEADER.size,), wrong)


def picture() -> bytes:
    """Four quarters of one colour each, as B8G8R8X8."""
    rows = []
    for row in range(HEIGHT):
        left, right = _COLOURS[2 * (row >= HEIGHT // 2) :][:2]
        rows.append(_bgrx(left) * (WIDTH // 2) + _bgrx(right) * (WIDTH // 2))
    return b"".join(rows)


def _bgrx(colour: tuple[int, int, int]) -> bytes:
    red, green, blue = colour
    return bytes([blue, green, red, 0])


class GpuPath(AskingPath):
    """Asks for the displays, and shows a picture where that disturbs no one."""

    wanted = f.mask(f.Gpu.EDID)

    def queues(self) -> list[QueueSpec]:
        """The control queue and the cursor's."""
        return [
            QueueSpec(spec.CONTROLQ, "controlq", QUEUE_SIZE),
            QueueSpec(spec.CURSORQ, "cursorq", QUEUE_SIZE, required=False),
        ]

    def _make_memory(self) -> None:
        super()._make_memory()
        self._pixels = self._device.dma.alloc(WIDTH * HEIGHT * PIXEL)

    def exercise(self) -> PathResult:
        """GET_DISPLAY_INFO, GET_EDID; a 2D resource is created, filled, shown and freed."""
        (count,) = self._device.read_config(_FIELDS["num_scanouts"])
        odd = "" if 1 <= count <= spec.SCANOUTS_MAX else f"num_scanouts is {count}, not 1 to 16 (5.7.4)"
        (answer,) = self.ask(display_info())
        about = f"{count} scanout{'s' * (count != 1)}"
        on = [f"{width}x{height}" for _, _, width, height, enabled, _ in displays(answer)[:count] if enabled]
        about += f", enabled: {', '.join(on) or 'none'}"
        if self._device.has(f.Gpu.EDID):
            self.ask(edid())
            about += "; EDID read"
        if self._around.intrusive:
            about += f"; {self._show()}"
        else:
            about += "; no picture was shown, which others would see"
        return PathResult(about, odd)

    def _show(self) -> str:
        """Show a picture and look at the screen; what was done in words."""
        whole = (0, 0, WIDTH, HEIGHT)
        self._pixels.view[:] = picture() + bytes(len(self._pixels.view) - WIDTH * HEIGHT * PIXEL)
        self.ask(
            plain(
                Command.RESOURCE_CREATE_2D,
                spec.CREATE_2D.pack(_RESOURCE, spec.FORMAT_B8G8R8X8, WIDTH, HEIGHT),
            )
        )
        places = runs(self._pixels, 0, WIDTH * HEIGHT * PIXEL)
        entries = b"".join(spec.MEMORY.pack(address, length, 0) for address, length in places)
        self.ask(
            plain(Command.RESOURCE_ATTACH_BACKING, spec.ATTACH_BACKING.pack(_RESOURCE, len(places)) + entries)
        )
        self.ask(plain(Command.TRANSFER_TO_HOST_2D, spec.TRANSFER.pack(*whole, 0, _RESOURCE, 0)))
        self.ask(plain(Command.SET_SCANOUT, spec.SET_SCANOUT.pack(*whole, 0, _RESOURCE)))
        self.ask(plain(Command.RESOURCE_FLUSH, spec.FLUSH.pack(*whole, _RESOURCE, 0), fence=_FENCE))
        seen = self._seen()
        self.ask(plain(Command.SET_SCANOUT, spec.SET_SCANOUT.pack(*whole, 0, 0)))
        self.ask(plain(Command.RESOURCE_DETACH_BACKING, spec.RESOURCE.pack(_RESOURCE, 0)))
        self.ask(plain(Command.RESOURCE_UNREF, spec.RESOURCE.pack(_RESOURCE, 0)))
        return f"a picture of {WIDTH}x{HEIGHT}, {seen}"

    def _seen(self) -> str:
        """Compare with QEMU's screen dump, where there is one."""
        machine = other_side(self._device, "screen")
        if machine is None:
            return "acknowledged with its fence"
        wrong = shows(machine.screen())
        if wrong is not None:
            raise self.differs("the screen", *wrong)
        return "which the screen of its machine shows, pixel for pixel"


def shows(pixmap: bytes) -> tuple[str, str] | None:
    """What a screen shows and what it should, where it does not show the picture; None: it does.

    Args:
        pixmap: The screen, as a portable pixmap (P6).
    """
    size, pixels = _pixmap(pixmap)
    if size != (WIDTH, HEIGHT):
        return f"{size[0]}x{size[1]} pixels", f"{WIDTH}x{HEIGHT}"
    data = picture()
    for number, start in enumerate(range(0, len(data), PIXEL)):
        sent, got = data[start : start + 3][::-1], pixels[3 * number : 3 * number + 3]
        if sent != got:
            at = f"pixel {number % WIDTH},{number // WIDTH} (red, green, blue)"
            return f"{at}: {got.hex(' ') or 'none'}", sent.hex(" ")
    return None


def _pixmap(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of a portable pixmap (P6), three bytes each; 0x0 where it is none."""
    head = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", data)
    return ((int(head[1]), int(head[2])), data[head.end() :]) if head else ((0, 0), b"")
