"""What examples/fleet came to on three lab VMs: tools/test --all starts them, and these look at the results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report.reading import Page
from tests.unit.report.test_browser import CHROMIUM, looked_at
from tests.unit.report.test_page import whole

RESULTS = os.environ.get("UVIRTIO_FLEET", "")
MACHINES = ("east", "south", "west")

pytestmark = pytest.mark.skipif(not RESULTS, reason="tools/test --all starts the machines of this")


def documents(machine: str) -> list[dict[str, Any]]:
    """The documents of a machine, each with the device that it is about."""
    text = Path(RESULTS, f"{machine}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def commands(machine: str) -> dict[str, list[str]]:
    """By device: the commands that were run on it, by the order in which the playbook has them."""
    found: dict[str, list[str]] = {}
    for one in documents(machine):
        assert one["machine"] == machine
        found.setdefault(one.get("device") or "", []).append(one["document"]["command"])
    return found


def of(machine: str, device: str, command: str) -> dict[str, Any]:
    (found,) = (
        one["document"]
        for one in documents(machine)
        if one.get("device", "") == device and one["document"]["command"] == command
    )
    return found  # type: ignore[no-any-return]


def by_type(machine: str) -> dict[str, str]:
    """The devices of a machine by their type, as plan tells it."""
    made = {}
    for device in commands(machine):
        if device:
            made[of(machine, device, "plan")["device"]["type"]] = device
    return made


@pytest.fixture
def page() -> Page:
    return whole(Path(RESULTS, "fleet.html").read_text(encoding="utf-8"))


def test_each_machine_was_reached_and_asked() -> None:
    for machine in MACHINES:
        assert commands(machine)[""] == ["doctor"]
        assert set(by_type(machine)) == {"rng", "blk", "net"}


def test_a_device_is_taken_diagnosed_and_given_back() -> None:
    for machine, kind in (("east", "rng"), ("east", "blk"), ("south", "rng")):
        device = by_type(machine)[kind]
        assert commands(machine)[device] == ["plan", "bind", "diag", "restore"]
        (bound,) = of(machine, device, "bind")["devices"]
        assert bound["driver"] == "vfio-pci"
        diagnosis = of(machine, device, "diag")
        assert (diagnosis["verdict"], diagnosis["type"], diagnosis["data_path_tried"]) == ("pass", kind, True)
        (restored,) = of(machine, device, "restore")["devices"]
        assert restored["action"] == "restored"


def refusal(machine: str, kind: str) -> tuple[str, str]:
    """The code by which plan refuses a device that nothing else was done to, and what it saw."""
    device = by_type(machine)[kind]
    assert commands(machine)[device] == ["plan"]
    error = of(machine, device, "plan")["error"]
    return error["code"], error["seen"]


def test_what_is_in_use_is_left_alone() -> None:
    assert refusal("south", "blk") == ("UV-REFUSED-IN-USE", "mounted: /dev/vda is swap")
    for machine in MACHINES:  # the interface that the playbook came through
        code, seen = refusal(machine, "net")
        assert code == "UV-REFUSED-IN-USE" and "carries this SSH session, from 10.0.2.2" in seen


def test_where_there_is_no_iommu_nothing_is_taken() -> None:
    verdicts = {
        machine: {one["name"]: one["verdict"] for one in of(machine, "", "doctor")["checks"]}["iommu"]
        for machine in MACHINES
    }
    assert verdicts == {"east": "pass", "south": "pass", "west": "warn"}
    assert {refusal("west", kind)[0] for kind in ("rng", "blk")} == {"UV-ENV-IOMMU"}


def test_the_page_begins_with_what_differs(page: Page) -> None:
    differences = page.one("differences").text
    assert "blk, plan" in differences and "doctor" in differences
    (matrix,) = page.classed("matrix")
    rows = [row for row in page.all("tr") if row.within("tbody") and row.parent.parent is matrix]  # type: ignore[union-attr]
    machines = [row.children[0].text for row in rows]
    assert sorted(machines) == sorted(MACHINES * 3)
    assert machines[0] != "east"  # the good one is not what is looked for
    odd = {id(one.parent) for one in page.classed("differs")}
    marked = [row.children[0].text for row in rows if any(id(cell) in odd for cell in row.children)]
    assert machines[: len(marked)] == marked and set(marked) == {"south", "west"}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    looked_at(Path(RESULTS, "fleet.html").read_text(encoding="utf-8"), tmp_path)
