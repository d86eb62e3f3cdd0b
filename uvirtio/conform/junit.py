"""A run as JUnit's XML: a suite for each area, a case for each row."""

from __future__ import annotations

from uvirtio.conform.battery import all_areas
from uvirtio.conform.report import Report
from uvirtio.conform.result import Result
from uvirtio.conform.verdict import BAD, Verdict
from uvirtio.diag.junit import Case, document


def junit_xml(report: Report) -> bytes:
    """The results as test suites; the type of a failure is its severity.

    Args:
        report: The finished run.

    Returns:
        The document, in UTF-8.
    """
    suites = []
    for area in all_areas():
        cases = [_case(result) for result in report.results if result.row.area == area.name]
        if cases:
            suites.append((f"uvirtio conform {area.name}", report.address, cases))
    return document(suites)


def _case(result: Result) -> Case:
    row = result.row
    if result.verdict in BAD:
        text = [f"{row.section} {row.keyword}: {row.title}", f"expected: {result.expected}", *result.log]
        kind = result.verdict.value if result.severity is None else result.severity.value
        message = f"{result.verdict.value}: {result.seen}"
        return Case(row.id, result.took_s, "fail", "\n".join(text), message=message, kind=kind)
    if result.verdict in (Verdict.SKIP, Verdict.KNOWN):
        return Case(row.id, result.took_s, "skip", f"{result.verdict.value}: {result.seen}")
    return Case(row.id, result.took_s, "pass", f"{result.verdict.value}: {result.seen}".rstrip(": "))
