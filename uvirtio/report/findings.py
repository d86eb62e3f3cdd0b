"""What is wrong with a device, worst first, each with what to try: the part of a report that is read first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from uvirtio.report import rings
from uvirtio.report.bars import Place
from uvirtio.report.markup import Markup, element, mark
from uvirtio.spec import status as st

_ORDER: Final = {"fail": 0, "warn": 1, "note": 2}
_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or odd."""

    severity: str
    """``fail``, ``warn`` or ``note``."""
    title: str
    where: str = ""
    """The step, or the part of the report that has more."""
    evidence: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()


def of_device(
    record: dict[str, Any] | None,
    diag: dict[str, Any] | None,
    places: list[Place],
    queues: list[dict[str, Any]],
) -> list[Finding]:
    """What the documents of a device show, worst first.

    Args:
        record: The device, as a dump has it; None: there is no dump.
        diag: The diagnosis; None: there is none.
        places: Its BARs.
        queues: Its queues.
    """
    found = [*_of_steps(diag or {}), *_of_places(places), *_of_queues(queues)]
    if record is not None:
        found += _of_record(record, whole=diag is None)
    return sorted(found, key=lambda one: _ORDER[one.severity])[:_MOST]


def _of_steps(diag: dict[str, Any]) -> list[Finding]:
    made = []
    for step in diag.get("steps") or ():
        if step["verdict"] not in ("fail", "warn"):
            continue
        cause = step.get("cause") or {}
        attempts = [str(one) for one in cause.get("try") or ()]
        hint = str(step.get("hint") or "")
        if hint and not attempts and hint != cause.get("text"):
            attempts.append(hint)
        made.append(
            Finding(
                step["verdict"],
                str(cause.get("text") or hint or step.get("detail")),
                f"step {step['name']}, {step.get('spec') or 'no section'}",
                tuple(str(one) for one in cause.get("evidence") or (step.get("detail"),)),
                tuple(attempts),
            )
        )
    error = diag.get("error") or {}
    if error and not any(one.severity == "fail" for one in made):
        made.append(_of_error(error))
    if (bisection := diag.get("bisection")) and bisection.get("text"):
        made.append(Finding("fail", str(bisection["text"]), "bisection of the feature bits"))
    if diag and diag.get("data_path_tried") is False and diag.get("verdict") != "fail":
        made.append(Finding("note", "no buffers were exchanged: the data path was not tried", "step data path"))
    return made


def _of_error(error: dict[str, Any]) -> Finding:
    seen = (f"seen: {error['seen']}",) if error.get("seen") is not None else ()
    remedy = (str(error["remedy"]),) if error.get("remedy") else ()
    return Finding("fail", str(error.get("message")), str(error.get("code")), seen, remedy)


def _of_places(places: list[Place]) -> list[Finding]:
    made = []
    for place in places:
        for box in place.outside():
            limit = "the function has no such BAR" if place.missing else f"the BAR ends at {place.size:#x}"
            made.append(
                Finding(
                    "fail",
                    f"{box.label} lies outside of {place.name}",
                    "4.1.4",
                    (f"it ends at {box.end:#x}; {limit}",),
                    ("offset and length of the capability, or the size of the BAR, are wrong",),
                )
            )
        for one, two in place.overlaps():
            made.append(
                Finding(
                    "fail",
                    f"{one.label} and {two.label} overlap in {place.name}",
                    "4.1.4",
                    (f"{one.start:#x} to {one.end:#x}, and {two.start:#x} to {two.end:#x}",),
                    ("give each structure bytes of its own, best a page",),
                )
            )
        for box in place.boxes:
            if box.verdict == "bad" and box not in place.outside():
                made.append(Finding("fail", f"the capability {box.label} is not usable", "4.1.4", (box.why,)))
    return made


def _of_queues(queues: list[dict[str, Any]]) -> list[Finding]:
    made = []
    for queue in queues:
        seen = rings.indices(queue["ring"]) if queue.get("ring") else None
        if seen is not None and seen.impossible:
            made.append(
                Finding("fail", f"queue {queue['index']}: the indices are further apart than the ring is long")
            )
    return made


def _of_record(record: dict[str, Any], *, whole: bool) -> list[Finding]:
    made = []
    error = record.get("error")
    if error and whole:
        made.append(_of_error(error))
    value = (record.get("status") or {}).get("value", 0)
    for bit in (st.DEVICE_NEEDS_RESET, st.FAILED):
        if whole and value & bit:
            title = f"device_status has {st.describe(bit)} set"
            made.append(Finding("fail", title, "2.1", (f"{value:#04x}: {st.describe(value)}",)))
    for one in record.get("findings") or ():
        severity = "warn" if one.get("severity") == "warn" else "note"
        made.append(
            Finding(
                severity,
                f"rule {one.get('rule')}: {'refuses' if one.get('severity') == 'refuse' else 'warns of'} bind",
                "use of the device",
                (str(one.get("evidence")),),
            )
        )
    made += [Finding("note", str(text), "the dump") for text in record.get("notes") or ()]
    quirks = (record.get("opened") or {}).get("quirks") or ()
    if whole:
        made += [Finding("warn", str(text), "capabilities, 4.1.4") for text in quirks]
    return made


def draw(found: list[Finding]) -> Markup:
    """The findings as a list."""
    if not found:
        return element("p", mark("pass", "nothing found"), " These documents show nothing wrong.")
    return element("ol", [_draw(one) for one in found], class_="findings")


def _draw(one: Finding) -> Markup:
    return element(
        "li",
        element("h3", mark(one.severity), " ", one.title),
        element("p", one.where, class_="small") if one.where else None,
        element("ul", [element("li", element("code", text)) for text in one.evidence if text], class_="seen")
        if any(one.evidence)
        else None,
        [element("p", element("b", "Try: "), text, class_="try") for text in one.attempts],
        class_=f"finding {one.severity}",
    )
