"""vhost-user back ends without a configuration: fields of the address; and what a look at a back end tells."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.fakes import played_vhost_user as played
from tests.support.descriptors import descriptors, settled
from tests.unit.backends.conftest import Play
from uvirtio.backends.vhost_user import fields, parse, spec
from uvirtio.backends.vhost_user.peer import Peer
from uvirtio.backends.vhost_user.spec import ProtocolFeature as P
from uvirtio.backends.vhost_user.spec import Request as R
from uvirtio.cli import main
from uvirtio.device import Device, QueueSpec
from uvirtio.diag import diagnose
from uvirtio.drivers.rng import Rng
from uvirtio.errors import BadAddress, ConfigError, Denied, DeviceGone, NotSupported, UsageError
from uvirtio.host import process
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f

MAC = "52:54:00:12:34:56"
NO_CONFIG = f.mask(P.MQ, P.REPLY_ACK)
DPDK = played.PLAIN | f.mask(f.Net.MRG_RXBUF, f.Net.MTU, f.Net.CTRL_VQ, f.Net.MQ, f.Net.GUEST_ANNOUNCE)


def started(device: Device, wanted: int) -> None:
    device.start(wanted=wanted, queues=[QueueSpec(index, f"queue {index}", 8) for index in range(2)])


# --- fields of the address --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.POLLING])
def test_a_mac_address_of_the_address(play: Play, tmp_path: Path, mode: InterruptMode) -> None:
    back_end = play(protocol=NO_CONFIG, features=DPDK, queues=128)
    with uvirtio.open(f"vhost-user:net,mac={MAC}:{tmp_path / 's'}", interrupts=[mode]) as device:
        transport = device.transport
        assert bytes(transport.read_config(at, 1) for at in range(6)) == bytes.fromhex(MAC.replace(":", ""))
        assert transport.read_config(6, 2) == 1  # the link is up
        started(device, f.mask(f.Net.MAC, f.Net.MRG_RXBUF, f.Net.MTU, f.Net.CTRL_VQ, f.Net.MQ))
        assert device.has(f.Net.MAC) and device.has(f.Net.MRG_RXBUF)
        # No field for the one, and no back end serves a control queue.
        assert not device.offered & f.mask(f.Net.MTU, f.Net.CTRL_VQ, f.Net.MQ, f.Net.GUEST_ANNOUNCE)
        with pytest.raises(NotSupported):
            transport.write_config(0, 1, 2)
    # The back end is not told of what it did not offer: some end at that.
    assert not back_end.taken & f.mask(f.Net.MAC) and back_end.taken & f.mask(f.Net.MRG_RXBUF)
    assert "GET_CONFIG" not in back_end.log and "SET_CONFIG" not in back_end.log


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.POLLING])
def test_a_device_without_a_configuration_is_lawful(play: Play, tmp_path: Path, mode: InterruptMode) -> None:
    play(protocol=NO_CONFIG, features=DPDK | f.mask(f.Net.MAC, f.Net.STATUS), queues=2)
    with uvirtio.open(f"vhost-user:net:{tmp_path / 's'}", interrupts=[mode]) as device:
        assert device.transport.config_length == 0
        started(device, f.mask(f.Net.MAC, f.Net.STATUS, f.Net.MRG_RXBUF))
        assert not device.offered & f.mask(f.Net.MAC, f.Net.STATUS)  # bits of fields that are nowhere
        with pytest.raises(ConfigError):
            device.transport.read_config(0, 1)


def test_a_tag_of_the_address(play: Play, tmp_path: Path) -> None:
    play(protocol=NO_CONFIG, queues=3)
    with uvirtio.open(f"vhost-user:fs,tag=höme:{tmp_path / 's'}") as device:
        transport = device.transport
        assert transport.config_length == 40
        tag = bytes(transport.read_config(at, 1) for at in range(36))
        assert tag == "höme".encode().ljust(36, b"\0")
        assert transport.read_config(36, 4) == 2  # the first queue is hiprio's
        assert not device.transport.device_features() & 1  # NOTIFICATION


def test_a_field_that_the_back_end_has_itself_is_refused(play: Play, tmp_path: Path) -> None:
    play(config=bytes(40))
    with pytest.raises(UsageError) as caught:
        uvirtio.open(f"vhost-user:fs,tag=x:{tmp_path / 's'}")
    assert "tag=" in str(caught.value.seen)


def test_fields_in_an_address() -> None:
    target = parse(f"vhost-user:net,mac={MAC}:/run/s:1")
    assert (target.device_id, target.path, target.given) == (1, "/run/s:1", {"mac": MAC})
    assert "vhost-user:net:/run/s:1" in target.names
    target = parse(f"vhost-user:net,mac={MAC},exec=daemon --fd={{fd}},mac=no")
    assert (target.command, target.given) == (("daemon", "--fd={fd},mac=no"), {"mac": MAC})
    assert parse("vhost-user:fs,tag=a b:s").given == {"tag": "a b"}
    assert fields.config(parse("vhost-user:fs,tag=\udcff:s").given, 2)[:2] == b"\xff\0"  # a byte that is no UTF-8
    assert parse("vhost-user:blk:/run/s,exec=x").path == "/run/s,exec=x"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vhost-user:net,mac=52:54:/run/s", "is not a MAC"),
        ("vhost-user:net,mac=53:54:00:12:34:56:/run/s", "group"),
        ("vhost-user:net,mac=00:00:00:00:00:00:/run/s", "no address"),
        (f"vhost-user:net,mac={MAC},mac={MAC}:/run/s", "once"),
        (f"vhost-user:blk,mac={MAC}:/run/s", "no field of this type"),
        (f"vhost-user:net,mac={MAC}", "neither"),
        ("vhost-user:fs,tag=:/run/s", "with a value"),
        (f"vhost-user:fs,tag={'ü' * 19}:/run/s", "more than 36 bytes"),
        ("vhost-user:fs,colour=red:/run/s", "not one of"),
        ("vhost-user:fs,tag", "with a value"),
    ],
)
def test_fields_that_are_none(text: str, why: str) -> None:
    with pytest.raises(BadAddress, match=why) as caught:
        parse(text)
    assert caught.value.remedy


def test_a_field_does_not_hide_an_address_from_the_deny_list(tmp_path: Path, play: Play) -> None:
    play(protocol=NO_CONFIG)
    denied = tmp_path / "root/etc/uvirtio/deny"
    denied.parent.mkdir(parents=True)
    denied.write_text(f"vhost-user:net:{tmp_path}/s\n")
    with pytest.raises(Denied):
        uvirtio.open(f"vhost-user:net,mac={MAC}:{tmp_path}/s", roots=Roots.under(tmp_path / "root"))


# --- a connected socket that is handed over ---------------------------------------------------------------------

CHILD = """
import socket, sys
from tests.fakes.played_vhost_user import PlayedBackEnd
PlayedBackEnd(None, connection=socket.socket(fileno=int(sys.argv[1]))).join()
print("served", file=sys.stderr)
"""


def test_a_daemon_is_handed_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    address = f"vhost-user:rng,exec={sys.executable} {tmp_path / 'child.py'} {{connected}}"
    before = settled()
    with uvirtio.open(address, timeout=20) as device:
        node: Any = device.transport.backend
        for _ in range(2):  # over the one connection
            with Rng(device) as rng:
                assert rng.read(8) == played.PATTERN[:8]
        assert node.peer.pid != os.getpid() and not node.peer.ended
        # What would make a new connection finds none.
        node._give_up()
        node._connection = None
        with pytest.raises(DeviceGone, match="serves one connection"):
            Rng(device)
        assert "served" in node._daemon.autopsy()
    assert descriptors() == before


# --- who is behind it, and what it says of itself ---------------------------------------------------------------


def test_a_look_asks_and_starts_nothing(play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slots = played.PROTOCOL | f.mask(P.CONFIGURE_MEM_SLOTS, P.PAGEFAULT)
    answer = played.says(spec.U64.pack(32))
    back_end = play(config=bytes(60), protocol=slots, queues=4, acts={R.GET_MAX_MEM_SLOTS: answer})
    root = tmp_path / "root"
    root.mkdir()
    (root / "proc").symlink_to("/proc")
    look = ["inspect", f"vhost-user:blk:{tmp_path / 's'}", "--root", str(root)]
    assert main([*look, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["type"] == "blk" and told["interface"] == "vhost-user" and told["queues"] == 4
    assert told["back_end"]["pid"] == os.getpid() and told["back_end"]["uid"] == os.getuid()
    assert told["back_end"]["exe"] == os.readlink("/proc/self/exe")  # noqa: PTH115
    assert told["memory_slots"] == 32
    assert told["protocol_features"]["offered"] == slots
    assert "PAGEFAULT" in told["protocol_features"]["names"]
    assert "PAGEFAULT" not in told["protocol_features"]["used"]
    assert told["configuration"] == {"length": 60, "hex": bytes(60).hex(), "from": "back end"}
    assert told["features"]["sent"] == played.PLAIN
    assert told["features"]["names"] == ["INDIRECT_DESC", "EVENT_IDX", "VERSION_1"]
    assert told["ended"] is False
    assert not {"SET_FEATURES", "SET_MEM_TABLE", "SET_VRING_KICK"} & set(back_end.log)
    assert main(look) == 0
    out = capsys.readouterr().out
    assert "memory slots:      32" in out and f"pid {os.getpid()}" in out


def test_a_device_is_not_asked_for_its_slots(play: Play, tmp_path: Path) -> None:
    """Where CONFIGURE_MEM_SLOTS is negotiated, memory is sent by another message."""
    back_end = play(protocol=played.PROTOCOL | f.mask(P.CONFIGURE_MEM_SLOTS))
    uvirtio.open(f"vhost-user:rng:{tmp_path / 's'}").close()
    assert not back_end.taken_protocol & f.mask(P.CONFIGURE_MEM_SLOTS)
    assert "GET_MAX_MEM_SLOTS" not in back_end.log


@pytest.mark.parametrize(
    ("state", "flags", "ending"), [("S", 0x400040, False), ("R", 0x4, True), ("Z", 0, True), (None, 0, True)]
)
def test_a_process_that_is_ending(tmp_path: Path, state: str | None, flags: int, ending: bool) -> None:
    roots = Roots.under(tmp_path)
    place = roots.proc / "7"
    stat = "7 (a (b) c) {} 1 7 7 0 -1 {} " + "0 " * 12 + "99 0 0"
    if state is not None:
        place.mkdir(parents=True)
        (place / "stat").write_text(stat.format(state, flags))
    assert process.ending(7, roots) is ending


def test_a_process_number_that_has_come_round_is_no_sign_of_life(tmp_path: Path) -> None:
    roots = Roots.under(tmp_path)
    place = roots.proc / "7"
    place.mkdir(parents=True)
    stat = "7 (d) S 1 7 7 0 -1 0 " + "0 " * 12 + "{} 0 0"
    (place / "stat").write_text(stat.format(99))
    peer = Peer(7, 0, 0, roots)
    assert not peer.ended
    (place / "stat").write_text(stat.format(123))
    assert peer.ended


def test_a_back_end_that_closes_its_channel_alone(play: Play, tmp_path: Path) -> None:
    """A process that ends closes its files one after the other, in no certain order."""
    back_end = play(config=bytes(60))
    with uvirtio.open(f"vhost-user:blk:{tmp_path / 's'}") as device:
        device.start(wanted=0, queues=[])
        assert back_end.channel is not None
        back_end.channel.close()
        with pytest.raises(DeviceGone) as caught:
            device.wait(lambda: False, timeout=10, what="nothing")
        assert caught.value.about == "back-end-closed" and "back-end channel" in str(caught.value.seen)


# --- diag -------------------------------------------------------------------------------------------------------


def test_diag_has_words_for_messages(play: Play, tmp_path: Path) -> None:
    play()
    report = diagnose(f"vhost-user:rng:{tmp_path / 's'}")
    steps = {step.name: step for step in report.steps}
    assert report.verdict == "warn"  # its bytes are not random
    assert steps["discover"].spec.startswith("vhost-user: GET_FEATURES")
    assert "GET_VRING_BASE" in steps["reset"].spec and "stopped" in steps["reset again"].detail
    assert "eventfd" in steps["vectors"].detail
    assert "connection closed" in steps["leave"].detail and "bus master" not in steps["leave"].detail


def test_diag_has_words_for_a_back_end_that_cuts_off(play: Play, tmp_path: Path) -> None:
    play(acts={R.SET_VRING_KICK: played.cut_off(b"")})
    report = diagnose(f"vhost-user:rng:{tmp_path / 's'}")
    assert report.cause is not None and report.cause.id == "back-end-closed"
    assert "SET_VRING_KICK" in report.cause.text


def test_a_kick_that_is_not_followed_is_the_eventfds(play: Play, tmp_path: Path) -> None:
    back_end = play()
    back_end.deaf = True
    report = diagnose(f"vhost-user:rng:{tmp_path / 's'}", timeout=0.3)
    assert report.cause is not None and report.cause.id == "queue-untaken"
    assert "SET_VRING_KICK" in report.cause.attempts[0]


def test_an_answer_that_is_none_of_a_file_system(play: Play, tmp_path: Path) -> None:
    # It fills every buffer with its pattern, and knows no table of descriptors.
    play(protocol=NO_CONFIG, queues=2, features=played.PLAIN & ~f.mask(f.INDIRECT_DESC))
    report = diagnose(f"vhost-user:fs:{tmp_path / 's'}")
    failed = next(step for step in report.steps if step.verdict == "fail")
    assert failed.name == "data path" and "UV-DEV-PROTOCOL" in failed.detail
    (length,) = struct.unpack_from("<I", played.PATTERN)
    assert f"length {length}" in failed.detail
