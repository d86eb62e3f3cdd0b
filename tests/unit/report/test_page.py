"""The page of a device: whole, closed, readable without colour, and made of the documents that it carries."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report.reading import Page
from uvirtio import scripted
from uvirtio.errors import BadDump
from uvirtio.report.documents import DIAG, DUMP, checked, embedded
from uvirtio.report.markup import element, printable, text
from uvirtio.report.page import page
from uvirtio.spec import features as f

STYLE = (Path(__file__).parents[3] / "uvirtio/report/style.css").read_text(encoding="utf-8")
HOSTILE = (
    "</script ></style ></title ><!--<script>alert(1)</script><img src=x onerror=alert(2)>\"' &lt;\u202e\x00\n"
)
LIMIT = 400 << 10

Documents = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def whole(told: str) -> Page:
    """The page, whose form is checked."""
    read = Page(told)
    assert told.startswith("<!doctype html>")
    assert len(told.encode()) < LIMIT
    (main,) = read.all("main")
    assert not main.within("main")
    assert read.all("h1")
    names = [one.attributes["id"] for one in read.elements if "id" in one.attributes]
    assert len(names) == len(set(names))
    for one in read.elements:
        assert not [
            name for name in one.attributes if name.startswith("on") or name in ("src", "style", "xlink:href")
        ]
        assert one.name not in ("img", "iframe", "link", "object", "embed", "form", "base")
        assert one.attributes.get("href", "#").startswith("#")
        for name in one.attributes.get("aria-labelledby", "").split():
            assert name in names
        if one.name == "svg" and "aria-hidden" not in one.attributes:
            assert one.attributes["role"] == "img"
            assert one.attributes["aria-label"]
            assert [child.text for child in one.children if child.name == "title"] == [
                one.attributes["aria-label"]
            ]
        if one.name == "table":
            assert one.children[0].name == "caption"
        if one.name == "th":
            assert one.attributes["scope"] in ("col", "row")
            assert one.text.strip()
        if one.name == "script":
            assert one.attributes["type"] == "application/json"
    levels = [int(one.name[1]) for one in read.elements if re.fullmatch("h[1-6]", one.name)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    return read


@pytest.mark.parametrize("model", [scripted.Rng, scripted.Disk, scripted.Balloon, scripted.Input, scripted.Mem])
def test_a_good_device_has_no_finding(documents: Documents, model: type[scripted.Model]) -> None:
    dump, diag = documents(model())
    read = whole(page(dump, diag))
    assert "nothing found" in read.one("findings0").text
    assert not read.classed("fail")
    assert not read.classed("clash")


def test_a_failed_step_is_the_first_finding_with_what_to_try(documents: Documents) -> None:
    dump, diag = documents(silent=True)
    read = whole(page(dump, diag))
    first = read.classed("finding")[0]
    assert diag["cause"]["text"] in first.text
    assert f"Try: {diag['cause']['try'][0]}" in first.text
    assert "fail" in first.text
    headings = [one.text for one in read.all("h2")]
    assert headings[0] == "Findings"
    assert headings[1] == "Path through the states"
    (path,) = read.classed("path")
    nodes = [one.text for one in path.children]
    assert [node.split()[1] for node in nodes[:5]] == [
        "reset",
        "ACKNOWLEDGE",
        "DRIVER",
        "FEATURES_OK",
        "DRIVER_OK",
    ]
    assert "data path failed" in nodes[5]
    assert all(re.search(r"after [\d.]+ (s|ms|µs)", node) for node in nodes)


def test_the_ring_of_a_silent_queue_has_its_buffer_in_flight(documents: Documents) -> None:
    dump, diag = documents(silent=True)
    read = whole(page(dump, diag))
    (queue,) = [one for one in read.all("figure") if "Queue 0" in one.text]
    assert "has not taken the buffers" in queue.text
    assert "1 of 8 descriptors in use" in queue.text
    assert re.search(r"in flight1, the oldest for [\d.]+ (s|ms)", queue.text)
    assert re.search(r"chain 0: [\d.]+ (s|ms)", queue.text) and len(read.classed("age")) == 1
    assert len(read.classed("flight")) == 1
    (label,) = [
        one.attributes["aria-label"] for one in queue.children[1].children[0].children if one.name == "svg"
    ]
    assert "at entry 1 (A)" in label
    assert "at entry 0 (U)" in label


def test_what_is_in_flight_is_drawn_by_its_age_the_oldest_first(documents: Documents) -> None:
    dump, diag = documents(silent=True)
    ring = dump["devices"][0]["queues"][0]["ring"]
    good = [{"chain": 9, "seconds": 0.00001}, {"chain": 4, "seconds": 250}, {"chain": 7, "seconds": 0.1}]
    bad = [{"chain": 1}, {"chain": "2", "seconds": 1}, {"chain": 3, "seconds": -1}, {"seconds": 1}, 5, None]
    ring["ages"] = [*good, *bad, *({"chain": 10 + more, "seconds": 0} for more in range(7))]
    read = whole(page(dump, diag))
    (queue,) = [one for one in read.all("figure") if "Queue 0" in one.text]
    assert re.findall(r"chain (\d+): ([\d.]+) (µs|ms|s)", queue.text)[:3] == [
        ("4", "250.00", "s"), ("7", "100.0", "ms"), ("9", "10", "µs"),
    ]  # fmt: skip
    assert [bar.attributes["width"] for bar in read.classed("age")] == ["100.0%", "50.0%", *["2.0%"] * 6]
    assert "and 2 more" in queue.text and "the oldest for 250.00 s" in queue.text
    # What an older dump does not have is known from the diagnosis: as long as the step, at most.
    del ring["ages"]
    (queue,) = [one for one in whole(page(dump, diag)).all("figure") if "Queue 0" in one.text]
    assert re.search(r"in flight1, out for up to \d+ ms", queue.text)


def test_indices_that_cannot_be_are_a_failure(documents: Documents) -> None:
    dump, _ = documents()
    ring = dump["devices"][0]["queues"][0]["ring"]
    ring["words"].update({"avail.idx": 20, "used.idx": 5})
    read = whole(page(dump))
    assert "further apart than the ring is long" in read.one("findings0").text
    assert "wrong" in read.classed("flight")[0].attributes["class"]


def test_features_offered_wanted_and_accepted_with_their_sections(documents: Documents) -> None:
    dump, diag = documents(scripted.Disk(), features=f.mask(f.VERSION_1, f.Blk.RO, f.Blk.FLUSH, 23))
    read = whole(page(dump, diag))
    rows = {}
    for row in read.all("tr"):
        if row.within("tbody") and row.parent is not None and "features0" in _section(row):
            number, name = row.children[0].text.split(maxsplit=1)
            rows[name] = [cell.text for cell in row.children[1:]]
            assert number.isdecimal()
    assert rows["RO"] == ["5.2.3", "yes", "yes", "yes", "✓ in use"]
    assert rows["VERSION_1"] == ["6", "yes", "yes", "yes", "✓ in use"]
    assert rows["bit 23"] == ["none", "yes", "no", "no", "! unknown bit"]
    assert rows["TOPOLOGY"] == ["5.2.3", "no", "yes", "no", "– not offered"]


def _section(one: Any) -> str:
    while one is not None:
        if one.name == "section":
            return str(one.attributes["id"])
        one = one.parent
    return ""


def test_the_documents_come_back_out_of_the_page(documents: Documents) -> None:
    dump, diag = documents(silent=True)
    told = page(dump, diag)
    assert embedded(told, DUMP) == dump
    assert embedded(told, DIAG) == json.loads(json.dumps(diag))
    assert embedded(told, "other") is None
    assert page(embedded(told, DUMP), embedded(told, DIAG)) == told


def test_only_the_style_of_the_page_is_let_in(documents: Documents) -> None:
    read = whole(page(*documents()))
    (style,) = read.all("style")
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    (policy,) = [one.attributes["content"] for one in read.all("meta") if "http-equiv" in one.attributes]
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{digest}'" in policy
    assert "url(http" not in style.text
    assert "@import" not in style.text


def test_a_page_without_a_device() -> None:
    document = {"schema": "uvirtio-dump/1", "devices": []}
    assert "no virtio device" in whole(page(document)).all("main")[0].text


# --- hostile strings --------------------------------------------------------------------------------------------


def mangled(value: Any, where: tuple[str, ...] = ()) -> Any:
    """The document with the hostile string at the end of every string that a device or a user chooses."""
    if isinstance(value, dict):
        return {key: mangled(one, (*where, key)) for key, one in value.items()}
    if isinstance(value, list):
        return [mangled(one, where) for one in value]
    kept = {"schema", "command", "bus", "kind", "hex", "word", "verdict", "address" if "bars" in where else ""}
    return value + HOSTILE if isinstance(value, str) and where[-1] not in kept else value


@pytest.mark.fault(55, 97)
def test_no_string_of_a_document_becomes_markup(documents: Documents) -> None:
    dump, diag = documents(scripted.Disk(), silent=True)
    plain = Page(page(dump, diag))
    told = page(mangled(dump), mangled(diag))
    read = whole(told)
    assert len(read.all("script")) == 2
    # Browsers know more ways out of a script element than a parser here does; all begin with this character.
    bodies = re.findall(r'<script type="application/json" id="[a-z-]+">(.*?)</script>', told, re.DOTALL)
    assert len(bodies) == 2
    assert not any("<" in body for body in bodies)
    assert len(read.all("style")) == 1
    assert {one.name for one in read.elements} <= {one.name for one in plain.elements}
    assert embedded(told, DUMP) == mangled(dump)
    seen = "".join(one.text for one in read.all("main"))
    assert seen.count("<script>alert(1)</script>") > 40
    assert "\u202e" not in told
    assert "\x00" not in told


@pytest.mark.parametrize("value", ["<b>", "a&b", "\"'", "\x1b[31m", "\u202e", "\ud800"])
def test_text_is_escaped_and_printable(value: str) -> None:
    assert "<b>" not in element("p", value, title=value)
    assert text(value).encode()
    assert printable(value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": {}},
        {"steps": [1]},
        {"steps": [{"name": "reset", "verdict": []}]},
        {"steps": [{"name": "reset", "verdict": "good"}]},
        {"steps": [{"name": "reset", "verdict": "pass", "took_s": "1"}]},
        {"steps": [{"name": "reset", "verdict": "pass", "took_s": float("inf")}]},
        {"steps": [{"name": "reset", "verdict": "pass", "took_s": -1}]},
        {"steps": [{"name": "reset", "verdict": "pass", "cause": "x"}]},
        {"steps": [{"name": "reset", "verdict": "pass", "cause": {"try": "x"}}]},
        {"steps": [{"name": "reset", "verdict": "pass", "data": []}]},
        {"steps": [{"name": "reset", "verdict": "pass", "data": {"queues": [{}]}}]},
        {"steps": [{"name": "reset", "verdict": "pass", "data": {"queues": [{"index": 0, "words": 1}]}}]},
        {"verdict": 7},
        {"error": "x"},
        {"cause": []},
    ],
)
def test_a_diagnosis_that_is_none_is_refused(change: dict[str, Any]) -> None:
    good = {"address": "a", "type": "rng", "verdict": "pass", "steps": []}
    checked(good)
    with pytest.raises(BadDump):
        page(None, {**good, **change})


# --- colours ----------------------------------------------------------------------------------------------------


def _schemes() -> list[dict[str, str]]:
    roots = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", root)) for root in roots]


def _light(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * one for one in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, two: str) -> float:
    lighter, darker = sorted((_light(one), _light(two)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_has_the_contrast_of_wcag_in_both_schemes_and_on_paper() -> None:
    schemes = _schemes()
    assert len(schemes) == 3
    for scheme in schemes:
        for ink in ("ink", "dim", "good", "odd", "bad", "calm"):
            grounds = ["paper", "panel"] + ([f"{ink}-ground"] if ink not in ("ink", "dim") else [])
            for ground in grounds:
                assert _contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)


def test_a_verdict_is_a_sign_and_a_word_besides_its_colour(documents: Documents) -> None:
    read = whole(page(*documents(silent=True)))
    signs = {}
    for one in read.classed("mark"):
        kind = one.attributes["class"].split()[1]
        sign, _, word = one.text.partition(" ")
        assert word
        signs.setdefault(kind, set()).add(sign)
    assert {"pass", "fail", "skip"} <= set(signs)
    assert all(len(one) == 1 for one in signs.values())
    assert len(set.union(*signs.values())) == len(signs)
