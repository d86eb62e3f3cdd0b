"""JUnit's XML, which every CI system shows; of a diagnosis one test case a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from uvirtio.diag.report import Report, Step

_UNFIT = {number: 0xFFFD for number in (*range(0x20), 0x7F, 0xFFFE, 0xFFFF) if number not in (9, 10, 13)}
"""Characters that XML 1.0 cannot hold; a device's strings may have them."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test case."""

    name: str
    took_s: float
    verdict: Literal["pass", "fail", "skip"]
    text: str = ""
    """What the case puts out, or why it was left out; of a failure what shows it."""
    message: str = ""
    """Of a failure, in one line."""
    kind: str = ""
    """Of a failure: its type."""


def document(suites: Iterable[tuple[str, str, Sequence[Case]]]) -> bytes:
    """Test suites as a document.

    Args:
        suites: The name of each, the class name of its cases, and the cases.

    Returns:
        The document, in UTF-8.
    """
    root = ElementTree.Element("testsuites")
    for name, classname, cases in suites:
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_text(name),
            tests=str(len(cases)),
            failures=str(sum(case.verdict == "fail" for case in cases)),
            skipped=str(sum(case.verdict == "skip" for case in cases)),
            errors="0",
            time=f"{sum(case.took_s for case in cases):.6f}",
        )
        for case in cases:
            element = ElementTree.SubElement(
                suite, "testcase", classname=_text(classname), name=_text(case.name), time=f"{case.took_s:.6f}"
            )
            _result(element, case)
    made: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return made


def _result(element: ElementTree.Element, case: Case) -> None:
    if case.verdict == "fail":
        failure = ElementTree.SubElement(element, "failure", message=_text(case.message), type=case.kind)
        failure.text = _text(case.text)
    elif case.verdict == "skip":
        ElementTree.SubElement(element, "skipped", message=_text(case.text))
    else:
        ElementTree.SubElement(element, "system-out").text = _text(case.text)


def junit_xml(report: Report) -> bytes:
    """The steps of a report as a test suite.

    A step that failed is a failure with its cause; one that was skipped is skipped; what is odd about a step that
    passed is in its output.

    Args:
        report: The finished diagnosis.

    Returns:
        The document, in UTF-8.
    """
    return document([("uvirtio diag", report.address, [_case(step) for step in report.steps])])


def _case(step: Step) -> Case:
    why = step.hint if step.cause is None else step.cause.text
    if step.verdict == "fail":
        lines = (
            () if step.cause is None else (*step.cause.evidence, *(f"try: {one}" for one in step.cause.attempts))
        )
        kind = "fail" if step.cause is None else step.cause.id
        return Case(
            step.name, step.took_s, "fail", "\n".join((step.detail, *lines)), message=why or step.detail, kind=kind
        )
    if step.verdict == "skip":
        return Case(step.name, step.took_s, "skip", step.detail)
    text = f"WARN: {why}\n{step.detail}" if step.verdict == "warn" else step.detail
    return Case(step.name, step.took_s, "pass", text)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").translate(_UNFIT)
