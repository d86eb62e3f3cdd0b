"""uvirtio diff: what both sides know is compared, and the rest is said to be missing."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from uvirtio.cli import main
from uvirtio.evidence import files
from uvirtio.evidence.difference import Difference, compare

FILES = Path(__file__).parent / "files"
EVERY = sorted(FILES.iterdir())


def one(name: str, device: str = "") -> dict[str, Any]:
    return files.load(str(FILES / name)).device(device)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
def test_a_device_is_the_same_as_itself(path: Path) -> None:
    for device in files.load(str(path)).devices:
        found = compare(device, deepcopy(device))
        assert found.same and found.compared and not found.only_first and not found.only_second


def test_text_and_bytes_of_one_device_do_not_differ() -> None:
    found = compare(one("one-bar-vvv.txt"), one("one-bar-vvv-xxx.txt"))
    assert found.same, found.changes
    assert set(found.only_second) == {"config_space", "interrupts"} and not found.only_first
    assert "capabilities" in found.compared


def test_a_short_and_a_whole_configuration_space_agree_where_both_have_bytes() -> None:
    found = compare(one("config-64"), one("config-256"))
    assert found.same and {"capabilities", "msix", "pci_capabilities"} <= set(found.only_second)


def changed(section: str, path: list[Any], value: Any, name: str = "recording.umockdev") -> Difference:
    """A device compared with itself after one value was replaced."""
    first = one(name, "net")
    second = deepcopy(first)
    place = second[section]
    for part in path[:-1]:
        place = place[part]
    if path:
        place[path[-1]] = value
    else:
        second[section] = value
    return compare(first, second)


@pytest.mark.parametrize(
    ("section", "path", "value", "what", "about"),
    [
        ("driver", [], "vfio-pci", "driver", ""),
        ("status", ["value"], 0x4F, "device_status", "DEVICE_NEEDS_RESET"),
        ("msix", ["enabled"], False, "enabled", ""),
        ("bars", [0, "address"], "0xfebd2000", "[1].address", ""),
        ("capabilities", [0, "offset"], 0x4000, "[0x40].offset", ""),
        ("pci_capabilities", [0, "id"], 5, "[0x40].id", ""),
        ("pci_id", [], "1af4:1042", "pci_id", ""),
    ],
)
def test_a_value_that_is_different(section: str, path: list[Any], value: Any, what: str, about: str) -> None:
    found = changed(section, path, value)
    (change,) = found.changes
    assert (change.section, change.what, change.second) == (section, what, value)
    assert about in change.about


def test_a_bus_master_that_was_turned_off() -> None:
    first = one("config-256")
    second = deepcopy(first)
    data = bytearray.fromhex(first["config_space"]["hex"])
    data[4] &= ~4
    second["config_space"]["hex"] = data.hex()
    (change,) = compare(first, second).changes
    assert (change.what, change.first, change.second) == ("command", "0x0007", "0x0003")
    assert change.about == "bus master on -> off"


def test_hidden_bytes_are_not_compared() -> None:
    first = one("config-256")
    second = deepcopy(first)
    data = bytearray.fromhex(first["config_space"]["hex"])
    data[0x94] ^= 0xFF
    second["config_space"]["hex"] = data.hex()
    assert [change.what for change in compare(first, second).changes] == ["0x94"]
    second["config_space"]["hidden"] = [{"offset": 0x94, "length": 4}]
    assert compare(first, second).same


def test_bits_that_came_and_went() -> None:
    found = changed("features", ["negotiated"], {"word": "0x100000041", "names": ["CSUM", "GSO", "VERSION_1"]})
    (change,) = found.changes
    assert change.what == "negotiated"
    assert change.about == "-EVENT_IDX -INDIRECT_DESC -MAC +GSO"


def test_masked_fields_are_not_compared() -> None:
    first = one("config-256")
    first["device_config"] = {"length": 12, "hex": "00" * 12, "fields": {"mac": "masked", "mtu": 1500}}
    second = deepcopy(first)
    second["device_config"]["fields"] = {"mac": "525400123456", "mtu": 9000}
    assert [change.what for change in compare(first, second).changes] == ["mtu"]


@pytest.mark.parametrize("section", ["address", "iommu_group", "numa_node", "virtio_name"])
def test_where_a_device_is_makes_no_difference(section: str) -> None:
    assert changed(section, [], 7).same


def test_a_structure_that_one_side_lacks() -> None:
    found = changed("capabilities", [], one("recording.umockdev", "net")["capabilities"][1:])
    (change,) = found.changes
    assert change.second is None and change.about == "only on one side"


# --- the command ---


def say(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> str:
    assert main(["diff", *argv]) == code
    return capsys.readouterr().out


def test_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = str(tmp_path / "before.json"), str(tmp_path / "after.json")
    assert main(["dump", "scripted:blk", "-o", before]) == 0
    assert main(["dump", "scripted:blk", "--live", "-o", after]) == 0
    capsys.readouterr()
    out = say(capsys, before, after, code=1)
    assert "status device_status: 0 -> 15  (0 (reset) -> ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK)" in out
    assert "not in A, so not compared: books" in out
    made = json.loads(say(capsys, before, after, "--json", code=1))
    assert made["command"] == "diff" and made["same"] is False
    assert {change["section"] for change in made["changes"]} >= {"status", "common", "queues"}
    assert made["only_second"] == ["books"] and made["environment"] == []
    assert "the same in all that both have" in say(capsys, before, before, code=0)


def test_a_device_and_its_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(tmp_path / "blk.json")
    assert main(["dump", "scripted:blk", "-o", made]) == 0
    capsys.readouterr()
    assert "the same" in say(capsys, "scripted:blk", made, code=0)
    assert "offered" in say(capsys, "scripted:rng", made, code=1)


def test_devices_in_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(FILES / "several-xxx.txt")
    out = say(capsys, "net", "rng", "-F", path, code=1)
    assert "type: net -> rng" in out
    assert say(capsys, f"{path}#00:02.0", f"{path}#00:02.0", code=0).endswith("the same in all that both have\n")


@pytest.mark.parametrize(
    ("argv", "code"),
    [(("nothing.json", "scripted:rng"), 2), (("scripted:rng", "0000:7f:1f.7"), 5), (("a", "b", "-F", "none"), 1)],
)
def test_sides_that_are_not_there(argv: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *argv]) == code
    assert "uvirtio: UV-" in capsys.readouterr().err
