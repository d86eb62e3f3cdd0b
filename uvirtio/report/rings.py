"""A picture of each virtqueue: descriptors in use, the two indices, what is in flight and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from uvirtio.report.markup import Children, Markup, code, element, mark, pairs, seconds

_WRAP: Final = 1 << 15
"""The wrap counter in an off_wrap of a packed ring (2.8.10)."""

_SAYS: Final = {
    "idle": ("pass", "no buffer is out"),
    "used": ("pass", "the device returned buffers"),
    "suppressed": ("warn", "the device asked for no kick and did not look at the ring"),
    "untaken": ("fail", "kicked, and the device has not taken the buffers"),
    "kept": ("warn", "the device took the buffers and has not returned them"),
    "silent": ("warn", "kicked, and no buffer came back"),
}


@dataclass(frozen=True, slots=True)
class Indices:
    """Where driver and device are in a ring."""

    avail: int
    """The entry that the driver makes available next."""
    used: int
    """The entry that is used next."""
    between: int
    """Entries from the second to the first."""
    impossible: bool
    """Whether they are further apart than the ring is long."""


def indices(ring: dict[str, Any]) -> Indices | None:
    """The indices of a ring; None: the document does not tell them.

    Args:
        ring: A queue as ``QueueEvidence`` has it.
    """
    size, told = ring.get("size"), ring.get("words") or {}
    if not isinstance(size, int) or not 0 < size <= 1 << 15:
        return None
    if ring.get("format") == "split":
        avail, used = told.get("avail.idx"), told.get("used.idx")
        if not isinstance(avail, int) or not isinstance(used, int):
            return None
        apart = (avail - used) & 0xFFFF
        return Indices(avail % size, used % size, min(apart, size), apart > size)
    avail, used = told.get("next avail"), told.get("next used")
    if not isinstance(avail, int) or not isinstance(used, int):
        return None
    first, last = used & (_WRAP - 1), avail & (_WRAP - 1)
    lap = (avail ^ used) & _WRAP
    apart = last - first + (size if lap else 0)
    return Indices(last % size, first % size, min(max(apart, 0), size), not 0 <= apart <= size)


def ages(ring: dict[str, Any]) -> list[tuple[int, float]]:
    """The chains in flight, oldest first: number since the start of the ring, and for how many seconds it is out.

    Args:
        ring: A queue as ``QueueEvidence`` has it.
    """
    told = ring.get("ages")
    made = []
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict):
            number, age = one.get("chain"), one.get("seconds")
            if isinstance(number, int) and isinstance(age, int | float) and 0 <= age < math.inf:
                made.append((number, float(age)))
    return sorted(made, key=lambda one: -one[1])


def queues_of(record: dict[str, Any] | None, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The queues with all that the documents know of each: registers of the dump, ring of the latest look.

    Args:
        record: The device, as a dump has it; None: there is no dump.
        steps: The steps of a diagnosis; the last that looked at the queues counts.
    """
    made: dict[int, dict[str, Any]] = {}
    for queue in (record or {}).get("queues") or ():
        made[queue["index"]] = dict(queue)
    looked = [step for step in steps if (step.get("data") or {}).get("queues")]
    if looked:
        step = looked[-1]
        for ring in step["data"]["queues"]:
            entry = made.setdefault(ring["index"], {"index": ring["index"]})
            addresses = [hex(one) if isinstance(one, int) else one for one in ring.get("addresses") or ()]
            # A dump is made after the last step, so its look at the ring is the later one.
            if not entry.get("ring"):
                entry["ring"] = {**ring, "addresses": addresses, "seen at": step["name"]}
            if ring.get("in_flight"):
                entry["longest"] = step.get("took_s")
    return [made[index] for index in sorted(made)]


def draw(queue: dict[str, Any]) -> Markup:
    """One queue: its ring as a circle, its books as text.

    Args:
        queue: As ``queues_of`` returns it.
    """
    ring: dict[str, Any] = queue.get("ring") or {}
    title = f"Queue {queue['index']}" + (f", {ring['name']}" if ring.get("name") else "")
    seen = indices(ring) if ring else None
    verdict, says = _SAYS.get(str(ring.get("stall")), ("skip", "this document has no look at the ring"))
    if seen is not None and seen.impossible:
        verdict, says = "fail", "the indices are further apart than the ring is long"
    out = ages(ring)
    words = {name: value for name, value in (ring.get("words") or {}).items() if value is not None}
    told: list[tuple[str, Children]] = [
        ("entries", f"{ring.get('size', '?')} ({ring.get('format', '?')}), largest {queue.get('size_max', '?')}")
        if ring
        else ("largest size", queue.get("size_max"))
    ]
    if ring:
        told += [
            ("published", ring.get("published")),
            ("in flight", _in_flight(ring, out, queue.get("longest"))),
            ("kicks", f"{ring.get('kicks')}; {ring.get('unkicked')} published since without one"),
        ]
        told += [(name, code(value)) for name, value in words.items()]
        for name, value in zip(
            ("descriptor area", "driver area", "device area"), ring.get("addresses") or (), strict=False
        ):
            told.append((name, code(value)))
    told += [(name, code(value)) for name, value in (queue.get("registers") or {}).items() if value is not None]
    return element(
        "figure",
        element("figcaption", element("b", title), " ", mark(verdict, says)),
        element(
            "div",
            _circle(title, ring, seen, out) if seen is not None else None,
            element("div", _descriptors(ring), _bars(out), pairs(told), class_="grow"),
            class_="ring",
        ),
    )


def _in_flight(ring: dict[str, Any], out: list[tuple[int, float]], longest: Any) -> str:
    count = ring.get("in_flight")
    if out:
        return f"{count}, the oldest for {seconds(out[0][1])}"
    if not count or not isinstance(longest, int | float):
        return f"{count}"
    return f"{count}, out for up to {longest * 1e3:.0f} ms (the length of the step)"


def _descriptors(ring: dict[str, Any]) -> Markup | None:
    """How much of the descriptor table, or of the packed ring, is in use."""
    size, free = ring.get("size"), ring.get("free")
    if not isinstance(size, int) or size <= 0 or not isinstance(free, int) or not 0 <= free <= size:
        return None
    busy = size - free
    text = f"{busy} of {size} descriptors in use"
    parts = [element("rect", x="0%", y=1, width="100%", height=12, class_="ground")]
    if busy:
        parts.append(
            element("rect", x="0%", y=1, width=f"{round(100 * busy / size, 2)}%", height=12, class_="box notify")
        )
    return element(
        "div",
        element("p", text, class_="small"),
        element("svg", element("title", text), parts, width="100%", height=14, role="img", aria_label=text),
    )


_BARS_MOST: Final = 8
_SHORTEST, _DECADES = 1e-4, 6
"""The bar of 0.1 ms is empty, and each ten times longer has another sixth, up to 100 s."""


def _bars(out: list[tuple[int, float]]) -> Markup | None:
    """The chains in flight by age, the oldest first: a bar for each, ten times the age a sixth of it longer."""
    if not out:
        return None
    shown = out[:_BARS_MOST]
    title = f"the oldest chains in flight: {', '.join(f'{number} for {seconds(age)}' for number, age in shown)}"
    rows: list[Markup] = []
    for at, (number, age) in enumerate(shown):
        full = min(1.0, max(0.02, math.log10(max(age, _SHORTEST) / _SHORTEST) / _DECADES))
        rows += [
            element("rect", x="0%", y=18 * at + 1, width="100%", height=16, class_="ground"),
            element("rect", x="0%", y=18 * at + 1, width=f"{round(100 * full, 2)}%", height=16, class_="age"),
            element("text", f"chain {number}: {seconds(age)}", x=6, y=18 * at + 13),
        ]
    more = f", and {len(out) - len(shown)} more" if len(out) > len(shown) else ""
    return element(
        "div",
        element("p", f"out for (0.1 ms to 100 s, logarithmic){more}", class_="small"),
        element("svg", element("title", title), rows, width="100%", height=18 * len(shown), role="img",
                aria_label=title),
    )  # fmt: skip


# --- the circle -------------------------------------------------------------------------------------------------

_MIDDLE: Final = 90
_OUTER: Final = 62
_INNER: Final = 44
_MOST_MARKS: Final = 64


def _circle(title: str, ring: dict[str, Any], seen: Indices, out: list[tuple[int, float]]) -> Markup:
    size = int(ring["size"])
    parts = [element("circle", cx=_MIDDLE, cy=_MIDDLE, r=(_OUTER + _INNER) / 2, class_="track")]
    wrong = " wrong" if seen.impossible else ""
    if seen.between:
        parts.append(_arc(seen.used, seen.between, size, f"flight{wrong}"))
    step = max(1, size // _MOST_MARKS)
    for entry in range(0, size, step):
        (x1, y1), (x2, y2) = _point(entry, size, _INNER), _point(entry, size, _OUTER)
        parts.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="tickline"))
    parts += _pointer(seen.avail, size, _OUTER, 18, "A", "avail")
    parts += _pointer(seen.used, size, _INNER, -16, "U", "used")
    parts.append(element("text", str(seen.between), x=_MIDDLE, y=_MIDDLE + 2, text_anchor="middle", class_="big"))
    parts.append(element("text", "in flight", x=_MIDDLE, y=_MIDDLE + 15, text_anchor="middle", class_="tick"))
    if out:
        parts.append(element("text", seconds(out[0][1]), x=_MIDDLE, y=_MIDDLE + 29, text_anchor="middle"))
    text = (
        f"{title}: a ring of {size} entries. The driver is at entry {seen.avail} (A), the device at entry "
        f"{seen.used} (U); {seen.between} between them are in flight"
        f"{f', the oldest for {seconds(out[0][1])}' if out else ''}."
    )
    return element(
        "div",
        element(
            "svg",
            element("title", text),
            parts,
            viewBox=f"0 0 {2 * _MIDDLE} {2 * _MIDDLE}",
            width=180,
            height=180,
            role="img",
            aria_label=text,
        ),
        element("p", "A: driver, outside. U: device, inside.", class_="small"),
        class_="circle",
    )


def _point(entry: float, size: int, radius: float) -> tuple[float, float]:
    """Where an entry is: the first at the top, clockwise."""
    angle = 2 * math.pi * entry / size
    return round(_MIDDLE + radius * math.sin(angle), 2), round(_MIDDLE - radius * math.cos(angle), 2)


def _arc(start: int, count: int, size: int, class_: str) -> Markup:
    if count >= size:
        return element("circle", cx=_MIDDLE, cy=_MIDDLE, r=(_OUTER + _INNER) / 2, class_=class_)
    radius = (_OUTER + _INNER) / 2
    (x1, y1), (x2, y2) = _point(start, size, radius), _point(start + count, size, radius)
    large = int(count * 2 > size)
    return element("path", d=f"M{x1} {y1}A{radius} {radius} 0 {large} 1 {x2} {y2}", class_=class_)


def _pointer(entry: int, size: int, radius: int, out: int, letter: str, class_: str) -> list[Markup]:
    tip = _point(entry, size, radius)
    sign = 1 if out > 0 else -1
    angle = math.degrees(2 * math.pi * entry / size)
    x, y = _point(entry, size, radius + out)
    shape = f"M0 0L5 {-8 * sign}L-5 {-8 * sign}Z"
    return [
        element(
            "path",
            d=shape,
            transform=f"translate({tip[0]} {tip[1]}) rotate({angle:.1f})",
            class_=f"pointer {class_}",
        ),
        element("text", letter, x=x, y=round(y + 4, 2), text_anchor="middle", class_="letter"),
    ]
