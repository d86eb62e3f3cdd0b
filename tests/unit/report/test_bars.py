"""BARs to scale: what overlaps, what lies outside, and how large it is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.report.reading import Page
from uvirtio.report import bars
from uvirtio.report.findings import of_device


def record(*caps: tuple[str, int, int], size: int | None = 0x4000, **more: Any) -> dict[str, Any]:
    """A function with one BAR and capabilities in it: type, offset, length."""
    types = {"common": 1, "notify": 2, "isr": 3, "device": 4, "pci_cfg": 5}
    return {
        "bus": "pci",
        "bars": [{"bar": 4, "kind": "memory", "address": "0xfe000000", "size": size, "bits": 64}],
        "capabilities": [
            {
                "type": name,
                "cfg_type": types.get(name, 9),
                "bar": 4,
                "offset": offset,
                "length": length,
                "config_offset": 0x40 + 16 * index,
                "verdict": "ok" if name in types else "ignored",
                "why": "",
            }
            for index, (name, offset, length) in enumerate(caps)
        ],
        **more,
    }


def drawn(told: dict[str, Any]) -> tuple[bars.Place, Page]:
    (place,) = bars.places(told)
    return place, Page(bars.draw(place))


def test_boxes_are_to_scale() -> None:
    _, read = drawn(record(("common", 0, 0x1000), ("notify", 0x3000, 0x1000)))
    for class_, x, width in (("common", "0.0%", "25.0%"), ("notify", "75.0%", "25.0%")):
        boxes = [one for one in read.classed(class_) if one.name == "rect"]
        assert len(boxes) == 2  # in the strip, and in the line of its own
        assert {(one.attributes["x"], one.attributes["width"]) for one in boxes} == {(x, width)}
    assert not read.classed("clash")
    assert not read.classed("lens")
    assert "Nothing overlaps, nothing lies outside." in read.all("figcaption")[0].text


def test_a_large_bar_has_its_used_part_drawn_larger() -> None:
    _, read = drawn(record(("common", 0, 0x1000), ("notify", 0x3000, 0x1000), size=1 << 40))
    assert read.classed("lens")
    widths = [one.attributes["width"] for one in read.classed("common")]
    assert widths == ["0.0%", "25.0%"]


def test_an_overlap_is_red_hatched_and_said() -> None:
    place, read = drawn(record(("common", 0, 0x1000), ("isr", 0x800, 0x1000)))
    assert [(one.label, two.label) for one, two in place.overlaps()] == [("common", "isr")]
    (clash,) = read.classed("clash")
    assert (clash.attributes["x"], clash.attributes["width"]) == ("12.5%", "12.5%")
    assert "common and isr overlap" in read.all("figcaption")[0].text
    assert [one.text for one in read.classed("wrong")] == ["✗ 1 common", "✗ 2 isr"]
    assert "common and isr overlap in BAR 4" in [one.title for one in of_device(record(), None, [place], [])]


def test_structures_that_touch_do_not_overlap() -> None:
    place, read = drawn(record(("common", 0, 0x1000), ("isr", 0x1000, 1), ("device", 0x1001, 7)))
    assert not place.overlaps()
    assert not read.classed("wrong")


def test_what_lies_outside_is_red_and_said() -> None:
    place, read = drawn(record(("common", 0, 0x1000), ("notify", 0x3000, 0x2000)))
    assert [box.label for box in place.outside()] == ["notify"]
    assert read.classed("void")
    assert len(read.classed("clash")) == 2
    assert [one.text for one in read.classed("wrong")] == ["✗ 2 notify"]
    (row,) = [one for one in read.all("tr") if "2 notify" in one.text]
    assert "outside the BAR" in row.text
    (found,) = of_device(record(), None, [place], [])
    assert (found.severity, found.evidence) == ("fail", ("it ends at 0x5000; the BAR ends at 0x4000",))


def test_a_bar_that_is_not_there() -> None:
    told = record(("common", 0, 0x1000))
    told["bars"] = []
    place, read = drawn(told)
    assert place.missing
    assert "no such BAR" in read.all("figcaption")[0].text
    assert of_device(told, None, [place], [])[0].evidence == ("it ends at 0x1000; the function has no such BAR",)


def test_a_size_that_is_not_known_is_not_guessed() -> None:
    place, read = drawn(record(("common", 0, 0x1000), ("notify", 0x3000, 0x2000), size=None))
    assert place.outside() == []
    assert "size not in this dump" in read.all("figcaption")[0].text


def test_what_a_driver_ignores_takes_no_part() -> None:
    place, read = drawn(record(("common", 0, 0x1000), ("vendor", 0, 0x1000), ("pci_cfg", 0, 4)))
    assert [box.label for box in place.boxes] == ["common", "vendor"]
    assert not place.overlaps()
    assert read.classed("ignored")


def test_the_tables_of_msix() -> None:
    space = bytearray(256)
    space[0xB8 : 0xB8 + 4] = (0x3000 | 4).to_bytes(4, "little")
    msix = {"vectors": 3, "enabled": True, "bar": 4, "offset": 0x2000, "config_offset": 0xB0}
    told = record(("common", 0, 0x1000), msix=msix, config_space={"hex": bytes(space).hex(), "length": 256})
    (place,) = bars.places(told)
    assert [(box.label, box.start, box.length) for box in place.boxes] == [
        ("common", 0, 0x1000),
        ("MSI-X table", 0x2000, 48),
        ("MSI-X pending bits", 0x3000, 8),
    ]


def test_the_registers_of_a_legacy_function() -> None:
    told = {
        "bus": "pci",
        "interface": "legacy",
        "bars": [{"bar": 0, "kind": "io", "address": "0xc000", "size": 32}],
    }
    (place,) = bars.places(told)
    assert [(box.label, box.end) for box in place.boxes] == [("legacy registers", 20)]
    assert "I/O ports" in bars.draw(place)


def test_a_window_of_virtio_mmio() -> None:
    told = {"bus": "platform", "window": {"base": "0xfeb00000", "length": 0x200}}
    (place,) = bars.places(told)
    assert [(box.label, box.start, box.end) for box in place.boxes] == [
        ("registers", 0, 0x100),
        ("device configuration", 0x100, 0x200),
    ]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (10**4000, 10**4000), (0, 10**4000), (2**64 - 1, 1), (0x4000, 0)]
)
def test_any_number_can_be_drawn(offset: int, length: int) -> None:
    _, read = drawn(record(("common", offset, length), ("isr", 1, 1)))
    for one in read.all("rect"):
        assert 0 <= float(one.attributes["x"].rstrip("%")) <= 100
        assert 0 <= float(one.attributes["width"].rstrip("%")) <= 100


def test_a_list_without_end_is_cut() -> None:
    _, read = drawn(record(*[("common", at, 16) for at in range(1000)]))
    assert len(read.all("tr")) < 100
