"""vhost-user with QEMU's storage daemon as the back end: the bodies of the block driver, and a daemon that fails.

The witness is the disk's file, and in one test the memory that the daemon shares.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.bodies import Cell, adopt, blk
from tests.qemu.test_cli import Command
from tests.support.descriptors import descriptors, settled
from uvirtio.drivers.blk import SECTOR_SIZE, Blk
from uvirtio.errors import DeviceGone, DeviceTimeout, NoSuchDevice, OperationFailed
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f

PROGRAM = "qemu-storage-daemon"
pytestmark = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")

SIZE = 8 << 20
FILE = "driver=file,node-name=disk,filename={file}"
SLOW = "driver=null-co,node-name=disk,size=1048576,read-zeroes=on,latency-ns=30000000000"
"""Takes half a minute for each request."""

PER_QUEUE, POLLING = InterruptMode.PER_QUEUE, InterruptMode.POLLING


class Daemon:
    """One qemu-storage-daemon that a test has started; its disk is in ``file``, its socket at ``path``."""

    def __init__(self, folder: Path, disk: str = FILE, *objects: str, queues: int = 2) -> None:
        self.file = folder / "disk"
        if not self.file.exists():
            self.file.write_bytes(bytes(SIZE))
        self.path = folder / "s"
        self.path.unlink(missing_ok=True)
        disk = disk.format(file=self.file)
        export = f"type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues={queues}"
        command = [
            PROGRAM,
            *objects,
            "--blockdev",
            disk,
            "--export",
            f"{export},addr.type=unix,addr.path={self.path}",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.address = f"vhost-user:blk:{self.path}"
        deadline = time.monotonic() + 20
        while not self.path.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(20)


# --- the bodies of the driver ---------------------------------------------------------------------------------


def no_qmp(command: str, **_: Any) -> Any:
    raise AssertionError(f"{command}: this daemon keeps no books of an export")


@pytest.fixture
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cell]:
    queues, mode = request.param
    with Daemon(tmp_path, queues=queues) as daemon, daemon.file.open("rb") as file:
        yield Cell(
            open=lambda: uvirtio.open(daemon.address, interrupts=[mode]),
            qmp=no_qmp,
            events=lambda *_: [],
            path="",
            mode=mode,
            translated=False,
            extra={"file": file.fileno(), "serial": "vhost_user_blk", "no books": True},
        )


CELLS = [
    pytest.param((queues, mode), id=f"{queues}-{mode.value}")
    for queues, mode in ((1, PER_QUEUE), (4, PER_QUEUE), (1, POLLING))
]

# Two bodies have QMP for their subject; below they are with a witness of their own.
globals().update(
    (name, body)
    for name, body in adopt(blk, CELLS).items()
    if name not in ("test_blk_the_host_counts_the_flushes", "test_blk_the_host_makes_it_larger")
)


def test_the_write_cache_is_switched(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, uvirtio.open(daemon.address) as device, Blk(device, allow_write=True) as disk:
        for on in (True, False):
            disk.set_write_cache(on)
            assert disk.write_cache is on
        disk.write(3, b"y" * SECTOR_SIZE)
        assert disk.flush() in (True, False)
        assert daemon.file.read_bytes()[3 * SECTOR_SIZE : 4 * SECTOR_SIZE] == b"y" * SECTOR_SIZE


# --- what is special here -------------------------------------------------------------------------------------


def test_what_it_is_and_who_is_behind_it(tmp_path: Path) -> None:
    with Daemon(tmp_path, queues=4) as daemon, uvirtio.open(daemon.address) as device, Blk(device, queues=4):
        assert f"{PROGRAM} (pid {daemon.process.pid})" in device.transport.description
        assert device.transport.kind == "vhost-user"
        assert device.transport.num_queues == len(device.queues) == 4
        assert device.has(f.EVENT_IDX) and device.has(f.INDIRECT_DESC)
        assert not device.offered & f.mask(24, 26, 30)


def test_a_device_starts_again_over_one_connection(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, uvirtio.open(daemon.address) as device:
        for number in range(3):
            with Blk(device, allow_write=True) as disk:
                disk.write(number, bytes([65 + number]) * SECTOR_SIZE)
                assert disk.read(0, number + 1) == daemon.file.read_bytes()[: (number + 1) * SECTOR_SIZE]


def test_opening_and_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        before = settled()
        for _ in range(20):
            with uvirtio.open(daemon.address) as device, Blk(device) as disk:
                disk.read(0, 1)
        assert descriptors() == before


@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING])
def test_a_daemon_that_is_killed_while_a_read_sleeps(tmp_path: Path, mode: InterruptMode) -> None:
    with Daemon(tmp_path, SLOW) as daemon, uvirtio.open(daemon.address, interrupts=[mode]) as device:
        with contextlib.suppress(DeviceGone), Blk(device) as disk:
            killer = threading.Timer(0.3, daemon.signal, [signal.SIGKILL])
            killer.start()
            with pytest.raises(DeviceGone) as caught:  # and not DeviceTimeout, after 25 seconds
                disk.read(0, 1, timeout=25)
            killer.join()
            assert "has ended" in caught.value.message and caught.value.about == "back-end-ended"
            assert f"{PROGRAM} (pid {daemon.process.pid}) has ended" in str(caught.value.seen)
        assert device.state == "gone"


def test_a_daemon_that_the_address_started_is_killed(image: Path) -> None:
    with uvirtio.open(f"vhost-user:qsd/{image}") as device, contextlib.suppress(DeviceGone), Blk(device) as disk:
        node: Any = device.transport.backend
        os.kill(node.peer.pid, signal.SIGKILL)
        with pytest.raises(DeviceGone) as caught:
            while True:
                disk.read(0, 1)
        assert "ended by SIGKILL" in str(caught.value.seen)


@pytest.mark.fault(46, level="K")
def test_a_daemon_that_is_stopped(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        with uvirtio.open(daemon.address, timeout=3) as device:
            disk = Blk(device)
            daemon.signal(signal.SIGSTOP)
            with pytest.raises(DeviceTimeout):
                disk.read(0, 1, timeout=0.3)
            with contextlib.suppress(DeviceGone, DeviceTimeout):
                disk.close()
        with pytest.raises(DeviceTimeout, match="does not answer"):
            uvirtio.open(daemon.address, timeout=0.5)
        daemon.signal(signal.SIGCONT)
        with uvirtio.open(daemon.address) as device, Blk(device) as disk:
            assert disk.read(0, 1) == bytes(SECTOR_SIZE)


def test_a_daemon_that_was_restarted_is_another_device(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with Daemon(tmp_path) as first:
            device = stack.enter_context(uvirtio.open(first.address))
            with Blk(device) as disk:
                disk.read(0, 1)
        with Daemon(tmp_path) as second:
            with pytest.raises(DeviceGone):
                Blk(device)
            with uvirtio.open(second.address) as again, Blk(again) as disk:
                assert disk.read(0, 1) == bytes(SECTOR_SIZE)


def test_a_daemon_that_is_busy_with_another_front_end(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, uvirtio.open(daemon.address) as device, Blk(device) as disk:
        with pytest.raises(DeviceTimeout) as caught:
            uvirtio.open(daemon.address, timeout=0.5)
        assert "another front end" in str(caught.value.remedy)
        assert disk.read(0, 1) == bytes(SECTOR_SIZE)


@pytest.mark.fault(31)
def test_late_writes_meet_no_memory_that_is_in_use(tmp_path: Path) -> None:
    """This daemon answers GET_VRING_BASE at once, and goes on with the requests that it has."""
    limit = "throttle-group,id=t,x-iops-read=5,x-iops-read-max=5,x-iops-read-max-length=1"
    slow = "driver=throttle,node-name=disk,throttle-group=t,file.driver=file,file.filename={file}"
    (tmp_path / "disk").write_bytes(b"\xa7" * SIZE)
    with Daemon(tmp_path, slow, "--object", limit) as daemon, uvirtio.open(daemon.address) as device:
        node: Any = device.transport.backend
        disk = Blk(device)
        # One kick for all: when the first is done, the daemon has taken the others, too.
        requests = [disk.submit_read(sector, 1, kick=sector == 11) for sector in range(12)]
        assert requests[0].result() == b"\xa7" * SECTOR_SIZE
        old = node._memory
        witness = os.dup(old.fd)
        try:
            device.reset()
            begin = os.pread(witness, 1 << 20, 0).count(b"\xa7" * SECTOR_SIZE)
            assert old.given_up and node._memory is None
            device.start(wanted=0, queues=[])  # another connection: the daemon takes it when it has done the rest
            new = device.dma.alloc(1 << 20)  # as much as the rings and buffers of before, and more
            late = os.pread(witness, 1 << 20, 0).count(b"\xa7" * SECTOR_SIZE) - begin
            assert late > 0, "the daemon wrote nothing after the reset: is what this guards against over?"
            assert bytes(new.view) == bytes(1 << 20)
        finally:
            os.close(witness)


def test_the_host_makes_it_larger(tmp_path: Path) -> None:
    """Daemons before QEMU 10.0 say nothing, and keep the capacity for the connection."""
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=20).stdout
    if int(said.split()[2].partition(".")[0]) < 10:
        pytest.skip("qemu-storage-daemon 10.0 or later")
    path = tmp_path / "qmp"
    monitor = (f"--chardev=socket,id=m,path={path},server=on,wait=off", "--monitor=chardev=m")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(tmp_path, FILE, *monitor))
        disk = stack.enter_context(Blk(stack.enter_context(uvirtio.open(daemon.address))))
        qmp = stack.enter_context(socket.socket(socket.AF_UNIX))
        qmp.settimeout(20)
        qmp.connect(str(path))
        resize = {"node-name": "disk", "size": SIZE + (1 << 20)}
        for command in ({"execute": "qmp_capabilities"}, {"execute": "block_resize", "arguments": resize}):
            qmp.sendall(json.dumps(command).encode())
            qmp.recv(4096)
        assert disk.wait_for_change(timeout=20)
        assert disk.capacity * SECTOR_SIZE == SIZE + (1 << 20)


# --- started by the address -----------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    where = tmp_path / 'a disk,"x".img'  # what would end an argument of QEMU's, or a word of a shell's
    where.write_bytes(bytes(range(256)) * 4096)
    return where


def test_a_disk_image_by_its_name(image: Path) -> None:
    with uvirtio.open(f"vhost-user:qsd,queues=3/{image}") as device:
        pid = int(str(device.transport.description).partition("pid ")[2].partition(")")[0])
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/fd/0").resolve() == Path("/dev/null")
        with Blk(device, queues=3, allow_write=True) as disk:
            assert len(device.queues) == 3
            assert disk.read(0, 2048) == image.read_bytes()
            disk.write(7, b"z" * SECTOR_SIZE)
    assert image.read_bytes()[7 * SECTOR_SIZE : 8 * SECTOR_SIZE] == b"z" * SECTOR_SIZE
    assert not Path(f"/proc/{pid}").exists()


def test_a_disk_image_that_may_not_be_written(image: Path) -> None:
    image.chmod(0o444)
    with uvirtio.open(f"vhost-user:qsd/{image}") as device, Blk(device) as disk:
        assert disk.read_only
        assert disk.read(0, 1) == image.read_bytes()[:SECTOR_SIZE]


@pytest.fixture(params=["short", "long" * 26])
def scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of temporary files; in a long one no socket can have its path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        found = Path(top, request.param)
        found.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(found))
        yield found


@pytest.mark.parametrize("place", ["addr.type=fd,addr.str={fd}", "addr.type=unix,addr.path={socket}"])
def test_a_command_is_started_and_ended(image: Path, place: str, scratch: Path, tmp_path: Path) -> None:
    plain = image.rename(tmp_path / "plain")
    command = (
        f"{PROGRAM} --blockdev driver=file,node-name=d,filename={plain} "
        f"--export type=vhost-user-blk,id=e,node-name=d,{place}"
    )
    with uvirtio.open(f"vhost-user:blk,exec={command}") as device:
        with Blk(device) as disk:
            assert disk.read(0, 2048) == plain.read_bytes()
        node: Any = device.transport.backend
        pid, path = node._daemon.pid, Path(node._daemon.path)
        made = list(scratch.iterdir())
        if "{fd}" in place:  # its name went before the daemon started, so a killed driver leaves nothing
            assert made == [] and path.is_socket()
        else:
            assert path.parent.parent == (scratch if scratch.name == "short" else Path("/tmp"))
            assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not Path(f"/proc/{pid}").exists()
    assert not path.exists() and list(scratch.iterdir()) == []
    assert "{fd}" in place or not path.parent.exists()


def test_a_daemon_that_refuses_its_arguments_is_quoted(image: Path) -> None:
    with pytest.raises(OperationFailed) as caught:
        uvirtio.open(f"vhost-user:blk,exec={PROGRAM} --export type=nonsense,addr={{fd}}")
    assert "nonsense" in str(caught.value.seen)


def test_the_commands(image: Path) -> None:
    def run(verb: str, *rest: str) -> tuple[int, Any]:
        code, out, _ = Command("blk", verb, f"vhost-user:qsd/{image}", *rest, "--json").end()
        return code, json.loads(out)

    code, told = run("info")
    assert code == 0 and told["id"] == "vhost_user_blk" and told["sectors"] == 2048
    code, told = run("read", "0", "512")
    assert code == 0 and bytes.fromhex(told["hex"]) == image.read_bytes()[:512]
    assert run("write", "512", "--in", "/dev/null")[1]["error"]["code"] == "UV-REFUSED-WRITE"
    code, out, _ = Command("diag", f"vhost-user:qsd/{image}", "--json").end()
    steps = {step["name"]: step for step in json.loads(out.splitlines()[-1])["steps"]}
    assert code == 0
    assert steps["data path"]["verdict"] == "pass" and "2048 sectors" in steps["data path"]["detail"]
    assert PROGRAM in steps["discover"]["detail"]
    code, out, _ = Command("reset", f"vhost-user:qsd/{image}", "--json").end()
    assert code == 0


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDevice):
        uvirtio.open(f"vhost-user:blk:{tmp_path / 's'}")
