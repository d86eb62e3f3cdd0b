"""The path through the states of device_status (2.1, 3.1.1), with times, and every step of a diagnosis."""

from __future__ import annotations

from typing import Any, Final

from uvirtio.report.markup import Markup, code, element, join, mark, seconds, table
from uvirtio.spec import status as st

Step = dict[str, Any]

_STATES: Final = (
    ("reset", "reset", 0),
    ("acknowledge", "ACKNOWLEDGE", st.ACKNOWLEDGE),
    ("driver", "DRIVER", st.DRIVER),
    ("features_ok", "FEATURES_OK", st.FEATURES_OK),
    ("driver_ok", "DRIVER_OK", st.DRIVER_OK),
)
"""Step of the diagnosis, state, and the bit that is added there."""


def path_of_steps(steps: list[Step]) -> Markup:
    """The states that a diagnosis went through, the time of each since the start, and where it ended.

    Args:
        steps: The steps, in their order.
    """
    by_state = {step: name for step, name, _ in _STATES}
    nodes: list[Markup] = []
    between: list[str] = []
    clock = 0.0
    for step in steps:
        clock += float(step.get("took_s") or 0.0)
        name, verdict = str(step["name"]), str(step["verdict"])
        last = name == "reset again"
        if name in by_state or last:
            label = "reset" if last else by_state[name]
            value = (step.get("data") or {}).get("status")
            if value is None and last and verdict == "pass":
                value = 0
            nodes.append(_node(label, verdict, value, clock, between))
            between = []
        elif verdict == "fail":
            nodes.append(_node(f"{name} failed", verdict, None, clock, between))
            between = []
        elif verdict != "skip":
            between.append(name)
    return element("ol", nodes, class_="path")


def path_of_value(value: int) -> Markup:
    """The states up to a value of device_status, which tells no times.

    Args:
        value: The byte.
    """
    nodes = [_node("reset", "pass", None, None, [])]
    for _, name, bit in _STATES[1:]:
        nodes.append(_node(name, "pass" if value & bit else "skip", None, None, []))
    if value & st.SUSPEND:
        nodes.append(_node("SUSPEND", "warn", None, None, []))
    if value & st.DEVICE_NEEDS_RESET:
        nodes.append(_node("DEVICE_NEEDS_RESET", "fail", None, None, []))
    if value & st.FAILED:
        nodes.append(_node("FAILED", "fail", None, None, []))
    return element("ol", nodes, class_="path")


def _node(label: str, verdict: str, value: Any, clock: float | None, between: list[str]) -> Markup:
    lines = [element("span", mark(verdict, label), class_="state")]
    if isinstance(value, int) and not isinstance(value, bool):
        lines.append(element("span", code(f"{value:#04x}"), class_="small"))
    if clock is not None and verdict != "skip":
        lines.append(element("span", f"after {seconds(clock)}", class_="small"))
    if verdict == "skip":
        lines.append(element("span", "not reached", class_="small"))
    if between:
        lines.append(element("span", f"before it: {', '.join(between)}", class_="small"))
    return element("li", [join(line, " ") for line in lines], class_=f"node {verdict}")


def steps_table(steps: list[Step]) -> Markup:
    """Every step with its verdict, section, time, and what was read or went wrong."""
    longest = max((float(step.get("took_s") or 0.0) for step in steps), default=0.0) or 1.0
    rows = []
    for number, step in enumerate(steps, 1):
        took = float(step.get("took_s") or 0.0)
        said = [element("span", step.get("detail") or "")]
        if step.get("hint") and step["verdict"] != "skip" and not step.get("cause"):
            said.append(element("p", element("b", "try: "), step["hint"]))
        rows.append(
            (
                f"{number} {step['name']}",
                mark(str(step["verdict"])),
                step.get("spec") or "",
                [
                    element("span", "-" if step["verdict"] == "skip" else seconds(took), class_="number"),
                    _length(took / longest),
                ],
                said,
            )
        )
    return table(
        ("Step", "Verdict", "Section", "Time", "What was read"),
        rows,
        caption="The steps of the diagnosis",
        class_="steps",
    )


def _length(part: float) -> Markup:
    """A time beside the longest, as a bar; the number before it says the same."""
    return element(
        "svg",
        element("rect", x=0, y=0, width=f"{round(100 * part, 2)}%", height=5, class_="box common"),
        width="100%",
        height=5,
        aria_hidden="true",
        class_="time",
    )
