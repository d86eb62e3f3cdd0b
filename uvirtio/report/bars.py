"""What lies where in the BARs: structures drawn to scale, with overlaps and what lies outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from uvirtio.report.markup import Markup, code, element, join, mark, table
from uvirtio.spec import mmio, pci

_MOST: Final = 64
"""Structures of a BAR that are drawn; configuration space has room for fewer capabilities."""
_LEGACY: Final = 20  # 4.1.4.10: the registers before the device configuration
_LEGACY_MSIX: Final = 24
_ZOOM: Final = 40
"""Where less than this part of a BAR is used, in per cent, that part is drawn larger, too."""
_BEYOND: Final = 125
"""What lies outside is drawn up to here, in per cent of the BAR."""
_SAID: Final = 4
_LABEL: Final = 24  # characters of a name in a picture; those of the standard are shorter
_ROW: Final = 30
_STRIP: Final = 18


@dataclass(frozen=True, slots=True)
class Box:
    """Something that lies in a BAR."""

    label: str
    start: int
    """Offset in the BAR, in bytes."""
    length: int
    verdict: str = "ok"
    """``ok``, ``ignored`` or ``bad``, as the walk of the capabilities judged."""
    why: str = ""
    at: int | None = None
    """Offset of the capability in configuration space."""

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Place:
    """A BAR, or the window of a virtio-mmio device, and what lies in it."""

    name: str
    bar: dict[str, Any]
    """As the dump has it; empty where there is no such BAR."""
    boxes: tuple[Box, ...]

    @property
    def size(self) -> int | None:
        """Bytes; None: not known."""
        size = self.bar.get("size")
        return size if isinstance(size, int) and size > 0 else None

    @property
    def missing(self) -> bool:
        """Whether something is said to lie in a BAR that the function does not have."""
        return not self.bar

    def overlaps(self) -> list[tuple[Box, Box]]:
        """Pairs of boxes that share bytes; what a driver ignores takes no part."""
        used = sorted((box for box in self.boxes if box.verdict != "ignored"), key=lambda box: box.start)
        return [(one, two) for index, one in enumerate(used) for two in used[index + 1 :] if two.start < one.end]

    def outside(self) -> list[Box]:
        """Boxes that do not end within the BAR."""
        size = 0 if self.missing else self.size
        return [] if size is None else [box for box in self.boxes if box.end > size]


def places(record: dict[str, Any]) -> list[Place]:
    """The BARs of a device with what lies in them, lowest first.

    Args:
        record: The device, as a dump has it.
    """
    by_bar: dict[int, list[Box]] = {}
    for index, box in _boxes(record):
        by_bar.setdefault(index, []).append(box)
    known = {bar["bar"]: bar for bar in record.get("bars") or () if bar.get("bar") is not None}
    made = [
        Place(
            f"BAR {index}",
            known.get(index, {}),
            tuple(sorted(by_bar.get(index, ()), key=lambda box: box.start)[:_MOST]),
        )
        for index in sorted({*known, *by_bar})
    ]
    window = record.get("window")
    if window:
        boxes = [Box("registers", 0, mmio.CONFIG)]
        length = window.get("length")
        if isinstance(length, int) and length > mmio.CONFIG:
            boxes.append(Box("device configuration", mmio.CONFIG, length - mmio.CONFIG))
        bar = {"kind": "memory", "address": window.get("base"), "size": length}
        made.append(Place("virtio-mmio window", bar, tuple(boxes)))
    return made


def _boxes(record: dict[str, Any]) -> Iterator[tuple[int, Box]]:
    for cap in record.get("capabilities") or ():
        bar, offset, length = cap.get("bar"), cap.get("offset"), cap.get("length")
        if (
            cap.get("cfg_type") == pci.CfgType.PCI_CFG
            or None in (bar, offset, length)
            or not 0 <= bar <= pci.MAX_BAR
        ):
            continue  # a window, which lies nowhere; or a value that is reserved (4.1.4)
        why = str(cap.get("why") or "")
        yield bar, Box(str(cap["type"]), offset, length, str(cap["verdict"]), why, cap.get("config_offset"))
    msix = record.get("msix")
    if msix and msix.get("bar") is not None and msix.get("offset") is not None and msix.get("vectors"):
        yield (
            msix["bar"],
            Box(
                "MSI-X table", msix["offset"], pci.MSIX_ENTRY_SIZE * msix["vectors"], at=msix.get("config_offset")
            ),
        )
        pending = _pending(record, msix)
        if pending is not None:
            yield pending
    if record.get("interface") in ("legacy", "transitional") and record.get("bus") == "pci":
        length = _LEGACY_MSIX if msix and msix.get("enabled") else _LEGACY
        yield 0, Box("legacy registers", 0, length)


def _pending(record: dict[str, Any], msix: dict[str, Any]) -> tuple[int, Box] | None:
    """The pending bit array, from configuration space (PCI 3.0, 6.8.2.5)."""
    space, at = record.get("config_space"), msix.get("config_offset")
    if not space or at is None:
        return None
    word = bytes.fromhex(space["hex"])[at + pci.MSIX_PBA : at + pci.MSIX_CAP_SIZE]
    if len(word) < 4:
        return None
    value = int.from_bytes(word, "little")
    length = -(-msix["vectors"] // 64) * 8  # one bit a vector, in words of 64
    return value & pci.MSIX_BIR_MASK, Box("MSI-X pending bits", value & pci.MSIX_OFFSET_MASK, length, at=at)


# --- the picture ------------------------------------------------------------------------------------------------


def draw(place: Place) -> Markup:
    """A BAR as a figure: to scale as a whole, the used part larger where it is small, and as a table."""
    size, boxes = place.size, place.boxes
    told = _kind(place)
    if not boxes:
        return element("p", element("b", place.name), f": {told}; nothing of virtio lies in it.", class_="empty")
    reach = max(max(box.end for box in boxes), 1)
    domain = size or reach
    whole = max(min(max(domain, reach), domain * _BEYOND // 100), 1)
    low, high = min(box.start for box in boxes), min(reach, whole)
    zoomed = 100 * (high - low) < _ZOOM * whole and high > low
    clashing = {id(box) for pair in place.overlaps() for box in pair}
    outside = {id(box) for box in place.outside()}
    summary = _summary(place)
    detail = _Scale(low, high) if zoomed else _Scale(0, whole)
    pictures = [_strip(place, _Scale(0, whole), domain, (low, high) if zoomed else None)]
    if zoomed:
        pictures.append(element("p", f"The used part, {low:#x} to {high:#x}, larger:", class_="small"))
    pictures.append(_rows(place, detail, domain, clashing | outside))
    rows = []
    for number, box in enumerate(boxes, 1):
        what = []
        if id(box) in outside:
            what.append(mark("fail", "outside the BAR"))
        if id(box) in clashing:
            what.append(mark("fail", "overlaps"))
        if box.verdict != "ok":
            what.append(mark("fail" if box.verdict == "bad" else "note", box.verdict))
        rows.append(
            (
                f"{number} {box.label}",
                code(f"{box.start:#x}"),
                code(f"{box.length:#x}"),
                code(f"{box.end:#x}"),
                "-" if box.at is None else code(f"{box.at:#x}"),
                [what or mark("pass"), f" {box.why}" if box.why else ""],
            )
        )
    return element(
        "figure",
        element("figcaption", element("b", place.name), f": {told}. {summary}"),
        pictures,
        table(
            ("Structure", "Offset", "Length", "End", "Capability at", "Verdict"),
            rows,
            caption=f"What lies in {place.name}",
        ),
        class_="bar",
    )


def _kind(place: Place) -> str:
    if place.missing:
        return "the function has no such BAR, or it is not shown"
    bar = place.bar
    kind = "I/O ports" if bar.get("kind") == "io" else "memory"
    bits = f", {bar['bits']} bits" if bar.get("bits") else ""
    fetch = ", prefetchable" if bar.get("prefetchable") else ""
    where = f" at {bar['address']}" if bar.get("address") else ", not assigned or address not shown"
    size = f"{place.size:#x} bytes" if place.size else "size not in this dump"
    return f"{kind}{bits}{fetch}{where}, {size}"


def _summary(place: Place) -> str:
    said = [f"{_short(one.label)} and {_short(two.label)} overlap" for one, two in place.overlaps()]
    said += [f"outside: {_short(box.label)}" for box in place.outside()]
    if len(said) > _SAID:
        said[_SAID:] = [f"and {len(said) - _SAID} more"]
    return "; ".join(said) or "Nothing overlaps, nothing lies outside."


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


@dataclass(frozen=True, slots=True)
class _Scale:
    low: int
    high: int

    def at(self, offset: int) -> float:
        """Where an offset is, in per cent of the width."""
        inside = min(max(offset, self.low), self.high)  # before the division: a dump may hold any number
        return round(100 * (inside - self.low) / (self.high - self.low), 3)

    def rect(self, start: int, end: int, y: float, height: float, class_: str) -> Markup:
        """A box from one offset to another, drawn where it is in this scale."""
        left = self.at(start)
        width = max(self.at(end) - left, 0.0)
        # The style's stroke, which does not scale, keeps a box of a few bytes visible in a BAR of gigabytes.
        return element("rect", x=f"{left}%", y=y, width=f"{round(width, 3)}%", height=height, class_=class_)


def _strip(place: Place, scale: _Scale, domain: int, zoom: tuple[int, int] | None) -> Markup:
    """The whole BAR in one line."""
    parts = [scale.rect(0, domain, 2, _STRIP, "void" if place.missing else "ground")]
    if scale.high > domain:
        parts.append(scale.rect(domain, scale.high, 2, _STRIP, "void"))
    parts += [scale.rect(box.start, box.end, 2, _STRIP, _class(box)) for box in place.boxes]
    for one, two in place.overlaps():
        parts.append(scale.rect(max(one.start, two.start), min(one.end, two.end), 2, _STRIP, "clash"))
    parts += [
        scale.rect(max(box.start, domain), box.end, 2, _STRIP, "clash") for box in place.boxes if box.end > domain
    ]
    if zoom is not None:
        parts.append(scale.rect(zoom[0], zoom[1], 0.5, _STRIP + 3, "lens"))
        parts += _axis(scale, domain, _STRIP + 16)  # else the lines below have the same scale, and show it
    return _svg(parts, _STRIP + (22 if zoom is not None else 5), f"{place.name} to scale. {_summary(place)}")


def _rows(place: Place, scale: _Scale, domain: int, wrong: set[int]) -> Markup:
    """A line for each structure, so that names never collide and overlaps stand one below the other."""
    parts: list[Markup] = []
    bottom = _ROW * len(place.boxes)
    for one, two in place.overlaps():
        parts.append(
            scale.rect(max(one.start, two.start), min(one.end, two.end), 0, bottom, "shade"),
        )
    for number, box in enumerate(place.boxes):
        y = _ROW * number
        left, right = scale.at(box.start), scale.at(box.end)
        near = left <= 50
        sign = "✗ " if id(box) in wrong or box.verdict == "bad" else ""
        arrow = " →" if box.end > scale.high else ""
        parts.append(
            element(
                "text",
                f"{sign}{number + 1} {_short(box.label)}{arrow}",
                x=f"{left if near else right}%",
                y=y + 12,
                text_anchor="start" if near else "end",
                class_="wrong" if sign else None,
            )
        )
        parts.append(scale.rect(scale.low, scale.high, y + 21, 0.5, "line"))
        parts.append(scale.rect(box.start, box.end, y + 16, 10, _class(box)))
        if box.end > domain:
            parts.append(scale.rect(max(box.start, domain), box.end, y + 16, 10, "clash"))
    if domain < scale.high:
        parts.append(scale.rect(domain, domain, 0, bottom, "edge"))
    parts += _axis(scale, domain, bottom + 14)
    names = ", ".join(f"{box.label} at {box.start:#x}" for box in place.boxes)
    return _svg(parts, bottom + 20, f"Structures in {place.name}: {names}")


def _class(box: Box) -> str:
    if box.verdict == "bad":
        return "box bad"
    if box.verdict == "ignored":
        return "box ignored"
    return f"box {_CLASSES.get(box.label, 'other')}"


_CLASSES: Final = {
    "common": "common",
    "notify": "notify",
    "isr": "isr",
    "device": "device",
    "MSI-X table": "msix",
    "MSI-X pending bits": "msix",
}


def _axis(scale: _Scale, domain: int, y: float) -> list[Markup]:
    marks = [
        element("text", f"{scale.low:#x}", x="0%", y=y, text_anchor="start", class_="tick"),
        element("text", f"{scale.high:#x}", x="100%", y=y, text_anchor="end", class_="tick"),
    ]
    middle = domain if scale.low < domain < scale.high else (scale.low + scale.high) // 2
    if 20 < scale.at(middle) <= 82:
        label = f"{middle:#x}" + (" end" if middle == domain else "")
        marks.append(element("text", label, x=f"{scale.at(middle)}%", y=y, text_anchor="middle", class_="tick"))
    return marks


def _svg(parts: list[Markup], height: float, title: str) -> Markup:
    return element(
        "svg", element("title", title), join(*parts), width="100%", height=height, role="img", aria_label=title
    )
