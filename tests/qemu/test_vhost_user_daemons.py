"""vhost-user with the daemons of other projects: virtiofsd in C and in Rust, vsock, DPDK's testpmd, passt.

Which of them are here depends on PATH. ``tools/test --all`` puts those of Debian 12, 13 and sid there in turn; a
plain run has the C virtiofsd, which Debian 12's QEMU brings along. None of these tests sends what is known to end
a daemon.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

import uvirtio
from tests.qemu.test_cli import Command
from uvirtio.device import Device, QueueSpec
from uvirtio.device.queue import Queue
from uvirtio.diag import diagnose
from uvirtio.drivers.net import Net
from uvirtio.errors import DeviceGone, DeviceTimeout
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.virtqueue import Completion

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from lab.daemons import AS_ROOT, WITH_CORES

C_VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
RUST_VIRTIOFSD = shutil.which("virtiofsd")
TESTPMD = shutil.which("dpdk-testpmd")
PASST = shutil.which("passt")
VSOCK = shutil.which("vhost-device-vsock")


def as_root() -> Sequence[str]:
    """What makes a daemon root of a user namespace; skips where this user may have none."""
    done = subprocess.run([*AS_ROOT, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.skip(f"no user namespace of its own: {done.stderr.strip()}")
    return AS_ROOT


needs_dpdk = pytest.mark.skipif(TESTPMD is None, reason="no dpdk-testpmd in PATH")


class Running:
    """A daemon that a test has started; its socket is at ``path``, and what it said in ``log``."""

    def __init__(self, folder: Path, command: Sequence[str], *, within: Sequence[str] = ()) -> None:
        self.path = folder / "s"
        self.path.unlink(missing_ok=True)
        self.log = folder / "log"
        words = [*within, "setpriv", "--pdeathsig", "KILL", "--", *command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # testpmd ends at the end of it
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
            )
        deadline = time.monotonic() + 30
        while not self.path.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(20)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(20)
        assert self.process.stdin is not None
        self.process.stdin.close()


# --- file systems -----------------------------------------------------------------------------------------------


def file_server(kind: str, socket: str, folder: Path) -> tuple[list[str], Sequence[str]]:
    """The command of a virtiofsd, and what it runs within; skips where it is not here."""
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    if kind == "C":
        if not Path(C_VIRTIOFSD).exists():
            pytest.skip(f"no {C_VIRTIOFSD}: Debian 12's qemu-system-common has it")
        return [
            C_VIRTIOFSD,
            f"--socket-path={socket}",
            "-o",
            f"source={shared}",
            "-o",
            "sandbox=chroot",
        ], as_root()
    if RUST_VIRTIOFSD is None:
        pytest.skip("no virtiofsd in PATH")
    return [RUST_VIRTIOFSD, f"--socket-path={socket}", f"--shared-dir={shared}", "--sandbox=none"], ()


@pytest.mark.parametrize("kind", ["C", "Rust"])
def test_a_file_system_answers(tmp_path: Path, kind: str) -> None:
    command, within = file_server(kind, str(tmp_path / "s"), tmp_path)
    (tmp_path / "shared").chmod(0o750)
    with Running(tmp_path, command, within=within) as daemon:
        report = diagnose(f"vhost-user:fs,tag=shared:{daemon.path}")
        steps = {step.name: step for step in report.steps}
        assert report.verdict == "pass", steps
        assert steps["data path"].detail.startswith("tag 'shared'; FUSE 7.")
        assert steps["data path"].detail.endswith("root drwxr-x---")
        assert "virtiofsd" in steps["discover"].detail and "40 bytes" in steps["capabilities"].detail
        assert daemon.ended() is not None  # as each of them does with its front end


@pytest.mark.parametrize("kind", ["C", "Rust"])
def test_a_look_at_a_daemon_that_serves_one_connection(tmp_path: Path, kind: str) -> None:
    command, within = file_server(kind, str(tmp_path / "s"), tmp_path)
    with Running(tmp_path, command, within=within) as daemon:
        code, out, err = Command("inspect", f"vhost-user:fs:{daemon.path}").end()
        assert code == 0, err
        assert f"virtiofsd (pid {daemon.process.pid})" in out
        assert "0 bytes" in out and "memory slots:      not told" not in out
        assert "ended with this connection" in out
        daemon.ended()


@pytest.mark.parametrize("kind", ["C", "Rust"])
def test_a_file_system_that_the_address_starts(tmp_path: Path, kind: str) -> None:
    command, within = file_server(kind, "{socket}", tmp_path)
    words = " ".join([*within, *command])
    if kind == "Rust":
        words = words.replace("--socket-path={socket}", "--fd={fd}")  # takes a socket that listens already
    with uvirtio.open(f"vhost-user:fs,tag=x,exec={words}") as device:
        assert device.transport.config_length == 40 and device.transport.num_queues == 2
        device.start(wanted=0, queues=[QueueSpec(0, "hiprio", 8), QueueSpec(1, "requestq1", 8)])
        assert device.has(f.EVENT_IDX)


def test_a_daemon_that_replaces_its_socket_after_each_connection(tmp_path: Path) -> None:
    """As those of rust-vmm do: for some milliseconds there is none, or one that is about to be closed."""
    if VSOCK is None:
        pytest.skip("no vhost-device-vsock in PATH: Debian sid has it")
    command = [VSOCK, "--guest-cid", "7", "--socket", str(tmp_path / "s"), "--uds-path", str(tmp_path / "v")]
    with Running(tmp_path, command) as daemon:
        for _ in range(10):
            with uvirtio.open(f"vhost-user:vsock:{daemon.path}") as device:
                assert device.transport.read_config(0, 4) == 7 and device.transport.num_queues == 3
                device.start(wanted=0, queues=[QueueSpec(index, f"queue {index}", 64) for index in range(3)])
                assert device.has(f.EVENT_IDX) and not device.offered & f.mask(f.INDIRECT_DESC)


def test_a_host_sees_the_connection_that_diag_asks_for(tmp_path: Path) -> None:
    """The listener is an ordinary socket of the host: it has one connection, which ends without a byte."""
    if VSOCK is None:
        pytest.skip("no vhost-device-vsock in PATH: Debian sid has it")
    command = [VSOCK, "--guest-cid", "7", "--socket", str(tmp_path / "s"), "--uds-path", str(tmp_path / "v")]
    with Running(tmp_path, command) as daemon, socket.socket(socket.AF_UNIX) as listener:
        asked = f"vhost-user:vsock:{daemon.path}"
        quiet = diagnose(asked)
        assert quiet.verdict == "pass" and "no connection was asked for" in quiet.untried
        listener.bind(str(tmp_path / "v_9"))
        listener.listen()
        listener.settimeout(20)
        report = diagnose(asked, intrusive=True)
        (path,) = (step for step in report.steps if step.name == "data path")
        assert (report.verdict, path.verdict) == ("pass", "pass"), path
        assert "guest_cid 7; port 9 of the host answers RESPONSE" in path.detail
        with listener.accept()[0] as came:
            came.settimeout(20)
            assert came.recv(1) == b""


# --- networks: frames on queues without a driver ----------------------------------------------------------------

HEADER = 12  # 5.1.6: struct virtio_net_hdr
FRAME = 64
ROOM = 2048
SIZE = 64


GREETING = bytes(range(12)) + b"\x88\xb6" + bytes(50)


class Pairs:
    """Receive and transmit queues of a started device, one buffer for each frame."""

    def __init__(self, device: Device, pairs: int = 1) -> None:
        self.device = device
        specs = [
            QueueSpec(2 * pair + side, f"{'transmitq' if side else 'receiveq'}{pair + 1}", SIZE)
            for pair in range(pairs)
            for side in range(2)
        ]
        device.start(wanted=f.mask(f.Net.MRG_RXBUF), queues=specs)
        self.blocks = {spec.index: device.dma.alloc(SIZE * ROOM) for spec in specs}

    def offer(self, pair: int, count: int) -> None:
        """Give the device buffers to receive into."""
        block, queue = self.blocks[2 * pair], self.device.queues[2 * pair]
        for number in range(count):
            block.view[number * ROOM : (number + 1) * ROOM] = b"\xee" * ROOM
            queue.add([], block.segments(number * ROOM, ROOM), number)
        queue.kick()

    def send(self, pair: int, frames: Sequence[bytes]) -> None:
        """Send frames, and wait until the device has taken them all."""
        block, queue = self.blocks[2 * pair + 1], self.device.queues[2 * pair + 1]
        for number, frame in enumerate(frames):
            whole = bytes(HEADER) + frame
            block.view[number * ROOM : number * ROOM + len(whole)] = whole
            queue.add(block.segments(number * ROOM, len(whole)), [], number)
        queue.kick()
        self._await(queue, len(frames), "the frames to be sent")

    def receive(self, pair: int, count: int) -> list[bytes]:
        """Wait for that many frames; each without its header."""
        queue = self.device.queues[2 * pair]
        return self._frames(pair, self._await(queue, count, "frames to be received"))

    def greet(self, pair: int) -> None:
        """Send a frame until it comes back: a switch drops what comes while it is opening its ports."""
        deadline = time.monotonic() + 15
        back: list[Completion] = []

        def ready() -> bool:
            back.extend(self.device.queues[2 * pair].reap())
            return bool(back)

        while not back:
            assert time.monotonic() < deadline
            self.send(pair, [GREETING])
            self.device.wait(ready, timeout=0.1, what="a greeting", owed=False)
        assert set(self._frames(pair, back)) == {GREETING}

    def _frames(self, pair: int, done: list[Completion]) -> list[bytes]:
        block, found = self.blocks[2 * pair], []
        for one in done:
            start = one.cookie * ROOM
            assert struct.unpack_from("<H", block.view, start + 10) == (1,)  # num_buffers, with MRG_RXBUF
            found.append(bytes(block.view[start + HEADER : start + one.written]))
        return found

    def _await(self, queue: Queue, count: int, what: str) -> list[Completion]:
        done: list[Completion] = []

        def ready() -> bool:
            done.extend(queue.reap())
            return len(done) >= count

        self.device.wait(ready, timeout=15, what=what)
        return done


def switch(folder: Path, *, queues: int = 1, mode: str = "io") -> Running:
    """DPDK's testpmd without huge pages, with one vhost port; in mode ``io`` it sends back what it receives."""
    assert TESTPMD is not None
    eal = ["--no-huge", "-m", "64", "--no-pci", "--no-shconf", f"--file-prefix=t{os.getpid()}", "-l", "0,1"]
    eal += ["--vdev", f"net_vhost0,iface={folder / 's'},queues={queues}"]
    own = ["--auto-start", f"--forward-mode={mode}", "--port-topology=loop", f"--rxq={queues}", f"--txq={queues}"]
    own += ["--total-num-mbufs=4096", "--no-mlockall"]
    as_root()
    return Running(folder, [TESTPMD, *eal, "--", *own], within=WITH_CORES)


def frames(count: int, first: int) -> list[bytes]:
    """Frames of unlike contents and lengths, from an address to itself."""
    mac = bytes.fromhex("525400123456")
    return [
        (mac + mac + b"\x88\xb5" + bytes((first + number + at) % 256 for at in range(FRAME + number)))
        for number in range(count)
    ]


@needs_dpdk
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_driver_of_cards_sends_and_receives_in_batches(
    tmp_path: Path, ring: Literal["split", "packed"]
) -> None:
    with (
        switch(tmp_path) as daemon,
        uvirtio.open(f"vhost-user:net,mac=52:54:00:12:34:56:{daemon.path}", ring=ring) as device,
        uvirtio.Net(device) as net,
    ):
        assert net.mac.hex() == "525400123456" and net.link and list(device.queues) == [0, 1]
        net.send_all([GREETING], timeout=20)
        assert net.wait(timeout=20) and net.take() == [GREETING]
        count = 0
        while count < 6000:  # many times round the ring, which testpmd marks in batches, the first slot last
            sent = frames(SIZE // 2, count)
            net.send_all(sent, timeout=20)
            got: list[bytes] = []
            while len(got) < len(sent) and net.wait(timeout=20):
                got += net.take()
            assert got == sent
            count += len(sent)
        assert (net.findings, net.dropped) == ({}, {}) and net.counts.received == count + 1


@needs_dpdk
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_frames_come_back_over_two_pairs_of_queues(tmp_path: Path, ring: Literal["split", "packed"]) -> None:
    with switch(tmp_path, queues=2) as daemon:
        with uvirtio.open(f"vhost-user:net,mac=52:54:00:12:34:56:{daemon.path}", ring=ring) as device:
            assert "STATUS" in str(device.transport.description)
            for start in range(2):
                pairs = Pairs(device, 2)
                assert device.has(f.RING_PACKED) is (ring == "packed")
                assert device.has(f.IN_ORDER) and device.has(f.EVENT_IDX) and device.has(f.Net.MRG_RXBUF)
                assert device.transport.status() == 0xF  # kept by the daemon
                for pair in range(2):
                    pairs.offer(pair, SIZE)
                    pairs.greet(pair)
                    sent = frames(SIZE // 2, 7 * start + pair)
                    pairs.send(pair, sent)
                    got = [frame for frame in pairs.receive(pair, len(sent)) if frame != GREETING]
                    while len(got) < len(sent):  # a greeting may have been late, and not lost
                        got += [frame for frame in pairs.receive(pair, 1) if frame != GREETING]
                    assert got == sent
                assert not any(queue.ring.findings for queue in device.queues.values())
                device.stop()
        with uvirtio.open(f"vhost-user:net:{daemon.path}", interrupts=[InterruptMode.POLLING]) as device:
            pairs = Pairs(device)
            pairs.offer(0, SIZE)
            pairs.greet(0)


@needs_dpdk
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_driver_sends_and_receives(tmp_path: Path, ring: Literal["split", "packed"]) -> None:
    address = f"vhost-user:net,mac=52:54:00:12:34:56:{tmp_path / 's'}"
    with switch(tmp_path), uvirtio.open(address, ring=ring) as device, Net(device) as card:
        assert card.mac.hex(":") == "52:54:00:12:34:56" and card.link and card.pairs == 1
        deadline = time.monotonic() + 15
        while not card.take():  # it drops what comes while it is opening its ports
            assert time.monotonic() < deadline
            card.send_all([GREETING])
            card.wait(timeout=0.1)
        got: list[bytes] = []
        for first in range(0, 400, 40):  # more than the rings hold
            sent = frames(40, first)
            card.send_all(sent)
            back: list[bytes] = []
            while len(back) < len(sent):
                back += [bytes(one.data) for one in card.receive(timeout=15) if bytes(one.data) != GREETING]
            assert back == sent
            got += back
        assert len(got) == 400 and not card.dropped and not card.findings


@needs_dpdk
def test_frames_that_nothing_asked_for(tmp_path: Path) -> None:
    with switch(tmp_path, mode="txonly") as daemon, uvirtio.open(f"vhost-user:net:{daemon.path}") as device:
        pairs = Pairs(device)
        pairs.offer(0, 16)
        for frame in pairs.receive(0, 16):
            assert len(frame) == 64 and frame[12:14] == b"\x08\x00" and frame[23] == 17  # UDP over IPv4
        with pytest.raises(DeviceTimeout):  # all buffers are back: it has none to write to
            device.wait(lambda: bool(device.queues[0].reap()), timeout=0.2, what="nothing")


@needs_dpdk
def test_a_switch_that_is_killed(tmp_path: Path) -> None:
    with switch(tmp_path, mode="rxonly") as daemon, uvirtio.open(f"vhost-user:net:{daemon.path}") as device:
        pairs = Pairs(device)
        pairs.send(0, frames(4, 1))
        pairs.offer(0, 1)
        threading.Timer(0.2, daemon.process.send_signal, [signal.SIGKILL]).start()
        with pytest.raises(DeviceGone) as caught:
            pairs.receive(0, 1)
        assert "has ended" in caught.value.message and "dpdk-testpmd" in str(caught.value.seen)


# --- passt: answers without a machine ---------------------------------------------------------------------------

OURS, GATEWAY = bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2])


def test_passt_answers_who_has_an_address(tmp_path: Path) -> None:
    if (
        PASST is None
        or "--vhost-user" not in subprocess.run([PASST, "--help"], capture_output=True, text=True).stdout
    ):
        pytest.skip("no passt with --vhost-user in PATH")
    network = ["-4", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "-t", "none", "-u", "none"]
    with Running(
        tmp_path, [PASST, "--vhost-user", "--foreground", "--socket", str(tmp_path / "s"), *network]
    ) as one:
        mac = bytes.fromhex("525400123456")
        with uvirtio.open(f"vhost-user:net,mac={mac.hex(':')}:{one.path}") as device:
            assert device.transport.num_queues == 2 and not device.has(f.EVENT_IDX)
            pairs = Pairs(device)
            pairs.offer(0, 8)
            question = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + mac + OURS + bytes(6) + GATEWAY
            pairs.send(0, [b"\xff" * 6 + mac + b"\x08\x06" + question])
            answer = pairs.receive(0, 1)[0]
            assert answer[:6] == mac and answer[12:14] == b"\x08\x06"
            assert answer[20:22] == b"\0\2"  # a reply
            assert answer[28:32] == GATEWAY and answer[38:42] == OURS
        # It takes the next connection; what diag says of its headers (5.1.6.4.1) is its own affair.
        report = diagnose(f"vhost-user:net,mac={mac.hex(':')}:{one.path}")
        steps = {step.name: step for step in report.steps}
        assert report.verdict in ("pass", "warn") and not report.untried
        assert "2 ARP requests sent, 2 answered" in steps["data path"].detail
