"""What a plain run of tools/test leaves out on QEMU's device models, for the sake of its time; ``--all`` has it.

The machines pc and q35 have the same device models, and differ in what is around them: how interrupts come, where
memory lies, what resets a function. What shows one of these runs on both. Any other driver body runs on pc only
where q35 does not have it with the same device and interrupts. tools/test with a PATH or --qemu-version runs
everything, as --all does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

REASON = "left to tools/test --all: the machine q35 has it"

ON_BOTH = (
    "test_any_device_the_interrupt_mode_is_the_one_asked_for",
    "test_any_device_the_rings_are_where_we_put_them",
    "test_any_device_the_device_is_reset_when_it_is_left",
    "test_rng_completions_come_by_interrupt",
    "test_keyboard_events_come_by_interrupt",
    "test_balloon_completions_and_changes_come_by_interrupt",
    "test_mem_answers_come_by_interrupt",
    "test_mem_plug_unplug_and_state",  # at addresses that the machine chooses
)
"""The bodies that show what differs between the machines."""


def left_out(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those of the tests that this run leaves out."""
    if os.environ.get("UVIRTIO_LAB_WHOLE") != "0":
        return []
    names = {(item.path, item.name): item for item in items}
    found = []
    for (path, name), item in names.items():
        body, _, cell = name.partition("[")
        if body not in ON_BOTH and (path, f"{body}[{_on_q35(cell)}") in names:
            found.append(item)
    return found


def _on_q35(cell: str) -> str:
    """The same cell on the other machine; empty if this is none of pc's."""
    before, pc, device = cell.rpartition("pc-")
    there = pc and (not before or before.endswith("-"))
    return f"{before}q35-{device}" if there else ""
