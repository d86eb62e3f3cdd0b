"""A GPU (5.7) made of Python: 2D resources in its own memory, and one screen.

Lies: ``garbled`` (another type of response, another colour), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import gpu as spec
from uvirtio.spec.gpu import Command, Response
from uvirtio.spec.layout import by_name, size

_PIXEL = 4
_LIMIT = 1 << 24


@dataclass
class Picture:
    """One resource."""

    width: int
    height: int
    pixels: bytearray
    backing: list[tuple[int, int]] = field(default_factory=list)


class _Refused(Exception):
    """A request is answered with this error."""

    def __init__(self, kind: Response) -> None:
        super().__init__(kind.name)
        self.kind = kind


class Gpu(Answering):
    """A GPU with one scanout of 1280x800."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    features = f.mask(f.Gpu.EDID)
    queue_sizes = (64, 16)
    other_sides = frozenset({"screen"})

    def __init__(self, *, width: int = 1280, height: int = 800) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        self.put("num_scanouts", 1)
        self.width, self.height = width, height
        self.pictures: dict[int, Picture] = {}
        self.shown = 0
        """The resource of scanout 0; 0: none."""

    def reset(self) -> None:
        """The device was reset: its resources are gone."""
        self.pictures.clear()
        self.shown = 0

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to events_clear, which takes bits out of events_read (5.7.4)."""
        clear = offset == self.fields["events_clear"].offset and width == 4
        self.device.check("GPU-01", clear, f"{value} was written at {offset}")
        if clear:
            self.put("events_read", self.get("events_read") & ~value)

    def resize(self, width: int, height: int) -> None:
        """The display gets another size, which the driver is told."""
        self.width, self.height = width, height
        self.put("events_read", self.get("events_read") | spec.EVENT_DISPLAY, interrupt=True)

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a request of the control queue; those of the cursor's have no answer."""
        self.device.check("GPU-02", len(data) >= spec.HEADER.size, f"a request of {len(data)} bytes")
        if queue == spec.CURSORQ or len(data) < spec.HEADER.size:
            return b""
        kind, flags, fence, context, ring = spec.HEADER.unpack_from(data)
        try:
            answer, body = self._carried_out(kind, data[spec.HEADER.size :])
        except _Refused as refused:
            answer, body = refused.kind, b""
        flags &= spec.FLAG_FENCE
        return spec.HEADER.pack(answer, flags, fence if flags else 0, context, ring) + body

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """A response of another type."""
        return (0x1177).to_bytes(4, "little") + answer[4:]

    def _carried_out(self, kind: int, body: bytes) -> tuple[Response, bytes]:
        if kind == Command.GET_DISPLAY_INFO:
            one = spec.DISPLAY.pack(0, 0, self.width, self.height, 1, 0)
            return Response.OK_DISPLAY_INFO, one + bytes(spec.DISPLAY.size * (spec.SCANOUTS_MAX - 1))
        if kind == Command.GET_EDID:
            if spec.RESOURCE.unpack_from(body)[0]:
                raise _Refused(Response.ERR_INVALID_PARAMETER)
            block = spec.EDID_MAGIC + bytes(spec.EDID_MAX - len(spec.EDID_MAGIC))
            return Response.OK_EDID, spec.EDID_HEAD.pack(spec.EDID_MAX, 0) + block
        if kind == Command.RESOURCE_CREATE_2D:
            ident, _, width, height = spec.CREATE_2D.unpack_from(body)
            if not ident or ident in self.pictures:
                raise _Refused(Response.ERR_INVALID_RESOURCE_ID)
            if not 0 < width * height < _LIMIT:
                raise _Refused(Response.ERR_INVALID_PARAMETER)
            self.pictures[ident] = Picture(width, height, bytearray(width * height * _PIXEL))
        elif kind == Command.RESOURCE_ATTACH_BACKING:
            ident, count = spec.ATTACH_BACKING.unpack_from(body)
            entries = body[spec.ATTACH_BACKING.size :][: count * spec.MEMORY.size]
            self._picture(ident).backing = [entry[:2] for entry in spec.MEMORY.iter_unpack(entries)]
        elif kind == Command.RESOURCE_DETACH_BACKING:
            self._picture(spec.RESOURCE.unpack_from(body)[0]).backing = []
        elif kind == Command.RESOURCE_UNREF:
            ident = spec.RESOURCE.unpack_from(body)[0]
            self._picture(ident)
            del self.pictures[ident]
        elif kind == Command.TRANSFER_TO_HOST_2D:
            self._transfer(self._picture(spec.TRANSFER.unpack_from(body)[5]))
        elif kind == Command.SET_SCANOUT:
            *_, scanout, ident = spec.SET_SCANOUT.unpack_from(body)
            if scanout:
                raise _Refused(Response.ERR_INVALID_SCANOUT_ID)
            self.shown = ident if not ident or self._picture(ident) else 0
        elif kind == Command.RESOURCE_FLUSH:
            self._picture(spec.FLUSH.unpack_from(body)[4])
        else:
            raise _Refused(Response.ERR_UNSPEC)
        return Response.OK_NODATA, b""

    def _picture(self, ident: int) -> Picture:
        if ident not in self.pictures:
            raise _Refused(Response.ERR_INVALID_RESOURCE_ID)
        return self.pictures[ident]

    def _transfer(self, picture: Picture) -> None:
        """All of the picture from its backing."""
        data = b"".join(self.device.memory.read(address, length) for address, length in picture.backing)
        picture.pixels[:] = data[: len(picture.pixels)]

    def screen(self) -> bytes:
        """What is shown, as a portable pixmap; black without a resource."""
        picture = self.pictures.get(self.shown) or Picture(640, 480, bytearray(640 * 480 * _PIXEL))
        blue, green, red = (picture.pixels[place::_PIXEL] for place in range(3))
        pixels = bytes(value for pixel in zip(red, green, blue, strict=True) for value in pixel)
        return f"P6\n{picture.width} {picture.height}\n255\n".encode() + pixels
