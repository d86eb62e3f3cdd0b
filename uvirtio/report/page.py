"""The report of one file: every device in it, drawn, with the documents themselves inside."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any, Final

from uvirtio.report import bars, features, findings, rings, sections, status
from uvirtio.report.documents import DIAG, DUMP, Document, checked, script
from uvirtio.report.markup import Children, Markup, element, join, mark, section

_WORST: Final = ("fail", "warn", "note")


def page(dump: Document | None, diag: Document | None = None) -> str:
    """Return the report.

    Args:
        dump: A document of ``uvirtio dump``; None: there is none.
        diag: A document of ``uvirtio diag --json``; None: there is none. It belongs to the device of its address,
            or to the only device of the dump.

    Returns:
        A whole HTML file, which loads nothing and runs nothing.

    Raises:
        BadDump: ``diag`` is no such document. (``dump`` was checked against its schema by who read it.)
    """
    shown = None if diag is None else checked(diag)
    records: list[dict[str, Any] | None] = list((dump or {}).get("devices") or ())
    owner = _owner(records, shown)
    if shown is not None and owner is None:
        records.append(None)
        owner = len(records) - 1
    parts = [
        _device(record, shown if index == owner else None, dump, index, alone=len(records) == 1)
        for index, record in enumerate(records)
    ]
    names = [_name(record, shown if index == owner else None) for index, record in enumerate(records)]
    title = f"{names[0]} - uvirtio report" if len(names) == 1 else f"{len(names)} devices - uvirtio report"
    index_of = None
    if len(names) > 1:
        links = [element("li", element("a", name, href=f"#device{at}")) for at, name in enumerate(names)]
        index_of = element("nav", element("ul", links), aria_label="Devices")
    where = sections.environment(dump, shown)
    body = join(
        element("h1", "uvirtio report") if len(names) != 1 else None,
        index_of,
        parts or element("p", "There is no virtio device in this document."),
        section("environment", "Environment", where) if where is not None else None,
    )
    scripts = [script(DUMP, dump)] if dump is not None else []
    if diag is not None:
        scripts.append(script(DIAG, diag))
    return shell(title, body, scripts)


def shell(title: str, body: Markup, scripts: list[Markup]) -> str:
    """A whole HTML file around a body.

    Args:
        title: Its title.
        body: What is in ``main``.
        scripts: Elements with documents.
    """
    style = (resources.files("uvirtio.report") / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Nothing is loaded and no script runs, even if a string of a device became markup: only this style is let in.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content="uvirtio"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    carries = " uvirtio inspect -F reads the document in it." if scripts else ""
    foot = element("footer", element("p", _LEGEND + carries), class_="small")
    return (
        "<!doctype html>\n"
        + element("html", head, element("body", _patterns(), element("main", body), foot, *scripts), lang="en")
        + "\n"
    )


_LEGEND: Final = (
    "Sections are those of the virtio standard, version 1.4. Red with hatching and a cross: overlapping, outside, "
    "or failed. This file loads nothing."
)


def _patterns() -> Markup:
    """The hatching that stands for red, for those who do not see red and on paper."""
    line = element("path", d="M-2 2L2 -2M0 8L8 0M6 10L10 6", class_="hatchline")
    pattern = element(
        "pattern",
        element("rect", width=8, height=8, class_="hatchground"),
        line,
        id="hatch",
        width=8,
        height=8,
        patternUnits="userSpaceOnUse",
    )
    return element("svg", element("defs", pattern), width=0, height=0, aria_hidden="true", class_="defs")


def _owner(records: list[dict[str, Any] | None], diag: Document | None) -> int | None:
    """Which device a diagnosis is of."""
    if diag is None:
        return None
    for index, record in enumerate(records):
        if record is not None and record.get("address") == diag.get("address"):
            return index
    return 0 if len(records) == 1 else None


def _name(record: dict[str, Any] | None, diag: Document | None) -> str:
    told = record if record is not None else (diag or {})
    return f"{told.get('type') or 'unknown'} at {told.get('address') or 'no address'}"


def _device(
    record: dict[str, Any] | None, diag: Document | None, dump: Document | None, number: int, *, alone: bool
) -> Markup:
    told: dict[str, Any] = record if record is not None else {"type": (diag or {}).get("type") or "unknown"}
    steps: list[dict[str, Any]] = list((diag or {}).get("steps") or ())
    places = bars.places(told)
    queues = rings.queues_of(record, steps)
    found = findings.of_device(record, diag, places, queues)
    words = features.words(record, steps)
    inner: list[Children] = [_headline(told, diag, found, number)]

    def add(ident: str, title: str, *children: Children) -> None:
        if any(child is not None for child in children):
            inner.append(section(f"{ident}{number}", title, *children))

    add("findings", "Findings", findings.draw(found))
    value = (told.get("status") or {}).get("value")
    if steps:
        add("status", "Path through the states", status.path_of_steps(steps))
    elif value is not None:
        text = f"device_status was {value:#04x}. A dump has no times; uvirtio diag --html has them."
        add("status", "Path through the states", status.path_of_value(value), element("p", text, class_="small"))
    add("bars", "BARs and what lies in them", [bars.draw(place) for place in places] or None)
    if any(word is not None for word in words.values()):
        add("features", "Features", features.draw(str(told.get("type")), words))
    add(
        "queues",
        "Queues",
        element("div", [rings.draw(one) for one in queues], class_="queues") if queues else None,
    )
    add("interrupts", "Interrupts", sections.interrupts(told, queues, diag))
    add("config", "Device configuration", sections.configuration(told))
    add("common", "Common registers", sections.registers(told))
    add("pci", "PCI configuration space", sections.pci_space(told))
    if steps:
        add("steps", "Steps", status.steps_table(steps))
    add("absent", "Not in the dump", sections.absent(told))
    if dump is not None and record is None and not alone:
        inner.insert(1, element("p", "This device is not in the dump.", class_="small"))
    return element("article", inner, id=f"device{number}", aria_labelledby=f"title{number}")


def _headline(told: dict[str, Any], diag: Document | None, found: list[findings.Finding], number: int) -> Markup:
    worst = next((one for one in _WORST if any(item.severity == one for item in found)), "pass")
    verdict = str(diag["verdict"]) if diag is not None else worst
    count = sum(item.severity in ("fail", "warn") for item in found)
    says = f"{count} finding{'s' * (count != 1)}" if count else "nothing wrong is shown"
    cause = ((diag or {}).get("cause") or {}).get("text")
    return element(
        "header",
        element(
            "h1",
            _name({**told, "address": told.get("address") or (diag or {}).get("address")}, diag),
            id=f"title{number}",
        ),
        element("p", mark(verdict), f" {cause or says}", class_="verdict"),
        sections.identity(told),
    )
