"""vhost-user against a back end that is played: the order of messages, the reset, memory, malformed replies."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.fakes import played_vhost_user as played
from tests.fakes.played_vhost_user import PATTERN
from tests.support.descriptors import descriptors, settled
from tests.unit.backends.conftest import Play
from uvirtio.backends.vhost_user import VhostUserNode, memory, parse, spec
from uvirtio.backends.vhost_user.spec import ProtocolFeature as P
from uvirtio.backends.vhost_user.spec import Request as R
from uvirtio.cli import main
from uvirtio.drivers.rng import Rng
from uvirtio.errors import (
    BadAddress,
    Busy,
    Closed,
    ConfigError,
    Denied,
    DeviceGone,
    DeviceTimeout,
    EnvironmentLack,
    FeaturesRefused,
    NoSuchDevice,
    NotSupported,
    OperationFailed,
    ProtocolError,
    UvirtioError,
)
from uvirtio.evidence import files
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.trace import replayed
from uvirtio.transports.vhost_user import VhostUser


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"vhost-user:rng:{tmp_path / 's'}"


def node(tmp_path: Path, device_id: int = 4, timeout: float = 5) -> VhostUserNode:
    path = str(tmp_path / "s")
    return VhostUserNode(path, device_id, address=f"vhost-user:{device_id}:{path}", timeout=timeout)


# --- what is right -----------------------------------------------------------------------------------------------


def test_the_order_of_messages_suits_all_back_ends(play: Play, address: str) -> None:
    back_end = play()
    with uvirtio.open(address) as device, Rng(device) as rng:
        assert rng.read(16) == PATTERN[:16]
    assert back_end.log == [
        *("GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "SET_OWNER", "GET_QUEUE_NUM"),
        "SET_BACKEND_REQ_FD",
        *("GET_FEATURES", "GET_FEATURES", "SET_FEATURES"),  # an offer is read twice at each start
        *("SET_VRING_NUM", "SET_VRING_BASE", "SET_MEM_TABLE", "SET_VRING_ADDR"),
        *("SET_VRING_CALL", "SET_VRING_KICK", "SET_VRING_ENABLE"),
        *("SET_VRING_ENABLE", "GET_VRING_BASE"),
    ]
    assert back_end.taken >> spec.F_PROTOCOL_FEATURES & 1  # else SET_VRING_ENABLE ends the connection


def test_a_record_is_replayed_without_the_back_end(play: Play, address: str, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    play()
    with uvirtio.open(address, record=record) as device, Rng(device) as rng:
        first = [rng.read(16), rng.read(40)]
    with uvirtio.open(replayed(record)) as device, Rng(device) as rng:
        assert [rng.read(16), rng.read(40)] == first


@pytest.mark.parametrize("live", [False, True])
def test_a_dump_and_a_report(play: Play, address: str, live: bool, tmp_path: Path) -> None:
    play()
    how = ["--live"] if live else []
    assert main(["dump", address, *how, "-o", str(tmp_path / "it.json")]) == 0
    [record] = files.load(str(tmp_path / "it.json")).devices
    assert (record["bus"], record["interface"], record["type"]) == ("vhost-user", "vhost-user", "rng")
    assert (record["features"]["negotiated"] is not None) is live
    assert main(["report", address, *how, "-o", str(tmp_path / "it.html")]) == 0
    assert main(["diff", str(tmp_path / "it.json"), address]) in (0, 1)


def test_what_is_no_feature_of_the_device_is_hidden(play: Play, address: str) -> None:
    play(features=played.PLAIN | f.mask(f.ACCESS_PLATFORM))
    with uvirtio.open(address) as device, Rng(device):
        assert device.offered == f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX)


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.POLLING])
def test_a_device_starts_again_over_one_connection(play: Play, address: str, mode: InterruptMode) -> None:
    back_end = play()
    with uvirtio.open(address, interrupts=[mode]) as device:
        for _ in range(3):
            with Rng(device) as rng:
                assert rng.read(300) == (PATTERN * 2)[:300]
    assert back_end.accepted == 1
    assert back_end.log.count("SET_MEM_TABLE") == 1
    assert back_end.log.count("GET_VRING_BASE") == 3


def test_only_started_rings_are_stopped_and_once(play: Play, address: str) -> None:
    back_end = play(queues=3)
    with uvirtio.open(address) as device:
        with Rng(device):
            pass
        device.reset()
        device.reset()
    assert back_end.log.count("GET_VRING_BASE") == 1


def test_the_status_is_forwarded_where_it_was_negotiated(play: Play, address: str) -> None:
    back_end = play(protocol=played.PROTOCOL | f.mask(P.STATUS, P.RESET_DEVICE))
    with uvirtio.open(address) as device:
        with Rng(device) as rng:
            assert back_end.status == 0xF
            assert rng.read(4) == PATTERN[:4]
        assert back_end.status == 0
    told = [spec.U64.unpack(payload)[0] for name, payload in back_end.payloads if name == "SET_STATUS"]
    assert told == [0, 1, 3, 11, 15, 0]
    assert back_end.log.count("RESET_DEVICE") == 2


def test_a_back_end_without_protocol_features(play: Play, address: str) -> None:
    back_end = play(features=f.mask(f.VERSION_1), protocol=0)
    with uvirtio.open(address) as device, Rng(device) as rng:
        assert rng.read(4) == PATTERN[:4]
    assert "SET_VRING_ENABLE" not in back_end.log  # its rings start enabled


def test_a_refusal_of_the_features_is_one(play: Play, address: str) -> None:
    play(acts={R.SET_FEATURES: played.says(spec.U64.pack(1))})
    with uvirtio.open(address) as device, pytest.raises(FeaturesRefused):
        Rng(device)


def test_a_legacy_device_is_not_taken(play: Play, address: str) -> None:
    play(features=f.mask(spec.F_PROTOCOL_FEATURES))
    with pytest.raises(NotSupported, match="no modern device"):
        uvirtio.open(address)


# --- configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [36, 60, 96])
def test_the_configuration_is_read_whole_and_sliced(play: Play, tmp_path: Path, length: int) -> None:
    config = bytes(range(length))
    back_end = play(config=config)
    with node(tmp_path, 2) as made:
        assert made.get_config_size() == length
        asked = back_end.log.count("GET_CONFIG")
        assert made.get_config(34, 2) == config[34:36]  # a back end that ignores the offset says bytes 0 and 1
        assert made.get_config(0, 8) == config[:8]
        assert back_end.log.count("GET_CONFIG") == asked + 1


def test_a_change_of_the_configuration_is_told(play: Play, tmp_path: Path) -> None:
    back_end = play(config=struct.pack("<Q", 8) + bytes(52))
    with uvirtio.open(f"vhost-user:blk:{tmp_path / 's'}") as device:
        device.start(wanted=0, queues=[])
        assert device.transport.read_config(0, 8) == 8
        back_end.config = struct.pack("<Q", 9) + bytes(52)
        assert device.transport.read_config(0, 8) == 8
        for need_reply in (False, True):
            before = device.counters.config_changes
            back_end.tell_config_change(need_reply=need_reply)
            assert device.wait(lambda: device.counters.config_changes > before, timeout=10, owed=False, what="it")  # noqa: B023
            assert device.transport.read_config(0, 8) == 9
        assert back_end.channel is not None
        assert spec.HEADER.unpack(back_end.channel.recv(12)) == (2, spec.VERSION | spec.REPLY, 8)


def test_a_configuration_that_shrinks(play: Play, tmp_path: Path) -> None:
    back_end = play(config=bytes(60))
    with node(tmp_path, 2) as made:
        back_end.config = b""
        with pytest.raises(ConfigError):
            made.get_config(0, 8)


def test_nonsense_on_the_back_end_channel(play: Play, tmp_path: Path) -> None:
    back_end = play(config=bytes(60))
    with node(tmp_path, 2) as made:
        assert back_end.channel is not None and made.config_changes is not None
        back_end.channel.send(spec.HEADER.pack(2, spec.VERSION, 1 << 30))
        with pytest.raises(ProtocolError):
            made.config_changes.take()
        with pytest.raises(DeviceGone):
            made.get_status()


# --- memory after a stop: it is never reused while the device may write ---------------------------------------


def test_memory_that_the_back_end_may_still_write_is_given_up(play: Play, address: str) -> None:
    back_end = play()
    with uvirtio.open(address) as device:
        rng = Rng(device)
        first = device.dma.alloc(4096).segments(0, 4096)[0][0]
        assert first >= memory.BASE
        back_end.holds = True
        with pytest.raises(DeviceTimeout):
            rng.read(8, timeout=0.1)
        rng.close()
    assert back_end.accepted == 1
    back_end.holds = False
    with uvirtio.open(address) as device:
        made: Any = device.transport.backend
        held = Rng(device)
        old = made._memory
        back_end.holds = True
        queue = device.queues[0]
        block = device.dma.alloc(64)
        queue.ring.add([], block.segments(0, 64), object())
        queue.kick()
        device.wait(lambda: back_end.rings[0].base > 0, timeout=10, what="the back end to take it", owed=False)
        device.reset()
        assert old.given_up and made._memory is None
        with pytest.raises(Closed):
            old.alloc(1)
        back_end.holds = False
        with Rng(device) as rng:
            assert rng.read(8) == PATTERN[:8]
        assert made._memory is not old
        held.close()
    assert back_end.accepted == 3


def test_memory_of_a_drained_stop_is_kept_and_zeroed(play: Play, address: str) -> None:
    play()
    with uvirtio.open(address) as device:
        made: Any = device.transport.backend
        with Rng(device) as rng:
            rng.read(64)
            old = made._memory
        with Rng(device):
            assert made._memory is old
            block = device.dma.alloc(1 << 16)
            assert bytes(block.view) == bytes(1 << 16)


@pytest.mark.parametrize(
    ("base", "kept"),
    [(0x8000_8000, True), (0x0003_0003, True), (0x8002_8003, False), (0x8003, False)],
    ids=["as at the start", "all returned", "one is out", "only half of it is told"],
)
def test_packed_rings_begin_and_end_with_both_halves(play: Play, tmp_path: Path, base: int, kept: bool) -> None:
    features = played.PLAIN | f.mask(f.RING_PACKED)
    back_end = play(features=features, acts={R.GET_VRING_BASE: played.says(spec.VRING_STATE.pack(0, base))})
    with node(tmp_path) as made:
        transport = VhostUser(made)
        transport.set_driver_features(f.mask(f.VERSION_1, f.RING_PACKED))
        transport.connect_interrupts([0], [InterruptMode.PER_QUEUE])
        block = made.dma(False).alloc(3 * 4096)
        transport.enable_queue(0, 8, block.address, block.address + 4096, block.address + 8192)
        sent = [payload for name, payload in back_end.payloads if name == "SET_VRING_BASE"]
        assert sent == [spec.VRING_STATE.pack(0, 0x8000_8000)]
        transport.set_status(0)
        assert (made._memory is not None) is kept
        assert transport.status() == 0
        transport.release_queues()
        block.close()


def test_the_memory_cannot_be_made_shorter_by_the_back_end(tmp_path: Path) -> None:
    del tmp_path
    made = memory.SharedMemory(1 << 16)
    with pytest.raises(PermissionError):
        os.ftruncate(made.fd, 4096)  # else an access to it would end this process by SIGBUS
    made.give_up()


def test_memory_is_taken_where_it_is_used_only() -> None:
    made = memory.SharedMemory()
    block = made.alloc(5000)
    assert os.fstat(made.fd).st_blocks * 512 == 8192
    block.close()
    assert os.fstat(made.fd).st_blocks == 0
    made.give_up()


def test_iovas_are_not_to_be_had(play: Play, tmp_path: Path) -> None:
    play()
    with node(tmp_path) as made, pytest.raises(NotSupported):
        made.dma(True)


# --- malformed conversations -----------------------------------------------------------------------------------

HEAD = spec.HEADER.pack(R.GET_FEATURES, spec.VERSION | spec.REPLY, 8)

MALFORMED: dict[str, tuple[dict[R, played.Act], type[UvirtioError]]] = {
    "short header": ({R.GET_FEATURES: played.cut_off(HEAD[:7])}, DeviceGone),
    "wrong size": ({R.GET_FEATURES: played.says(bytes(4))}, ProtocolError),
    "an absurd size": ({R.GET_FEATURES: played.says(bytes(8), size=0xFFFFFFFF)}, ProtocolError),
    "no reply": ({R.GET_FEATURES: played.silent}, DeviceTimeout),
    "no acknowledgement": ({R.SET_OWNER: played.silent}, DeviceTimeout),
    "late reply": ({R.GET_QUEUE_NUM: played.late(0.6)}, DeviceTimeout),
    "too many descriptors": ({R.GET_FEATURES: played.with_descriptors(20)}, ProtocolError),
    "a descriptor": ({R.GET_FEATURES: played.with_descriptors(1)}, ProtocolError),
    "unknown reply": ({R.GET_QUEUE_NUM: played.says(bytes(8), request=99)}, ProtocolError),
    "no reply flag": ({R.GET_FEATURES: played.says(bytes(8), flags=spec.VERSION)}, ProtocolError),
    "another version": ({R.GET_FEATURES: played.says(bytes(8), flags=2 | spec.REPLY)}, ProtocolError),
    "closed in the middle": ({R.GET_QUEUE_NUM: played.cut_off(HEAD)}, ProtocolError),
    "closed in the payload": ({R.GET_FEATURES: played.cut_off(HEAD + bytes(3))}, DeviceGone),
    "closed at a message": ({R.SET_OWNER: played.cut_off(b"")}, DeviceGone),
    "config of another size": ({R.GET_CONFIG: played.says(spec.CONFIG.pack(0, 8, 0) + bytes(8))}, ProtocolError),
    "config of another part": ({R.GET_CONFIG: played.says(spec.CONFIG.pack(4, 36, 0) + bytes(36))}, ProtocolError),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_conversations_are_typed_errors_and_leak_nothing(play: Play, tmp_path: Path, kind: str) -> None:
    acts, error = MALFORMED[kind]
    before = settled()
    back_end = play(acts=acts, config=bytes(60))
    with pytest.raises(error) as caught:
        uvirtio.open(f"vhost-user:blk:{tmp_path / 's'}", timeout=0.3 if error is DeviceTimeout else 10)
    assert caught.type is error
    assert caught.value.seen and caught.value.remedy
    back_end.close()
    assert descriptors() == before


def test_an_ended_connection_stays_ended(play: Play, address: str) -> None:
    play(acts={R.SET_VRING_KICK: played.cut_off(b"")})
    with uvirtio.open(address) as device:
        with pytest.raises(DeviceGone) as caught:
            Rng(device)
        assert "SET_VRING_KICK" in str(caught.value.seen)
        with pytest.raises(DeviceGone):
            Rng(device)


def test_a_refusal_is_told_and_not_what_follows_it(play: Play, address: str) -> None:
    play(acts={R.SET_VRING_NUM: played.says(spec.U64.pack(1))})
    with uvirtio.open(address) as device, pytest.raises(OperationFailed, match="refused SET_VRING_NUM"):
        Rng(device)


# --- addresses ------------------------------------------------------------------------------------------------


def test_the_forms_of_an_address(tmp_path: Path) -> None:
    target = parse("vhost-user:blk:/run/a b:c")
    assert (target.device_id, target.path, target.command) == (2, "/run/a b:c", ())
    target = parse("vhost-user:rng,exec=daemon --fd={fd} --source '/dev/u random'")
    assert (target.device_id, target.command) == (4, ("daemon", "--fd={fd}", "--source", "/dev/u random"))
    image = tmp_path / 'a,"b'
    image.touch()
    target = parse(f"vhost-user:qsd,queues=3,aio=native,binary=true/{image}")
    assert target.command[0] == "true"
    disk, export = (json.loads(word) for word in target.command[2::2])
    assert disk["filename"] == str(image) and disk["aio"] == "native" and disk["cache"] == {"direct": True}
    assert export["num-queues"] == 3 and export["writable"] is True


@pytest.mark.parametrize("after", ["", ",queues=2"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("image", ["disk.img", "of/disk.img"])
def test_the_program_of_an_address_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, relative: bool, after: str
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "opt/storage daemon"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (tmp_path / "of").mkdir()
    (tmp_path / image).touch()
    name = f"./{program.relative_to(tmp_path)}" if relative else str(program)
    target = parse(f"vhost-user:qsd,aio=threads,binary={name}{after}/{image}")
    assert target.command[0] == name
    assert json.loads(target.command[2])["filename"] == str(tmp_path / image)
    assert json.loads(target.command[4])["num-queues"] == (2 if after else 1)
    program.chmod(0o644)
    with pytest.raises(EnvironmentLack, match=f"^{re.escape(name)} is not installed") as caught:
        parse(f"vhost-user:qsd,binary={name}{after}/{image}")
    assert "name another with binary=" in str(caught.value.remedy)
    program.unlink()
    if not relative:
        with pytest.raises(EnvironmentLack, match=f"^{re.escape(name)}.* is not installed"):
            parse(f"vhost-user:qsd,binary={name}{after}/{image}")


@pytest.mark.parametrize(
    "text",
    [
        "vhost-user:",
        "vhost-user:blk",
        "vhost-user:blk:",
        "vhost-user:nonsense:/run/s",
        "vhost-user:blk:/" + "x" * 108,
        "vhost-user:rng,exec=daemon",
        "vhost-user:rng,exec=daemon {fd} {fd}",
        "vhost-user:rng,exec=daemon '{fd}",
        "vhost-user:rng,exec={fd}",
        "vhost-user:qsd",
        "vhost-user:qsd,queues=4",
        "vhost-user:qsd/",
        "vhost-user:qsd,queues=0/etc/passwd",
        "vhost-user:qsd,queues=x/etc/passwd",
        "vhost-user:qsd,queues=" + 5000 * "9" + "/etc/passwd",
        "vhost-user:qsd,aio=fast/etc/passwd",
        "vhost-user:qsd,colour=red/etc/passwd",
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(BadAddress) as caught:
        uvirtio.open(text)
    assert caught.value.remedy


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "unheard"))
        for name in ("nothing", "file", "unheard"):
            with pytest.raises(NoSuchDevice, match="no back end listens"):
                uvirtio.open(f"vhost-user:rng:{tmp_path / name}", timeout=0.05)
    with pytest.raises(NoSuchDevice, match="no disk image"):
        uvirtio.open(f"vhost-user:qsd/{tmp_path / 'nothing'}")
    with pytest.raises(NoSuchDevice, match="no disk image") as caught:
        uvirtio.open(f"vhost-user:qsd/{tmp_path / ('x' * 256)}")
    assert caught.value.seen == "File name too long" and "truncate" not in str(caught.value.remedy)
    with pytest.raises(EnvironmentLack, match="no program"):
        uvirtio.open("vhost-user:rng,exec=no-such-program-here {fd}")
    with pytest.raises(EnvironmentLack, match="not installed"):
        uvirtio.open(f"vhost-user:qsd,binary=no-such-program-here/{tmp_path / 'file'}")


def test_a_back_end_whose_backlog_is_full(tmp_path: Path) -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(tmp_path / "s"))
        with pytest.raises(Busy, match="takes no connection"):
            uvirtio.open(f"vhost-user:rng:{tmp_path / 's'}", timeout=0.1)


@pytest.mark.parametrize("command", ["sh -c 'echo not like this >&2; exit 3' {fd}", "sh -c 'exit 3' {socket}"])
def test_a_program_that_ends_at_once(command: str) -> None:
    before = settled()
    with pytest.raises(OperationFailed) as caught:
        uvirtio.open(f"vhost-user:rng,exec={command}", timeout=5)
    assert "exit code 3" in str(caught.value.seen)
    assert descriptors() == before


def test_the_deny_list_names_sockets(tmp_path: Path, play: Play, address: str) -> None:
    play()
    denied = tmp_path / "root/etc/uvirtio/deny"
    denied.parent.mkdir(parents=True)
    roots = Roots.under(tmp_path / "root")
    denied.write_text("*\n")
    uvirtio.open(address, roots=roots).close()  # as qemu: devices: it is none of this machine's
    denied.write_text(f"{address}\n")
    with pytest.raises(Denied):
        uvirtio.open(address, roots=roots)
    with pytest.raises(Denied):
        uvirtio.open(f"vhost-user:rng:{tmp_path}/./s", roots=roots)
