"""Many machines on one page: the matrix, what differs first, and files that are something else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.report.reading import Page
from tests.unit.report.test_page import HOSTILE, whole
from uvirtio import scripted
from uvirtio.errors import BadDump
from uvirtio.report.documents import DIAG, script
from uvirtio.report.fleet import differences, fleet
from uvirtio.report.runs import machine_names, machine_runs

Documents = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def wrapped(machine: str, device: str, document: dict[str, Any]) -> str:
    return json.dumps({"machine": machine, "device": device, "document": document}) + "\n"


def doctor(**verdicts: str) -> dict[str, Any]:
    checks = [
        {"name": name, "verdict": one, "detail": f"{name} is so", "remedy": ""} for name, one in verdicts.items()
    ]
    return {"schema": "uvirtio/1", "command": "doctor", "checks": checks}


@pytest.fixture
def files(documents: Documents) -> list[tuple[str, str]]:
    """Three machines with an rng and a disk each; one rng is silent, one disk refuses a feature."""
    made = []
    for name in ("east", "south", "west"):
        odd = name == "west"
        _, rng = documents(silent=odd)
        _, disk = documents(scripted.Disk(), **({"refuse_with": 1 << 29} if odd else {}))
        bound = {
            "schema": "uvirtio/1",
            "command": "bind",
            "devices": [{"address": "0000:00:04.0", "driver": "vfio-pci"}],
        }
        text = json.dumps(doctor(iommu="pass", python="warn" if odd else "pass")) + "\n"
        text += json.dumps(bound, indent=1)  # not one line: any sequence of documents is read
        text += wrapped(name, "0000:00:04.0", rng) + wrapped(name, "0000:00:05.0", disk)
        made.append((f"out/{name}.json", text))
    return made


def test_what_differs_comes_first(files: list[tuple[str, str]]) -> None:
    runs = machine_runs(files)
    assert [(run.machine, run.device, run.type) for run in runs[:2]] == [
        ("east", "0000:00:04.0", "rng"),
        ("east", "0000:00:05.0", "blk"),
    ]
    found = [(one.type, one.column, [len(where) for _, where in one.groups]) for one in differences(runs)]
    assert ("rng", "data path", [2, 1]) in found
    assert ("blk", "features_ok", [2, 1]) in found
    assert ("", "doctor", [2, 1]) in found
    # Steps that were skipped because an earlier one failed are no difference of their own.
    assert {column for _, column, _ in found} == {"data path", "features_ok", "doctor"}
    read = whole(fleet(runs))
    headings = [one.text for one in read.all("h2")]
    assert headings == ["Differences", "Machines, devices and steps", "Failures and warnings"]
    (matrix,) = read.classed("matrix")
    rows = [row for row in read.all("tr") if row.within("tbody") and row.parent.parent is matrix]  # type: ignore[union-attr]
    assert [row.children[0].text for row in rows] == ["west", "west", "east", "east", "south", "south"]
    marks = [one.text for one in read.classed("differs")]
    assert len(marks) == 4  # the doctor of west stands in both of its rows
    assert all("≠ differs" in one for one in marks)
    heads = [one.text for one in matrix.children[1].children[0].children]
    assert heads[:6] == ["Machine", "Device", "Type", "doctor", "bind", "discover"]


def test_the_order_of_the_files_does_not_matter(files: list[tuple[str, str]]) -> None:
    first = fleet(machine_runs(files))
    random.Random(1).shuffle(files)
    assert sorted(Page(fleet(machine_runs(files))).all("main")[0].text) == sorted(Page(first).all("main")[0].text)


def test_alike_machines_have_no_difference(files: list[tuple[str, str]]) -> None:
    read = whole(fleet(machine_runs(files[:2])))
    assert "behave alike" in read.one("differences").text
    assert not read.classed("differs")


def test_devices_that_pass_and_settled_for_something_else_differ(documents: Documents) -> None:
    texts = []
    for name, bits in (("a", 0x130000000), ("b", 0x130000000), ("c", 0x110000000)):
        texts.append((f"{name}.json", json.dumps({**documents(features=bits)[1], "address": "0000:00:04.0"})))
    (found,) = differences(machine_runs(texts))
    assert (found.type, found.column) == ("rng", "features")
    assert [run.machine for run in found.groups[1][1]] == ["c"]


def test_an_error_of_bind_is_a_failure_with_its_remedy() -> None:
    error = {"code": "UV-REFUSED-IN-USE", "message": "it is mounted", "remedy": "unmount it"}
    text = wrapped("a", "0000:00:04.0", {"schema": "uvirtio/1", "command": "bind", "error": error})
    (run,) = machine_runs([("a.json", text)])
    assert (run.machine, run.device, run.results["bind"].verdict) == ("a", "0000:00:04.0", "fail")
    read = whole(fleet([run]))
    assert "Try: unmount it" in read.one("failures").text


def test_no_string_becomes_markup(files: list[tuple[str, str]]) -> None:
    name, text = files[2]
    bad = HOSTILE.replace("\x00", "")
    hostile = [
        (name, text.replace("0000:00:0", json.dumps(bad)[1:-1]).replace("the device", json.dumps(bad)[1:-1]))
    ]
    read = whole(fleet(machine_runs(hostile)))
    assert not read.all("script")
    assert not read.all("img")
    assert "<script>alert(1)</script>" in read.all("main")[0].text


def test_a_report_can_be_merged(documents: Documents) -> None:
    _, diag = documents(silent=True)
    (run,) = machine_runs([("lab.html", f"<!doctype html>{script(DIAG, diag)}")])
    assert (run.machine, run.type, run.results["data path"].verdict) == ("lab", "rng", "fail")


def test_names_of_machines() -> None:
    assert machine_names(["out/a.json", "b.json"]) == ["a", "b"]
    assert machine_names(["a/diag.json", "b/diag.json"]) == ["a/diag", "b/diag"]
    assert machine_names(["x/a/diag.json", "y/a/diag.json"]) == ["x/a/diag.json", "y/a/diag.json"]


DIAG_OF = '{"schema": "uvirtio/1", "command": "diag", '


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", (1, 1)),
        ("  \n ", (1, 1)),
        ("[]", (1, 1)),
        ("\n  {}", (2, 3)),
        ("nothing", (1, 1)),
        ('{"schema": "uvirtio/1", "command": "list"}', (1, 1)),
        ('{"schema": "uvirtio/2", "command": "diag"}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "diag"} {', (1, 45)),
        ('{"machine": "a", "document": 1}', (1, 1)),
        (DIAG_OF + '"steps": 1}', (1, 1)),
        (DIAG_OF + '"steps": [{"verdict": {}}]}', (1, 1)),
        (DIAG_OF + '"cause": 1}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "doctor", "checks": [1]}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "doctor", "checks": 7}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "doctor", "checks": [{"name": "x"}]}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "bind", "devices": 1}', (1, 1)),
        ('{"schema": "uvirtio/1", "command": "plan", "problems": 1}', (1, 1)),
        ("<html></html>", (1, 1)),
        ('<script type="application/json" id="uvirtio-diag">[</script>', (1, 1)),
        ("[" * 100_000, (1, 1)),
        ("9" * 5000, (1, 1)),
    ],
)
def test_a_file_of_something_else(text: str, place: tuple[int, int]) -> None:
    with pytest.raises(BadDump) as caught:
        machine_runs([("good.json", json.dumps(doctor(python="pass"))), ("x.json", text)])
    assert caught.value.message.startswith(f"x.json:{place[0]}:{place[1]}: ")
    assert (caught.value.line, caught.value.column) == place
