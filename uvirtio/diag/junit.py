"""A diagnosis as JUnit's XML, which every CI system shows: one test case a step."""

from __future__ import annotations

from xml.etree import ElementTree

from uvirtio.diag.report import Report, Step

_UNFIT = {number: 0xFFFD for number in (*range(0x20), 0x7F, 0xFFFE, 0xFFFF) if number not in (9, 10, 13)}
"""Characters that XML 1.0 cannot hold; a device's strings may have them."""


def junit_xml(report: Report) -> bytes:
    """The steps of a report as a test suite.

    A step that failed is a failure with its cause; one that was skipped is skipped; what is odd about a step that
    passed is in its output.

    Args:
        report: The finished diagnosis.

    Returns:
        The document, in UTF-8.
    """
    suite = ElementTree.Element(
        "testsuite",
        name="uvirtio diag",
        tests=str(len(report.steps)),
        failures=str(sum(step.verdict == "fail" for step in report.steps)),
        skipped=str(sum(step.verdict == "skip" for step in report.steps)),
        errors="0",
        time=f"{sum(step.took_s for step in report.steps):.6f}",
    )
    for step in report.steps:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_text(report.address), name=step.name, time=f"{step.took_s:.6f}"
        )
        _result(case, step)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document


def _result(case: ElementTree.Element, step: Step) -> None:
    why = step.hint if step.cause is None else step.cause.text
    if step.verdict == "fail":
        lines = (
            () if step.cause is None else (*step.cause.evidence, *(f"try: {one}" for one in step.cause.attempts))
        )
        failure = ElementTree.SubElement(case, "failure", message=_text(why or step.detail), type=_kind(step))
        failure.text = _text("\n".join((step.detail, *lines)))
    elif step.verdict == "skip":
        ElementTree.SubElement(case, "skipped", message=_text(step.detail))
    else:
        text = f"WARN: {why}\n{step.detail}" if step.verdict == "warn" else step.detail
        ElementTree.SubElement(case, "system-out").text = _text(text)


def _kind(step: Step) -> str:
    return "fail" if step.cause is None else step.cause.id


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").translate(_UNFIT)
