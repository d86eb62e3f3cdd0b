"""The feature bits of a device: offered, wanted by the driver, accepted (2.2)."""

from __future__ import annotations

from typing import Any

from uvirtio.report.markup import Markup, code, element, join, mark, table
from uvirtio.spec import features as f
from uvirtio.spec import field_bits


def words(record: dict[str, Any] | None, steps: list[dict[str, Any]]) -> dict[str, int | None]:
    """The words ``offered``, ``wanted`` and ``accepted``, each None where no document has it.

    Args:
        record: The device, as a dump has it; None: there is no dump.
        steps: The steps of a diagnosis.
    """
    data: dict[str, Any] = next((step.get("data") or {} for step in steps if step.get("name") == "features"), {})
    told = (record or {}).get("features") or {}
    return {
        "offered": _word(data.get("offered"), told.get("offered")),
        "wanted": _word(data.get("wanted"), None),
        "accepted": _word(data.get("accepted"), told.get("negotiated")),
    }


def _word(number: Any, told: Any) -> int | None:
    if isinstance(number, int) and 0 <= number <= f.ALL:
        return number
    if isinstance(told, dict) and isinstance(told.get("word"), str):
        return int(told["word"], 16) & f.ALL
    return None


def draw(type_name: str, found: dict[str, int | None]) -> Markup:
    """The table of all bits that are set in any of the words.

    Args:
        type_name: The device type.
        found: As ``words`` returns it.
    """
    every = 0
    for word in found.values():
        every |= word or 0
    rows = []
    for bit in f.names(type_name, every):
        met = None if bit.known else field_bits.lookup(type_name, bit.bit)
        name = bit.name if bit.known or met is None else f"{met.name} (not in the standard)"
        rows.append(
            (
                [code(bit.bit), f" {name}"],
                bit.section or "none",
                *(_cell(word, bit.bit) for word in found.values()),
                _judged(found, bit),
            )
        )
    told = ", ".join(f"{name} {'not known' if word is None else hex(word)}" for name, word in found.items())
    return join(
        element("p", told, class_="small"),
        table(
            ("Bit", "Section", "Offered", "Wanted", "Accepted", "Result"),
            rows,
            caption="Feature bits: what the device offers, what the driver can use, what was accepted",
        ),
    )


def _cell(word: int | None, number: int) -> Markup:
    if word is None:
        return element("span", "?", class_="small")
    return element("b", "yes") if f.has(word, number) else element("span", "no", class_="small")


def _judged(found: dict[str, int | None], bit: f.FeatureBit) -> Markup:
    offered, wanted, accepted = found["offered"], found["wanted"], found["accepted"]
    in_offer = offered is not None and f.has(offered, bit.bit)
    if in_offer and not bit.known:
        return mark("warn", "unknown bit")
    if accepted is not None and f.has(accepted, bit.bit):
        return (
            mark("warn", "accepted, not offered")
            if offered is not None and not in_offer
            else mark("pass", "in use")
        )
    if accepted is None:
        return mark("note", "not negotiated")
    if wanted is not None and f.has(wanted, bit.bit):
        return mark("skip", "not offered") if not in_offer else mark("warn", "left out")
    return mark("skip", "declined")
