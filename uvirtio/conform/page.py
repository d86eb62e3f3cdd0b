"""A run as one HTML file that loads nothing."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.battery import all_areas
from uvirtio.conform.report import Report
from uvirtio.conform.result import Result
from uvirtio.conform.verdict import Verdict
from uvirtio.report.documents import script
from uvirtio.report.markup import Markup, code, element, join, mark, pairs, seconds, section, table
from uvirtio.report.page import shell

_MARKS: Final = {
    Verdict.PASS: "pass",
    Verdict.REJECT: "pass",
    Verdict.FREE: "note",
    Verdict.FAIL: "fail",
    Verdict.WEDGED: "fail",
    Verdict.GONE: "fail",
    Verdict.KNOWN: "warn",
    Verdict.FIXED: "note",
    Verdict.SKIP: "skip",
    Verdict.ERROR: "fail",
}

_HEAD: Final = ("row", "section", "what the device must do", "verdict", "severity", "took", "what was seen")


def page(report: Report) -> str:
    """The file.

    Args:
        report: The finished run.
    """
    title = f"conform: {report.type} at {report.address}"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
    about = pairs(
        [
            ("device", code(report.address)),
            ("transport", f"{report.transport}, {report.ring} rings"),
            ("implementation", f"{report.implementation} {report.version}".strip() or "not known"),
            ("offered", code(f"{report.offered:#x}")),
            ("results", counts),
            *([("stopped", report.stopped)] if report.stopped is not None else []),
        ]
    )
    parts = [element("h1", title), about]
    if report.bad:
        parts.append(_table("bad", "What is wrong", report.bad))
        parts.append(section("logs", "Logs", *(_log(result) for result in report.bad if result.log)))
    for area in all_areas():
        results = [result for result in report.results if result.row.area == area.name]
        if results:
            parts.append(_table(f"area-{area.name}", area.title, results))
    return shell(title, join(*parts), [script("uvirtio-conform", report.as_document())])


def _table(ident: str, title: str, results: list[Result]) -> Markup:
    return section(ident, title, table(_HEAD, [_row(result) for result in results], caption=title))


def _row(result: Result) -> list[Markup | str]:
    row = result.row
    seen = result.seen if not result.expected else f"{result.seen}; expected: {result.expected}"
    return [
        code(row.id),
        row.section,
        f"{row.keyword}: {row.title}",
        mark(_MARKS[result.verdict], result.verdict.value),
        "" if result.severity is None else result.severity.value,
        seconds(result.took_s),
        seen,
    ]


def _log(result: Result) -> Markup:
    lines = element("pre", "\n".join(result.log))
    return element("details", element("summary", f"{result.row.id}: {len(result.log)} lines"), lines)
