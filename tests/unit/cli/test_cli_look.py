"""list, inspect, features, plan, bind, restore, journal and doctor on made-up trees."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeKernel, FakeSys, config_space
from tests.fakes.uevents import SentEvents
from uvirtio.cli import main
from uvirtio.cli.signals import LEAVING
from uvirtio.cli.verbs.features import parse_word
from uvirtio.errors import UsageError
from uvirtio.evidence.record import msix
from uvirtio.host.roots import Roots


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.pci("0000:00:02.0", "rng", group=3)
    disk = made.pci("0000:00:03.0", "blk", group=4)
    made.child(disk, "virtio1/block/vda", "block", {"dev": "254:0", "size": "2048"})
    made.mountinfo(["25 1 254:0 / / rw,relatime - ext4 /dev/vda rw"])
    made.pci("0000:00:04.0", "balloon", transitional=True, driver="vfio-pci", group=5)
    return made


class Cli:
    """Runs a verb on the tree; what it says as text, or as a document."""

    def __init__(self, fake: FakeSys, capsys: pytest.CaptureFixture[str]) -> None:
        self.fake = fake
        self.capsys = capsys
        self.err = ""

    def text(self, *argv: str, code: int = 0) -> str:
        assert main([*argv, "--root", str(self.fake.top)]) == code
        out, self.err = self.capsys.readouterr()
        return out

    def document(self, *argv: str, code: int = 0) -> Any:
        out = self.text(*argv, "--json", code=code)
        assert out.count("\n") == 1
        made = json.loads(out)
        assert made["schema"] == "uvirtio/1"
        assert made["command"] == argv[0]
        return made


@pytest.fixture
def cli(fake: FakeSys, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(fake, capsys)


# --- list ---------------------------------------------------------------------------------------------------


def test_list_as_text(cli: Cli) -> None:
    lines = cli.text("list").splitlines()
    assert lines[0].split() == ["ADDRESS", "TYPE", "PCI", "ID", "INTERFACE", "DRIVER", "KERNEL", "DRIVER", "GROUP",
                                "IN", "USE"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0"]
    assert lines[2].split() == [
        "0000:00:03.0",
        "blk",
        "1af4:1042",
        "modern",
        "virtio-pci",
        "virtio_blk",
        "4",
        "mounted",
    ]
    assert lines[1].index("rng") == lines[2].index("blk") == lines[0].index("TYPE")
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_list_as_json(cli: Cli) -> None:
    rng, disk, balloon = cli.document("list")["devices"]
    promised = "address type device_id pci_id interface driver kernel_driver iommu_group in_use unchecked"
    assert set(promised.split()) <= set(rng)
    assert (rng["type"], rng["device_id"], rng["iommu_group"], rng["in_use"]) == ("rng", 4, 3, [])
    assert [use["rule"] for use in disk["in_use"]] == ["mounted"]
    assert set(disk["in_use"][0]) == {"rule", "evidence"}
    assert (balloon["interface"], balloon["driver"], balloon["kernel_driver"]) == (
        "transitional",
        "vfio-pci",
        None,
    )


@pytest.mark.parametrize("name", ["rng", "virtio-rng", "entropy"])
def test_list_of_one_type(cli: Cli, name: str) -> None:
    assert [one["type"] for one in cli.document("list", name)["devices"]] == ["rng"]
    assert cli.text("list", "vsock") == "no vsock devices found\n"


def test_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--root", str(tmp_path / "nowhere")]) == 0
    assert capsys.readouterr().out == "no virtio devices found\n"


def test_looking_writes_nothing_and_opens_no_node(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = os.open

    def watching(path: Any, flags: int, *more: Any, **named: Any) -> int:
        opened.append(os.fspath(path))
        assert flags & os.O_ACCMODE == os.O_RDONLY
        return real(path, flags, *more, **named)

    before = cli.fake.snapshot()
    monkeypatch.setattr(os, "open", watching)
    cli.text("list")
    cli.text("inspect", "balloon")
    main(["plan", "00:02.0", "--root", str(cli.fake.top)])
    main(["doctor", "--root", str(cli.fake.top)])
    monkeypatch.undo()
    assert cli.fake.snapshot() == before
    assert not [path for path in opened if str(cli.fake.roots.dev) in path]


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_as_json(cli: Cli) -> None:
    made = cli.document("inspect", "virtio0")
    assert made["address"] == "0000:00:02.0"
    caps = made["capabilities"]
    assert [cap["type"] for cap in caps] == ["pci_cfg", "notify", "device", "isr", "common"]
    assert {"type", "cfg_type", "bar", "offset", "length", "config_offset", "verdict", "why"} <= set(caps[0])
    assert [bar["bar"] for bar in made["bars"]] == [0, 1, 4]
    assert made["bars"][0]["kind"] == "io"
    assert made["msix"]["vectors"] == 2
    assert made["features"] == {"negotiated": 1 << 32, "names": ["VERSION_1"], "unknown": [], "field": []}
    assert made["status"] is None
    assert any(text.startswith("status") for text in made["hidden"])


def test_inspect_as_text(cli: Cli) -> None:
    shown = cli.text("inspect", "03:00.0".replace("03:00", "00:03"))
    assert "rule mounted (refuses bind): " in shown
    assert "VERSION_1" in shown
    assert "common" in shown
    (head,) = [line for line in shown.splitlines() if "CFG_TYPE" in line]
    column = head.split().index("MULTIPLIER")
    multipliers = {line.split()[1]: line.split()[column] for line in shown.splitlines() if line.startswith("0x")}
    assert multipliers == {"pci_cfg": "-", "notify": "4", "device": "-", "isr": "-", "common": "-"}


def test_inspect_names_bits_of_the_field(cli: Cli) -> None:
    cli.fake.pci("0000:00:09.0", "balloon", features=1 << 32 | 1 << 6 | 1 << 7)
    shown = cli.text("inspect", "0000:00:09.0")
    assert "VERSION_1, bit 6 (HINT_WAIT_ON_ACK, not in the standard), bit 7" in shown
    features = cli.document("inspect", "0000:00:09.0")["features"]
    assert features["unknown"] == [6, 7] and features["names"] == ["VERSION_1"]
    assert [(one["bit"], one["name"]) for one in features["field"]] == [(6, "HINT_WAIT_ON_ACK")]


def test_inspect_of_a_vdpa_device_names_its_node_and_who_offers_it(cli: Cli) -> None:
    cli.fake.vdpa("vduse0")
    shown = cli.text("inspect", "vdpa:vduse0")
    assert "/dev/vhost-vdpa-0" in shown and "vhost_vdpa" in shown
    assert "offered by:" in shown and "not visible: type: only the device itself tells" in shown
    made = cli.document("plan", "vdpa:vduse0")
    assert made["driver"] == "vhost_vdpa" and made["nothing_to_do"]


def test_inspect_says_what_an_ordinary_user_does_not_see(cli: Cli) -> None:
    config = cli.fake.sys / "bus/pci/devices/0000:00:02.0/config"
    config.write_bytes(config.read_bytes()[:64])
    made = cli.document("inspect", "00:02.0")
    assert made["capabilities"] is None
    assert any("CAP_SYS_ADMIN" in text for text in made["hidden"])
    assert "not visible: the capabilities are hidden" in cli.text("inspect", "00:02.0")


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("0000:00:1f.0", 5, "UV-NODEV-NONE"),
        ("virtio77", 5, "UV-NODEV-NONE"),
        ("gpu", 5, "UV-NODEV-NONE"),
        ("what is this", 2, "UV-USAGE-ADDRESS"),
        ("0000:00:09.0", 5, "UV-NODEV-NOT-VIRTIO"),
    ],
)
def test_what_cannot_be_inspected(cli: Cli, name: str, code: int, error: str) -> None:
    cli.fake.pci("0000:00:09.0", None, pci_id=(0x8086, 0x100E), driver=None)
    assert cli.document("inspect", name, code=code)["error"]["code"] == error
    cli.text("inspect", name, code=code)
    assert cli.err.startswith(f"uvirtio: {error}: ")


def test_msix_in_hostile_configuration_space() -> None:
    config = bytearray(config_space((0x1AF4, 0x1044)))
    assert msix(bytes(config)) is not None
    config[0x99] = 0x98  # the list bites its tail, behind the entry that is found first
    assert msix(bytes(config)) is not None
    config[0x98] = 0x09
    assert msix(bytes(config)) is None
    assert msix(bytes(256)) is None
    assert msix(b"\xff" * 256) is None


@given(st.binary(min_size=256, max_size=256))
def test_msix_never_fails(config: bytes) -> None:
    found = msix(config)
    assert found is None or 1 <= found["vectors"] <= 2048


# --- diag ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "code"), [("0000:00:1f.9", 2), ("0000:00:1f.0", 5), ("0000:00:02.0", 3)])
def test_diag_of_what_cannot_be_opened_prints_the_error_alone(cli: Cli, address: str, code: int) -> None:
    assert cli.text("diag", address, code=code) == ""
    assert cli.err.startswith("uvirtio: UV-") and "hint" not in cli.err and "step" not in cli.err
    assert len(cli.document("diag", address, code=code)["steps"]) == 16


# --- features -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x130000022", 0x130000022),
        ("0b101", 5),
        ("42", 42),
        ("0x" + "f" * 32, (1 << 128) - 1),
        ("1" + "0" * 63, 1),
        ("0" * 32 + "1" + "0" * 31, 1 << 32),
    ],
)
def test_feature_words(text: str, expected: int) -> None:
    assert parse_word(text) == expected


@given(st.integers(0, (1 << 128) - 1))
def test_feature_words_in_every_base(word: int) -> None:
    assert parse_word(hex(word)) == parse_word(bin(word)) == word
    if len(str(word)) not in (64, 128):
        assert parse_word(str(word)) == word
    assert parse_word(f"{word:0128b}"[::-1]) == word


@given(st.text(max_size=150))
def test_garbage_is_no_feature_word(text: str) -> None:
    try:
        assert 0 <= parse_word(text) < 1 << 128
    except UsageError as error:
        assert error.expected


def test_features_keep_unknown_bits(cli: Cli) -> None:
    made = cli.document("features", "rng", hex(1 << 32 | 1 << 5 | 1 << 49))
    assert made["unknown"] == [5, 49]
    assert made["word"] == 1 << 32 | 1 << 5 | 1 << 49
    assert [bit["name"] for bit in made["bits"]] == [None, "VERSION_1", None]


def test_features_name_bits_of_the_field_as_what_they_are(cli: Cli) -> None:
    word = hex(1 << 6 | 1 << 7)
    six, seven = cli.document("features", "balloon", word)["bits"]
    assert six["name"] is None and seven["field"] is None
    assert six["field"]["name"] == "HINT_WAIT_ON_ACK" and six["field"]["standard"] is False
    assert "January 2026" in six["field"]["source"]
    shown = cli.text("features", "balloon", word)
    assert "bit 6 is not in the standard; met in the field: HINT_WAIT_ON_ACK" in shown and "bit 7 is" not in shown


# --- plan, bind, restore, journal ---------------------------------------------------------------------------


def test_plan_of_a_mounted_disk_refuses(cli: Cli) -> None:
    cli.fake.driver("vfio-pci")
    made = cli.document("plan", "00:03.0", code=3)
    assert made["error"]["code"] == "UV-REFUSED-IN-USE"
    assert "mounted" in made["error"]["message"]
    assert made["members"][0]["steps"]
    shown = cli.text("plan", "00:03.0", code=3)
    assert "bind would refuse: UV-REFUSED-IN-USE" in shown


def test_plan_of_a_free_device(cli: Cli) -> None:
    cli.fake.driver("vfio-pci")
    made = cli.document("plan", "00:02.0")
    assert "error" not in made
    assert made["driver"] == "vfio-pci"
    assert "bind would go ahead" in cli.text("plan", "00:02.0")


def test_a_denied_device_is_neither_bound_nor_planned(cli: Cli) -> None:
    cli.fake.driver("vfio-pci")
    cli.fake.text(cli.fake.roots.etc / "uvirtio/deny", "0000:00:02.*\n")
    before = cli.fake.snapshot()
    for verb in ("plan", "bind"):
        assert cli.document(verb, "00:02.0", code=3)["error"]["code"] == "UV-REFUSED-DENIED"
    assert cli.fake.snapshot() == before


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["bind", "virtio0"], 2, "UV-USAGE-ADDRESS"),
        (["bind", "00:1f.0"], 5, "UV-NODEV-NONE"),
        (["bind", "00:03.0"], 3, "UV-REFUSED-IN-USE"),
        (["bind", "00:03.0", "--force", "mounted"], 3, "UV-REFUSED-IN-USE"),
        (["bind", "00:02.0", "--force", "everything"], 2, "UV-USAGE"),
        (["bind", "00:02.0", "--driver", "nonsense"], 2, "UV-USAGE"),
        (["bind", "00:02.0", "--owner", "no such user"], 2, "UV-USAGE"),
        (["bind", "00:02.0"], 4, "UV-ENV-MODULE"),
        (["restore"], 2, "UV-USAGE"),
        (["restore", "00:02.0", "--all"], 2, "UV-USAGE"),
    ],
    ids=str,
)
def test_what_is_not_bound(cli: Cli, argv: list[str], code: int, error: str) -> None:
    if error != "UV-ENV-MODULE":
        cli.fake.driver("vfio-pci")
    else:
        (cli.fake.sys / "bus/pci/devices/0000:00:04.0/driver").unlink()
        for path in (cli.fake.sys / "bus/pci/drivers/vfio-pci").iterdir():
            path.unlink()
        (cli.fake.sys / "bus/pci/drivers/vfio-pci").rmdir()
    before = cli.fake.snapshot()
    assert cli.document(*argv, code=code)["error"]["code"] == error
    assert cli.fake.snapshot() == before


@pytest.fixture
def kernel(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """Answers what bind and restore write to the tree."""
    from uvirtio.binding import bind, restore

    fake.driver("vfio-pci")
    made = FakeKernel(fake)
    for module in (bind, restore):
        monkeypatch.setattr(module, "ChildWriter", lambda: made)
    return made


@pytest.mark.usefixtures("kernel")
def test_bind_and_restore(cli: Cli) -> None:
    (bound,) = cli.document("bind", "00:02.0")["devices"]
    assert (bound["address"], bound["driver"], bound["node"]) == ("0000:00:02.0", "vfio-pci", "/dev/vfio/3")
    assert cli.document("list", "rng")["devices"][0]["driver"] == "vfio-pci"
    assert cli.text("bind", "00:02.0") == "0000:00:02.0: already bound to vfio-pci, node /dev/vfio/3\n"
    assert len(cli.document("journal")["entries"]) == 1
    (restored,) = cli.document("restore", "00:02.0")["devices"]
    assert restored == {"address": "0000:00:02.0", "driver": "virtio-pci", "action": "restored", "unchecked": []}
    assert cli.text("restore", "--all") == "nothing to restore\n"


@pytest.mark.usefixtures("kernel")
def test_bind_and_restore_as_text(cli: Cli) -> None:
    assert cli.text("bind", "0000:00:02.0") == "0000:00:02.0: bound to vfio-pci, node /dev/vfio/3\n"
    assert cli.text("restore", "--all") == "0000:00:02.0: given back to virtio-pci\n"


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number", LEAVING)
def test_a_signal_during_bind_puts_everything_back(
    cli: Cli, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = cli.fake.snapshot()
    write = kernel.write

    def signalled_after_unbind(path: Path, text: str, timeout: float) -> None:
        write(path, text, timeout)
        if path.name == "unbind":
            signal.raise_signal(number)

    monkeypatch.setattr(kernel, "write", signalled_after_unbind)
    made = cli.document("bind", "00:02.0", code=128 + number)
    assert made["error"]["code"] == "UV-INTERRUPTED"
    after = cli.fake.snapshot()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()
    assert cli.document("journal")["entries"] == []


def test_the_journal_of_nothing(cli: Cli) -> None:
    assert cli.text("journal") == "nothing is bound by uvirtio\n"
    assert cli.document("journal")["entries"] == []
    assert cli.document("restore", "--all")["devices"] == []
    assert cli.text("restore", "--all") == "nothing to restore\n"


def test_a_journal_with_an_entry(cli: Cli) -> None:
    from uvirtio.binding import journal

    record = journal.DeviceEntry("0000:00:02.0", "pci", "0000:00:02.0", "vfio-pci", "virtio-pci", None, type="rng")
    journal.store(journal.new([record], cli.fake.roots, ["uvirtio", "bind"]), cli.fake.roots)
    assert cli.document("journal")["entries"][0]["devices"][0]["driver"] == "virtio-pci"
    assert cli.text("journal").splitlines()[1].split()[3:] == [
        "0000:00:02.0", "rng", "virtio-pci", "vfio-pci", "as", "before"]  # fmt: skip


def test_doctor_says_where_things_are(cli: Cli) -> None:
    code = main(["doctor", "--json", "--root", str(cli.fake.top)])
    top = cli.fake.top
    places = json.loads(cli.capsys.readouterr().out)["places"]
    places.pop("udev_rules", None)  # of an installed wheel
    assert places == {
        "deny_list": f"{top}/etc/uvirtio/deny",
        "journal": f"{top}/run/uvirtio/journal.d",
        "locks": f"{top}/run/uvirtio/ADDRESS.lock",
    }
    shown = cli.text("doctor", code=code)
    assert re.search(rf"^journal: +{re.escape(str(top))}/run/uvirtio/journal\.d$", shown, re.MULTILINE)


def test_doctor(cli: Cli) -> None:
    code = main(["doctor", "--json", "--root", str(cli.fake.top)])
    made = json.loads(cli.capsys.readouterr().out)
    assert made["checks"]
    assert code == (4 if any(one["verdict"] == "fail" for one in made["checks"]) else 0)
    for one in made["checks"]:
        assert {"name", "verdict", "detail", "remedy"} <= set(one)
        assert one["verdict"] in ("pass", "warn", "fail", "skip")


# --- names of hardware, watch, --wait -----------------------------------------------------------------------


@pytest.fixture
def hwdb(monkeypatch: pytest.MonkeyPatch) -> None:
    """udev's database, which a made-up tree has not."""
    from uvirtio.binding import hwdb

    known = {"rng": {"ID_VENDOR_FROM_DATABASE": "Red Hat, Inc.", "ID_MODEL_FROM_DATABASE": "Virtio RNG"}}
    monkeypatch.setattr(hwdb, "udev_properties", lambda found, _: known.get(found.type, {}))


@pytest.mark.usefixtures("hwdb")
def test_names_of_hardware_are_in_inspect_and_in_list_when_asked(cli: Cli) -> None:
    names = {"vendor": "Red Hat, Inc.", "model": "Virtio RNG"}
    assert cli.document("inspect", "0000:00:02.0")["hardware"] == names
    assert cli.document("inspect", "0000:00:03.0")["hardware"] is None
    assert "hardware:      Red Hat, Inc. Virtio RNG" in cli.text("inspect", "0000:00:02.0")
    assert "hardware" not in cli.document("list")["devices"][0]
    assert [one["hardware"] for one in cli.document("list", "--names")["devices"]] == [names, None, None]
    lines = cli.text("list", "--names").splitlines()
    assert lines[0].endswith("HARDWARE")
    assert lines[1].endswith("Red Hat, Inc. Virtio RNG")
    assert lines[2].endswith("  -")


def test_a_made_up_tree_has_no_names_of_hardware(cli: Cli) -> None:
    assert cli.document("inspect", "0000:00:02.0")["hardware"] is None
    assert "hardware" not in cli.text("inspect", "0000:00:02.0")


def test_a_made_up_tree_cannot_be_watched(cli: Cli) -> None:
    assert cli.document("watch", code=4)["error"]["code"] == "UV-ENV-NOT-SUPPORTED"


@pytest.mark.parametrize(
    "argv", [["--count", "0"], ["--for", "-1"], ["--for", "nan"], ["--poll", "-1"], ["--poll", "inf"]]
)
def test_watch_refuses_numbers_that_are_none(cli: Cli, argv: list[str]) -> None:
    assert json.loads(cli.text("watch", "--jsonl", *argv, code=2))["error"]["code"] == "UV-USAGE"


def test_watch_prints_what_happens(cli: Cli, fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    from uvirtio.host import uevents

    rng = "/devices/pci0000:00/0000:00:02.0"
    sent = SentEvents()
    sent.send("unbind", rng, "pci")
    sent.send("bind", rng, "pci", DRIVER="vfio-pci")
    sent.send("remove", rng, "pci")
    monkeypatch.setattr(uevents, "listen", lambda *_: (sent, "libudev cannot be used"))
    monkeypatch.setattr(Roots, "live", True)
    lines = cli.text("watch", "--count", "2").splitlines()
    assert "libudev cannot be used" in cli.err
    assert lines[0] == "watching 3 devices, by test (Ctrl-C to leave)"
    assert lines[1].split()[2:] == ["unbound", "0000:00:02.0", "rng", "virtio-pci"]
    assert lines[2].split()[2:] == ["bound", "0000:00:02.0", "rng", "vfio-pci"]
    assert len(lines) == 3
    assert sent.closed


def test_bind_wait_says_where_there_is_no_udev(cli: Cli, fake: FakeSys) -> None:
    done = cli.document("restore", "--all", "--wait", "5")
    assert done["udev"] == "no udevd runs here"
    assert "nothing to wait for: no udevd runs here" in (cli.text("restore", "--all", "--wait", "5") and cli.err)
    assert cli.document("bind", "0000:00:02.0", "--wait", "0", code=2)["error"]["code"] == "UV-USAGE"
