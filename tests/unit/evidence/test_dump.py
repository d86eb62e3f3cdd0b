"""uvirtio dump: what is known of a device as one document, its schema, its mask, what is not touched."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import uvirtio
from tests.fakes.fakesys import FakeSys, config_space
from uvirtio.cli import main
from uvirtio.errors import UvirtioError
from uvirtio.evidence import checker, files
from uvirtio.evidence.mask import masked
from uvirtio.opening import identify
from uvirtio.scripted import Input, Rng, ScriptedDevice
from uvirtio.scripted.model import Model
from uvirtio.spec import device_config
from uvirtio.spec import features as f
from uvirtio.spec.input import Select

Dump = Callable[..., dict[str, Any]]
FILES = Path(__file__).parent / "files"


@pytest.fixture
def dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Dump:
    """Runs ``uvirtio dump ... -o FILE`` and reads the file back, which has to fit the schema."""

    def run(*argv: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        assert main(["dump", *argv, "-o", str(out)]) == 0
        capsys.readouterr()
        made: dict[str, Any] = json.loads(out.read_text())
        jsonschema.Draft202012Validator(checker.schema()).validate(made)
        known = set(checker.schema()["$defs"]["device"]["properties"])
        for device in made["devices"]:
            assert set(device) <= known, "a member that the schema does not have"
        assert files.load(str(out)).document == made
        return made

    return run


def absent(device: dict[str, Any]) -> dict[str, str]:
    return {entry["what"]: entry["why"] for entry in device["absent"]}


# --- a device of this machine, by sysfs -------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path / "tree")
    disk = made.pci("0000:00:03.0", "blk", group=4, features=1 << 32 | f.mask(f.Blk.FLUSH))
    made.text(disk / "virtio0/status", "0x0000000f\n")
    made.text(disk / "msi_irqs/40", "msix\n")
    made.text(disk / "irq", "11\n")
    made.text(
        made.roots.proc / "interrupts",
        "      CPU0  CPU1\n 40:  3  4  PCI-MSIX-0000:00:03.0 1-edge virtio0-req.0\n",
    )
    made.text(made.roots.proc / "cmdline", "root=UUID=secret intel_iommu=on iommu=pt quiet\n")
    return made


def test_a_device_that_the_kernel_drives(fake: FakeSys, dump: Dump) -> None:
    made = dump("0000:00:03.0", "--root", str(fake.top))
    (device,) = made["devices"]
    assert (device["type"], device["driver"], device["kernel_driver"]) == ("blk", "virtio-pci", "virtio_blk")
    assert (device["iommu_group"], device["interface"], device["virtio_name"]) == (4, "modern", "virtio0")
    assert device["features"]["negotiated"]["names"] == ["FLUSH", "VERSION_1"]
    assert device["features"]["offered"] is None
    assert device["status"] == {"value": 15, "names": ["ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK"]}
    assert device["interrupts"]["vectors"] == [{"irq": 40, "count": 7, "name": "virtio0-req.0"}]
    assert [(bar["bar"], bar["address"], bar["size"]) for bar in device["bars"]] == [
        (0, "0xc000", 64),
        (1, "0xfebd1000", 4096),
        (4, "0xfe000000", 16384),
    ]
    for what in ("common", "device_config", "queues", "books"):
        assert device[what] is None and "--live" in absent(device)[what]
    assert made["environment"]["iommu_parameters"] == ["intel_iommu=on", "iommu=pt"]
    assert "secret" not in json.dumps(made)


def test_the_window_into_the_bars_is_not_read(fake: FakeSys, dump: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.1.4.9: a read of pci_cfg_data makes the device read a BAR, under the feet of its driver."""
    read: list[int] = []
    real = os.pread

    def watched(fd: int, length: int, offset: int) -> bytes:
        read.extend(range(offset, offset + length))
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", watched)
    (device,) = dump("0000:00:03.0", "--root", str(fake.top))["devices"]
    window = range(0x84 + 16, 0x84 + 20)
    assert len(set(read)) >= 252 and not set(read) & set(window)
    assert device["config_space"]["hidden"] == [{"offset": 0x94, "length": 4}]
    assert bytes.fromhex(device["config_space"]["hex"])[0x94:0x98] == bytes(4)


def test_nothing_but_sysfs_is_opened(fake: FakeSys, dump: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    from uvirtio import opening

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a device was opened")

    monkeypatch.setattr(opening, "open_function", refuse)
    monkeypatch.setattr(opening, "open", refuse)
    dump("0000:00:03.0", "--root", str(fake.top))
    assert main(["dump", "scripted:rng"]) == 1  # the refusal itself works


def test_an_ordinary_user_sees_the_header(fake: FakeSys, dump: Dump) -> None:
    fake.text(fake.sys / "devices/pci0000:00/0000:00:03.0/config", config_space((0x1AF4, 0x1042))[:64])
    (device,) = dump("0000:00:03.0", "--root", str(fake.top))["devices"]
    assert device["config_space"]["length"] == 64
    assert device["interface"] == "modern"
    for what in ("capabilities", "pci_capabilities", "msix"):
        assert device[what] is None and "CAP_SYS_ADMIN" in absent(device)[what]


def test_a_virtio_mmio_window(tmp_path: Path, dump: Dump) -> None:
    fake = FakeSys(tmp_path / "tree")
    fake.mmio("a003e00.virtio_mmio", "rng")
    fake.text(fake.roots.proc / "iomem", "0a003e00-0a003fff : a003e00.virtio_mmio\n")
    (device,) = dump("a003e00.virtio_mmio", "--root", str(fake.top))["devices"]
    assert (device["bus"], device["type"], device["interface"]) == ("platform", "rng", "mmio")
    assert device["window"] == {"base": "0xa003e00", "length": 512}
    assert "config_space" not in absent(device)


# --- devices that are opened ------------------------------------------------------------------------------------

CELLS = [
    "rng",
    "blk",
    "balloon",
    "mem",
    "input",
    "blk,transport=mmio",
    "blk,transport=legacy",
    "rng,transport=mmio-legacy",
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("live", [False, True])
def test_every_kind_of_scripted_device(cell: str, live: bool, dump: Dump) -> None:
    (device,) = dump(f"scripted:{cell}", "--timeout", "60", *(["--live"] if live else []))["devices"]
    assert device["type"] == cell.partition(",")[0]
    assert device["features"]["offered"] is not None
    assert (device["features"]["negotiated"] is not None) == live
    assert device["opened"]["live"] == live
    assert device["error"] is None
    assert device["queues"]
    rings = [queue["ring"] for queue in device["queues"] if queue["ring"]]
    if live:
        assert rings and device["books"] and device["status"]["value"] & 4
        assert all(ring["size"] > 0 and len(ring["addresses"]) == 3 for ring in rings)
        assert sum(ring["kicks"] for ring in rings) > 0
    else:
        assert not rings and device["status"]["value"] == 0
        assert "--live" in absent(device)["books"]


def test_a_disk_is_shown_with_its_configuration(dump: Dump) -> None:
    (device,) = dump("scripted:blk")["devices"]
    assert device["device_config"]["fields"]["capacity"] == 2048
    assert device["device_config"]["fields"]["blk_size"] == 512
    assert "size_max" not in device["device_config"]["fields"]  # its feature is not offered
    assert device["common"]["num_queues"] == 1
    assert device["queues"][0]["registers"]["queue_size"] == 64


def test_a_device_that_fails_is_evidence_all_the_same(dump: Dump) -> None:
    (device,) = dump("scripted:rng,silent", "--live", "--timeout", "0.2")["devices"]
    assert device["error"]["code"] == "UV-DEV-TIMEOUT"
    assert device["queues"][0]["ring"]["stall"] == "untaken"
    assert device["queues"][0]["ring"]["in_flight"] == 1


def test_features_that_are_refused_are_evidence(dump: Dump) -> None:
    (device,) = dump("scripted:rng,refuse-features", "--live")["devices"]
    assert device["error"]["code"] == "UV-DEV-FEATURES"


# --- the mask ---


class Net(Model):
    """A network device as far as its configuration goes."""

    device_id = 1
    queue_sizes = (64, 64)
    features = f.mask(f.Net.MAC, f.Net.MTU)

    def __init__(self) -> None:
        super().__init__()
        self.config = bytearray.fromhex("525400abcdef") + bytes(4) + bytearray((9000).to_bytes(2, "little"))


def net_document() -> dict[str, Any]:
    from uvirtio.evidence import collect

    with identify("scripted:net", ScriptedDevice(Net())) as device:
        return collect.document([collect.of_open(device)], {"host": "secret.example"})


def test_addresses_of_networks_and_hosts_are_masked() -> None:
    plain = net_document()
    assert plain["devices"][0]["device_config"]["fields"] == {"mac": "525400abcdef", "mtu": 9000}
    made = masked(plain)
    config = made["devices"][0]["device_config"]
    assert config["fields"] == {"mac": "masked", "mtu": 9000}
    assert config["masked"] == [{"offset": 0, "length": 6}]
    assert made["environment"]["host"] == "masked" and made["masked"] is True
    text = json.dumps(made)
    assert "525400abcdef" not in text and "secret" not in text
    assert plain["masked"] is False  # the original stays as it was


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("qemu:virtio-net-pci,mac=52:54:00:ab:cd:ef", "qemu:virtio-net-pci,mac=masked"),
        ("qemu:q35,file=/home/ann/a.img/virtio-blk-pci", "qemu:q35,file=masked/virtio-blk-pci"),
        ("qemu:virtio-blk-pci,serial=SN-1,queue-size=4", "qemu:virtio-blk-pci,serial=masked,queue-size=4"),
        ("the link of 52-54-00-AB-CD-EF is down", "the link of masked is down"),
        ("0000:00:03.0", "0000:00:03.0"),
    ],
)
def test_what_was_typed_is_masked_wherever_it_is_repeated(typed: str, left: str) -> None:
    plain = net_document()
    plain["devices"][0]["address"] = typed
    plain["devices"][0]["error"] = {"message": f"{typed} does not answer"}
    (made,) = masked(plain)["devices"]
    assert (made["address"], made["error"]["message"]) == (left, f"{left} does not answer")


def test_serial_numbers_are_masked(dump: Dump) -> None:
    number = "0200005e10000001"
    source = str(FILES / "express-xxxx.txt")
    assert number in json.dumps(dump("-F", source, "--no-mask"))
    made = dump("-F", source)
    assert number not in json.dumps(made)
    (device,) = made["devices"]
    assert {"offset": 0x104, "length": 8} in device["config_space"]["hidden"]


def test_a_use_is_not_told_with_its_names(fake: FakeSys, dump: Dump) -> None:
    fake.child(
        fake.sys / "devices/pci0000:00/0000:00:03.0", "virtio0/block/vda", "block", {"dev": "254:0", "size": "8"}
    )
    fake.mountinfo(["25 1 254:0 / /home/somebody rw,relatime - ext4 /dev/vda rw"])
    made = dump("0000:00:03.0", "--root", str(fake.top))
    assert made["devices"][0]["findings"] and "somebody" not in json.dumps(made)
    assert "somebody" in json.dumps(dump("0000:00:03.0", "--root", str(fake.top), "--no-mask"))


# --- the file and the schema ---


def test_only_the_owner_may_read_the_file(tmp_path: Path, dump: Dump) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    out.chmod(0o644)
    dump("scripted:rng")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "scripted:rng", "-o", str(tmp_path / "no/such/folder")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_file_the_document_is_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "scripted:rng"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "uvirtio-dump/1"


def test_a_pasted_text_becomes_a_document(dump: Dump) -> None:
    made = dump("-F", str(FILES / "several-xxx.txt"))
    assert [device["type"] for device in made["devices"]] == ["net", "rng"]
    assert made["source"]["form"] == "lspci"
    (one,) = dump("00:03.0", "-F", str(FILES / "several-xxx.txt"))["devices"]
    assert one["type"] == "rng"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ((), 2),
        (("scripted:rng", "--live", "-F", "x"), 2),
        (("0000:7f:1f.7",), 5),
        (("nothing:here",), 2),
        (("scripted:none",), 2),
    ],
)
def test_what_cannot_be_dumped(argv: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", *argv]) == code
    assert "uvirtio: UV-" in capsys.readouterr().err


def test_the_schema_is_printed_and_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == checker.schema()
    jsonschema.Draft202012Validator.check_schema(printed)


def words(rule: Any) -> set[str]:
    """The keywords of a schema, without the names of members."""
    found: set[str] = set()
    if isinstance(rule, dict):
        for name, value in rule.items():
            found.add(name)
            if name in ("properties", "$defs"):
                for inner in value.values():
                    found |= words(inner)
            elif name not in ("const", "enum"):
                found |= words(value)
    return found


def test_our_checker_knows_every_word_of_the_schema() -> None:
    assert words(checker.schema()) == {
        "$schema", "$defs", "$ref", "title", "description", "type", "required", "properties", "const", "enum",
        "items", "pattern", "minimum", "maximum", "additionalProperties",
    }  # fmt: skip


@pytest.mark.parametrize("kind", device_config.FIELDS)
def test_fields_of_a_configuration_lie_in_order(kind: str) -> None:
    fields = [field for field, _ in device_config.FIELDS[kind]]
    for one, other in itertools.pairwise(fields):
        assert one.end <= other.offset
    assert device_config.decode(kind, f.ALL, b"") == {}


def test_the_errors_of_a_device_are_in_the_reasons() -> None:
    """A section whose reading fails is missing with the error's message; the others are there."""
    from uvirtio.evidence import collect

    with identify("scripted:net", ScriptedDevice(Net())) as device:

        def fail() -> int:
            raise UvirtioError("the bus is on fire")

        device.transport.status = fail  # type: ignore[method-assign]
        made = collect.of_open(device)
    assert made["status"] is None and absent(made)["status"] == "the bus is on fire"
    assert made["features"] is not None


def test_a_dump_of_a_started_function_has_what_the_start_changed(fake: FakeSys) -> None:
    """MSI-X and the interrupts: sysfs was asked before the device was opened, too."""
    from uvirtio.binding.discover import find
    from uvirtio.binding.facts import Facts
    from uvirtio.evidence import collect

    address = "0000:00:05.0"
    function = fake.pci(address, "rng", driver="vfio-pci")
    known = collect.of_machine(find(address, fake.roots), Facts(fake.roots))
    assert known["msix"]["enabled"] is False and known["interrupts"]["vectors"] == []
    with identify(address, ScriptedDevice(Rng())) as device, uvirtio.Rng(device):
        # What the kernel does when vfio-pci sets the vectors up.
        config = bytearray((function / "config").read_bytes())
        config[0x9B] |= 0x80
        (function / "config").write_bytes(config)
        fake.text(function / "msi_irqs/50", "msix\n")
        fake.text(fake.roots.proc / "interrupts", f"  CPU0\n 50:  9  PCI-MSIX-{address} 0-edge vfio-msix[0]\n")
        made = collect.of_open(device, known, live=True, roots=fake.roots)
    assert made["msix"]["enabled"] is True and bytes.fromhex(made["config_space"]["hex"])[0x9B] == config[0x9B]
    assert made["interrupts"]["vectors"] == [{"irq": 50, "count": 9, "name": "vfio-msix[0]"}]
    assert made["interrupts"]["mode"] == "msix-per-queue" and made["interrupts"]["pin"] is not None


def test_the_serial_number_of_an_input_device_is_masked() -> None:
    """It lies behind a window of the configuration, which shows whatever was asked for last (5.8.4)."""
    from uvirtio.evidence import collect

    model = Input(answers={(Select.ID_SERIAL, 0): b"SN-4711", (Select.ID_NAME, 0): b"keys"})
    with identify("scripted:input", ScriptedDevice(model)) as device:
        plain = collect.document([collect.of_open(device)], None)
    fields = plain["devices"][0]["device_config"]["fields"]
    assert (fields["name"], fields["serial"], fields["select"]) == ("keys", "SN-4711", 0)
    made = masked(plain)
    assert made["devices"][0]["device_config"]["fields"] == fields | {"serial": "masked"}
    for secret in ("SN-4711", b"SN-4711".hex()):
        assert secret not in json.dumps(made)
