"""Every public form of dump gives the right picture; what is not in it is said, not guessed."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.errors import BadDump, NoSuchDevice, OperationFailed, UsageError
from uvirtio.evidence import files, record
from uvirtio.evidence.checker import schema

FILES = Path(__file__).parent / "files"
EVERY = sorted(FILES.iterdir())


def one(name: str, device: str = "") -> dict[str, Any]:
    return files.load(str(FILES / name)).device(device)


def absent(device: dict[str, Any]) -> dict[str, str]:
    return {entry["what"]: entry["why"] for entry in device["absent"]}


def structures(device: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {cap["type"]: (cap["bar"], cap["offset"], cap["length"]) for cap in device["capabilities"]}


QEMU = {
    "common": (4, 0, 0x1000),
    "isr": (4, 0x1000, 0x1000),
    "device": (4, 0x2000, 0x1000),
    "notify": (4, 0x3000, 0x1000),
    "pci_cfg": (0, 0, 0),
}


# --- lspci ------------------------------------------------------------------------------------------------------


def test_a_short_dump_in_quoted_mail() -> None:
    found = files.load(str(FILES / "short-x.txt"))
    assert (found.form, found.others, len(found.devices)) == ("lspci", 1, 1)
    device = found.device("00:02.0")
    assert (device["type"], device["pci_id"], device["config_space"]["length"]) == ("net", "1af4:1000", 64)
    # 64 bytes do not tell whether it is legacy or transitional, nor where its structures are.
    assert device["interface"] is None and device["capabilities"] is None
    for what in ("interface", "capabilities", "msix"):
        assert "64 bytes" in absent(device)[what]
    assert [(bar["bar"], bar["kind"], bar["size"]) for bar in device["bars"]] == [
        (0, "io", None),
        (1, "memory", None),
        (4, "memory", None),
    ]


def test_several_functions_with_tabs_before_them() -> None:
    found = files.load(str(FILES / "several-xxx.txt"))
    assert found.others == 1
    assert [(each["address"], each["type"]) for each in found.devices] == [
        ("0000:00:02.0", "net"),
        ("0000:00:03.0", "rng"),
    ]
    net = found.device("0000:00:02.0")
    assert structures(net) == QEMU
    assert net["msix"] == {"vectors": 4, "enabled": True, "bar": 1, "offset": 0, "config_offset": 0x98}
    assert found.device("rng")["msix"] is None
    assert "msix" not in absent(found.device("rng"))  # it has none, which is known


def test_a_whole_configuration_space_of_pci_express() -> None:
    device = one("express-xxxx.txt")
    assert device["config_space"]["length"] == 4096
    assert [cap["name"] for cap in device["pci_capabilities"] if cap["extended"]] == ["DEVICE_SERIAL", "VENDOR"]
    assert device["bars"][1]["address"] == "0x8000000000"


@pytest.mark.parametrize("name", ["one-bar-vvv.txt", "one-bar-vvv-xxx.txt"])
def test_capabilities_end_to_end_in_one_bar(name: str) -> None:
    device = one(name)
    (bar,) = device["bars"]
    assert (bar["bar"], bar["address"], bar["size"], bar["bits"]) == (0, "0x8040000000", 8192, 64)
    caps = {cap["config_offset"]: cap for cap in device["capabilities"]}
    assert [(at, caps[at]["offset"], caps[at]["length"]) for at in (0x40, 0x50, 0x60, 0x70)] == [
        (0x40, 0, 0x38),
        (0x50, 0x38, 1),
        (0x60, 0x40, 0x40),
        (0x70, 0x1000, 0x1000),
    ]
    assert {cap["verdict"] for cap in device["capabilities"]} <= {"ok", "ignored"}
    assert (device["driver"], device["numa_node"], device["interface"]) == ("virtio-pci", 0, "modern")
    if name.endswith("xxx.txt"):
        assert (caps[0x84]["type"], caps[0x84]["length"]) == ("pci_cfg", 4)
    else:  # pciutils does not name it, and nothing is guessed
        assert (caps[0x84]["type"], caps[0x84]["cfg_type"]) == ("unknown", None)
        assert "config_space" in absent(device)


def test_a_structure_outside_of_its_bar_is_judged_by_the_text_alone() -> None:
    text = (FILES / "one-bar-vvv.txt").read_text().replace("[size=8K]", "[size=4K]")
    device = files.parse("pasted", text.encode()).device("")
    verdicts = {cap["type"]: (cap["verdict"], cap["why"]) for cap in device["capabilities"]}
    assert verdicts["notify"][0] == "bad" and "outside BAR 0" in verdicts["notify"][1]
    assert verdicts["common"][0] == "ok"


def test_a_legacy_function_with_memory_bars() -> None:
    device = one("legacy-vvv-xxx.txt")
    assert (device["interface"], device["type"], device["driver"], device["iommu_group"]) == (
        "legacy",
        "blk",
        "vfio-pci",
        12,
    )
    assert device["capabilities"] == []
    assert [(bar["bar"], bar["kind"], bar["size"]) for bar in device["bars"]] == [
        (0, "memory", 128),
        (1, "memory", 4096),
    ]


def test_bars_above_8_tib() -> None:
    device = one("high-bars-xxx.txt")
    assert [(bar["bar"], bar["address"], bar["bits"]) for bar in device["bars"]] == [
        (0, "0x90000001000", 64),
        (2, "0x3fff00000000", 64),
    ]
    assert structures(device)["notify"] == (2, 0, 0x1000)


def test_what_an_ordinary_user_pastes() -> None:
    device = one("user-v.txt")
    assert (device["type"], device["pci_id"], device["driver"]) == ("net", "1af4:1000", "virtio-pci")
    assert [(bar["bar"], bar["kind"], bar["size"]) for bar in device["bars"]] == [
        (None, "io", 32),
        (None, "memory", 4096),
        (None, "memory", 16384),
    ]
    for what in ("interface", "capabilities", "msix"):
        assert "access denied" in absent(device)[what]
    assert any("pci.ids" in note for note in device["notes"])


def test_numbers_alone() -> None:
    found = files.load(str(FILES / "numbers-n.txt"))
    assert [(each["type"], each["interface"]) for each in found.devices] == [("rng", None), ("input", "modern")]
    assert found.others == 1


def test_text_and_bytes_pasted_one_after_the_other_are_one_function() -> None:
    text = (FILES / "one-bar-vvv.txt").read_text()
    rows = [
        line for line in (FILES / "one-bar-vvv-xxx.txt").read_text().splitlines() if re.match("[0-9a-f]0: ", line)
    ]
    again = text + "\n$ lspci -xxx\n" + text.splitlines()[0] + "\n" + "\n".join(rows) + "\n"
    found = files.parse("pasted", again.encode())
    assert found.devices == files.load(str(FILES / "one-bar-vvv-xxx.txt")).devices


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "> ", ">>> ", "| ", "\t", "    > > "])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_how_a_text_came_does_not_matter(ending: str, mark: str, coding: str) -> None:
    plain = (FILES / "legacy-vvv-xxx.txt").read_text()
    quoted = "".join(mark + line + ending for line in plain.splitlines())
    assert files.parse("x", quoted.encode(coding)).devices == files.parse("x", plain.encode()).devices


def test_a_word_in_another_encoding_does_not_spoil_the_rest() -> None:
    data = "Grüße\n".encode("latin-1") + (FILES / "one-bar-vvv.txt").read_bytes()
    assert len(files.parse("mail", data).devices) == 1


@pytest.mark.skipif(shutil.which("lspci") is None, reason="pciutils is not installed")
@pytest.mark.parametrize(
    "name", ["express-xxxx.txt", "one-bar-vvv-xxx.txt", "legacy-vvv-xxx.txt", "high-bars-xxx.txt"]
)
def test_lspci_sees_the_same_in_the_bytes(name: str) -> None:
    """pciutils decodes the same file; its text is read, and both pictures agree where both speak."""
    shown = subprocess.run(
        ["lspci", "-F", str(FILES / name), "-vvv", "-nn"], capture_output=True, text=True, timeout=30, check=True
    )
    theirs, ours = files.parse("lspci", shown.stdout.encode()).device(""), one(name)
    for same in ("type", "pci_id", "subsystem_id", "interface"):
        assert theirs[same] == ours[same]
    assert [(cap["offset"]) for cap in theirs["pci_capabilities"]] == [
        cap["offset"] for cap in ours["pci_capabilities"]
    ]
    named = {key: place for key, place in structures(theirs).items() if key != "unknown"}
    assert named.items() <= structures(ours).items() and len(named) in (0, 4)
    assert theirs["msix"] == ours["msix"]
    known = {(bar["bar"], bar["kind"], bar["address"]) for bar in theirs["bars"] if bar["address"]}
    more = known - {(bar["bar"], bar["kind"], bar["address"]) for bar in ours["bars"]}
    # Without sizes lspci takes the upper half of a 64-bit register for one of its own.
    assert {bar for bar, _, _ in more} <= {bar["bar"] + 1 for bar in ours["bars"] if bar["bits"] == 64}
    assert len(known - more) == len(ours["bars"])


# --- files of sysfs, recordings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 256, 4096])
def test_a_config_file(size: int) -> None:
    device = one(f"config-{size}")
    assert (device["address"], device["type"], device["config_space"]["length"]) == (None, "net", size)
    assert (device["capabilities"] is None) == (size == 64)
    assert "alone" in absent(device)["driver"]


def test_a_config_file_knows_its_address_by_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "0000:03:00.0" / "config"
    place.parent.mkdir()
    place.write_bytes((FILES / "config-256").read_bytes())
    assert files.load(str(place)).device("03:00.0")["type"] == "net"


def test_a_config_file_of_a_function_that_does_not_respond() -> None:
    (device,) = files.parse("config", b"\xff" * 256).devices
    assert any("all ones" in note for note in device["notes"])
    assert device["device_id"] is None


def test_a_recording() -> None:
    found = files.load(str(FILES / "recording.umockdev"))
    assert (found.form, found.others) == ("umockdev", 1)
    net, rng = found.device("0000:00:02.0"), found.device("rng")
    assert (net["driver"], net["kernel_driver"], net["virtio_name"]) == ("virtio-pci", "virtio_net", "virtio0")
    assert (net["iommu_group"], net["numa_node"], net["interface"]) == (3, -1, "modern")
    assert structures(net) == QEMU
    assert [(bar["bar"], bar["size"]) for bar in net["bars"]] == [(1, 4096), (4, 16384)]
    assert net["features"]["negotiated"]["word"] == "0x130000021"
    assert net["features"]["negotiated"]["names"] == ["CSUM", "MAC", "INDIRECT_DESC", "EVENT_IDX", "VERSION_1"]
    assert net["features"]["offered"] is None
    assert net["status"]["value"] == 15
    assert (rng["bus"], rng["window"]["base"], rng["kernel_driver"]) == ("platform", "0xa003e00", "virtio_rng")
    assert "config_space" not in absent(rng)  # no such thing on this bus


# --- documents and reports --------------------------------------------------------------------------------------


def document(name: str = "one-bar-vvv-xxx.txt") -> dict[str, Any]:
    return files.load(str(FILES / name)).document


def test_a_document_is_read_back_as_it_was() -> None:
    made = document()
    found = files.parse("dump.json", json.dumps(made).encode())
    assert (found.form, found.document) == ("uvirtio-dump", made)


def test_a_document_of_another_version_may_have_less_and_more() -> None:
    made = document()
    made["devices"][0]["invented"] = {"by": "a later version"}
    del made["devices"][0]["msix"], made["devices"][0]["notes"]
    device = files.parse("dump.json", json.dumps(made).encode()).device("")
    assert device["msix"] is None and device["notes"] == []


def test_a_report_has_the_document_inside() -> None:
    made = document()
    text = json.dumps(made).replace("<", "\\u003c")
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><title>bring-up</title><script>let x = "<script>";</script>\n'
        f'<script\n type="application/json" id="uvirtio-dump">\n{text}\n</script></head><body>x</body></html>\n'
    )
    found = files.parse("bringup.html", page.encode())
    assert (found.form, found.document) == ("report", made)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((FILES / "user-v.txt").read_bytes())))
    assert files.load("-").device("net")["driver"] == "virtio-pci"


def test_a_device_that_is_not_in_the_file() -> None:
    found = files.load(str(FILES / "several-xxx.txt"))
    with pytest.raises(NoSuchDevice, match="09:00"):
        found.device("0000:09:00.0")
    with pytest.raises(UsageError, match="several"):
        found.device("")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="cannot be read"):
        files.load(str(tmp_path / "nothing"))
    with pytest.raises(OperationFailed, match="cannot be read"):
        files.load(str(tmp_path))


# --- what holds for every form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
def test_each_picture_fits_the_schema_and_says_what_is_missing(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = files.load(str(path))
    jsonschema.Draft202012Validator(schema()).validate(found.document)
    known = set(schema()["$defs"]["device"]["properties"])
    for device in found.devices:
        assert set(device) == known
        for what in record.SECTIONS:
            if device[what] is None and what not in absent(device):
                # Not missing from the dump: a device of this kind does not have it.
                assert what == "msix" or device["bus"] != "pci"


def mangled() -> st.SearchStrategy[bytes]:
    """A dump with pieces cut out, doubled, moved and replaced."""
    return st.builds(
        lambda path, cuts, junk: _mangle(path.read_bytes()[:6000], cuts, junk),
        st.sampled_from(EVERY),
        st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 40), st.integers(0, 6000)), max_size=4),
        st.binary(max_size=6),
    )


def _mangle(data: bytes, cuts: list[tuple[int, int, int]], junk: bytes) -> bytes:
    for start, length, target in cuts:
        start, target = start % (len(data) + 1), target % (len(data) + 1)
        piece = data[start : start + length]
        data = data[:start] + data[start + length :]
        data = data[:target] + piece + junk + data[target:]
    return data


@given(st.one_of(mangled(), st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_whatever_is_in_a_file_it_is_read_or_refused_with_a_place(data: bytes) -> None:
    try:
        found = files.parse("x", data)
    except BadDump as error:
        assert error.line >= 1 and error.column >= 1
        assert error.message.startswith(f"x:{error.line}:{error.column}: ")
        assert error.seen is not None and error.expected and error.remedy
    else:
        json.dumps(found.document)
        for device in found.devices:
            assert isinstance(device["absent"], list)


MEMBERS = ["devices", "schema", "address", "bus", "absent", "config_space", "hex", "length"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(MEMBERS), inner), max_leaves=12))  # fmt: skip
def test_any_json_in_any_place_of_a_document(value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    for where in ("devices", "device", "config_space", "whole"):
        made = document()
        if where == "whole":
            made = value
        elif where == "devices":
            made["devices"] = value
        elif where == "device":
            made["devices"] = [value]
        else:
            made["devices"][0]["config_space"] = value
        try:
            files.parse("x", json.dumps(made).encode())
        except BadDump:
            continue
        assert validator.is_valid(made)  # ours refuses all that the library does
