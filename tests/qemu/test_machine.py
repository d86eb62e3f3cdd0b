"""``uvirtio.qemu.Machine`` as a test writer uses it: opening, QMP, images, hot-plug, and a QEMU that is killed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import uvirtio
from tests.qemu.machines import needs
from tests.support.children import qemus
from uvirtio.backends.qemu.qmp import connect
from uvirtio.device import Device
from uvirtio.errors import (
    BadAddress,
    Busy,
    Closed,
    DeviceGone,
    NotSupported,
    OperationFailed,
    QemuFailed,
    UsageError,
    UvirtioError,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.qemu import Machine

MIB = 1 << 20
SOCKETS = {"pc": 0, "q35": 2, "virt": 1, "riscv64": 1, "loongarch64": 1}
"""Machines that devices can be plugged into, and the root ports that they need for it."""


@pytest.fixture(params=[pytest.param(name, marks=needs(name)) for name in SOCKETS])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param, ["virtio-balloon-pci"], root_ports=SOCKETS[request.param], timeout=20) as made:
        yield made


# --- opening --------------------------------------------------------------------------------------------------


def test_a_device_is_opened_by_the_name_of_the_parameter() -> None:
    with Machine("pc", ["virtio-rng-pci"], timeout=20) as machine:
        machine.open(which=0).close()
        machine.unplug(which=machine.function(which=0))


@pytest.mark.parametrize("name", ["q35", "microvm"])
def test_a_device_of_a_machine_is_opened_by_number_and_by_function(name: str) -> None:
    form = "device" if name == "microvm" else "pci"
    with Machine(name, [f"virtio-rng-{form}", f"virtio-balloon-{form}"], timeout=20) as machine:
        with machine.open() as device, uvirtio.Rng(device) as rng:
            assert device.timeout == 20
            assert device.type == "rng" and len(rng.read(16)) == 16
        with machine.open(1, timeout=7, interrupts=[InterruptMode.POLLING]) as device:
            assert (device.type, device.timeout) == ("balloon", 7)
            assert device.guest is machine.functions[1]
        with machine.open(machine.functions[0]) as device, uvirtio.Rng(device) as rng:
            assert len(rng.read(16)) == 16
        options = uvirtio.OpenOptions(timeout=3, ring="split")
        with machine.open(0, options=options) as device:
            assert (device.timeout, device.ring) == (3, "split")
        for wrong in (2, -1, "0", None, 1.5):
            with pytest.raises(UsageError, match="no function of this machine"):
                machine.open(wrong)  # type: ignore[arg-type]


def test_arguments_that_cannot_be_are_refused_before_qemu_is_started() -> None:
    before = qemus()
    for timeout in (0, -1, 1e9, 1e18, math.inf, math.nan):
        with pytest.raises(UsageError, match="timeout cannot be"):
            Machine(devices=["virtio-rng-pci"], timeout=timeout)
    for name in ("devices", "drives", "arguments"):  # a text is a sequence, of letters
        with pytest.raises(UsageError, match=f"{name} is a list") as caught:
            Machine(**{name: "virtio-rng-pci"})  # type: ignore[arg-type]
        assert caught.value.expected == f"{name}=['virtio-rng-pci']"
    assert qemus() == before


def test_a_wait_for_events_that_never_ends_is_refused() -> None:
    with Machine(devices=["virtio-rng-pci"]) as machine:
        for timeout in (math.inf, -math.inf, math.nan):
            with pytest.raises(UsageError, match="a time-out cannot be"):
                machine.qmp_events("NEVER", timeout)
        assert machine.qmp_events("NEVER", -1) == []
        machine.qmp("stop")
        assert machine.qmp_events("STOP", 1e300)


def test_open_takes_a_function_and_starts_no_second_qemu() -> None:
    with Machine(devices=["virtio-rng-pci", "virtio-balloon-pci"]) as machine:
        before = qemus()
        assert str(machine.pid) in before
        with uvirtio.open(machine.functions[1]) as device, uvirtio.Balloon(device) as balloon:
            balloon.inflate(256)
            assert machine.qmp("query-balloon")["actual"] == machine.memory.size - MIB
        for function in machine.functions:
            with pytest.raises(BadAddress, match="already running") as caught:
                uvirtio.open(function.address)
            assert "machine.open(0)" in str(caught.value.remedy)
        assert qemus() == before


def test_a_function_has_one_device_at_a_time() -> None:
    with Machine(devices=["virtio-rng-pci"]) as machine:
        with machine.open() as device:
            with pytest.raises(Busy, match="open already") as caught:
                machine.open(0)
            assert repr(device) == caught.value.seen
        for _ in range(3):
            with machine.open() as device, uvirtio.Rng(device) as rng:
                assert len(rng.read(8)) == 8
        assert device.state == "closed"
    with pytest.raises(Closed):
        machine.open()
    assert repr(machine) == "<Machine q35, closed>"


def test_a_device_knows_the_guest_that_it_is_in() -> None:
    with uvirtio.open("qemu:pc,ram=64M/virtio-balloon-pci") as device, uvirtio.Balloon(device) as balloon:
        guest = device.guest
        assert guest is not None
        assert guest.ram == 64 * MIB
        balloon.inflate(256)
        assert guest.qmp("query-balloon")["actual"] == 63 * MIB
        path = f"/machine/peripheral/{guest.id}"
        assert guest.qmp("qom-get", path=path, property="type") == "virtio-balloon-pci"
        with pytest.raises(QemuFailed, match="no-such-command"):
            guest.qmp("no-such-command")
    with pytest.raises(Closed):
        guest.qmp("query-balloon")


# --- images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk, of mine.img"
    path.write_bytes(b"first sector".ljust(512, b".") + bytes(2 * MIB - 512))
    return path


def test_a_disk_of_ones_own_by_address(image: Path, tmp_path: Path) -> None:
    plain = tmp_path / "a.img"
    image.rename(plain)
    with (
        uvirtio.open(f"qemu:q35,file={plain}/virtio-blk-pci") as device,
        uvirtio.Blk(device, allow_write=True) as disk,
    ):
        assert disk.capacity == 4096
        assert disk.read(0, 1).startswith(b"first sector")
        disk.write(4095, b"last".ljust(512, b"-"))
        disk.flush()
    assert plain.read_bytes()[-512:].startswith(b"last-")


def test_a_machine_with_several_disks(image: Path) -> None:
    devices = ["virtio-blk-pci", "virtio-rng-pci", "virtio-blk-pci,serial=mine"]
    with Machine(devices=devices, drives=[None, image]) as machine:
        with machine.open(0) as device, uvirtio.Blk(device) as disk:
            assert disk.capacity == 64 * MIB // 512
        with machine.open(2) as device, uvirtio.Blk(device) as disk:
            assert disk.read(0, 1).startswith(b"first sector")
            assert disk.identify() == "mine"
        assert list(machine.files) == [machine.functions[0].id]


def test_an_image_that_may_not_be_written_is_read_only(image: Path) -> None:
    image.chmod(0o444)
    machine = Machine(devices=["virtio-blk-pci"], drives=[image])
    with machine, machine.open() as device, uvirtio.Blk(device, allow_write=True) as disk:
        assert disk.read_only
        assert disk.read(0, 1).startswith(b"first sector")


def test_one_image_is_not_given_to_two_machines(image: Path) -> None:
    with Machine(devices=["virtio-blk-pci"], drives=[image]), pytest.raises(QemuFailed) as caught:
        Machine(devices=["virtio-blk-pci"], drives=[image])
    assert "lock" in str(caught.value.seen)


def test_a_diagnosis_does_not_resize_an_image_that_is_not_ours(image: Path) -> None:
    from uvirtio.diag import diagnose

    with Machine(devices=["virtio-blk-pci", "virtio-blk-pci"], drives=[image]) as machine:
        mine, ours = (diagnose(function) for function in machine.functions)
    assert (mine.verdict, ours.verdict) == ("pass", "pass")
    changes = {step.name: step.verdict for step in mine.steps}["configuration change"]
    assert changes == "skip" and image.stat().st_size == 2 * MIB
    assert {step.name: step.verdict for step in ours.steps}["configuration change"] == "pass"


# --- hot-plug ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", InterruptMode)
def test_a_device_that_is_plugged_in_works_in_every_interrupt_mode(machine: Machine, mode: InterruptMode) -> None:
    function = machine.plug("virtio-rng-pci")
    assert machine.functions[-1] is function
    with machine.open(function, interrupts=[mode]) as device, uvirtio.Rng(device) as rng:
        assert device.transport.interrupt_mode is mode
        assert rng.read(32) != rng.read(32)
        assert not device.counters.missed_interrupts or mode is not InterruptMode.POLLING
    with machine.open(0) as device, uvirtio.Balloon(device) as balloon:
        balloon.inflate(256)
        assert machine.qmp("query-balloon")["actual"] == machine.memory.size - MIB


@pytest.mark.parametrize("given", ["nothing", "an image", "a command"])
def test_what_was_given_to_qemu_while_it_ran_is_left_in_order(given: str, image: Path) -> None:
    """A format such as qcow2 is complete in its file only when QEMU has quit."""
    with Machine(devices=["virtio-rng-pci"], root_ports=1) as machine:
        if given == "an image":
            machine.plug("virtio-blk-pci", drive=image)
        elif given == "a command":
            machine.qmp("query-status")
    assert machine.process._code == (-signal.SIGKILL if given == "nothing" else 0)


def test_sockets_are_free_again_after_an_unplug(machine: Machine) -> None:
    before = [function.address for function in machine.functions]
    for number in range(4):
        device = "virtio-blk-pci" if number % 2 else "virtio-keyboard-pci"
        function = machine.plug(device)
        with machine.open(function) as opened:
            driver = uvirtio.Blk(opened) if number % 2 else uvirtio.Input(opened)
            driver.close()
        machine.unplug(function)
        assert [one.address for one in machine.functions] == before
        with pytest.raises(DeviceGone, match="is gone"):
            machine.open(function)
    assert machine.files == {} and machine.qmp("query-fdsets") == []
    assert machine.qmp("query-named-block-nodes") == []


def test_a_disk_that_is_plugged_in_has_its_image_or_one_of_ours(machine: Machine, image: Path) -> None:
    function = machine.plug("virtio-blk-pci,serial=a b", drive=image)
    with machine.open(function) as device, uvirtio.Blk(device, allow_write=True) as disk:
        assert disk.read(0, 1).startswith(b"first sector")
        assert disk.identify() == "a b"
        disk.write(1, b"x" * 512)
        disk.flush()
    machine.unplug(function)
    assert image.read_bytes()[512:1024] == b"x" * 512
    function = machine.plug("virtio-blk-pci")
    with machine.open(function) as device, uvirtio.Blk(device, allow_write=True) as disk:
        disk.write(0, b"y" * 512)
        disk.flush()
        assert os.pread(machine.files[function.id], 4, 0) == b"yyyy"


def uses(device: Device) -> Callable[[], object]:
    """A call that talks to the device, for what follows its removal."""
    rng = uvirtio.Rng(device)
    rng.read(8)
    return lambda: rng.read(8)


@pytest.mark.parametrize("mode", InterruptMode)
def test_an_unplugged_device_is_gone_and_that_is_said(machine: Machine, mode: InterruptMode) -> None:
    function = machine.plug("virtio-rng-pci")
    with machine.open(function, interrupts=[mode]) as device:
        use = uses(device)
        machine.unplug(function)
        with pytest.raises(DeviceGone) as caught:
            use()
        assert caught.value.seen == "the host removed the device (hot-unplug)"
        assert "uvirtio list" not in str(caught.value.remedy)
        assert device.state == "gone"
        assert function in {*machine.functions, function} and function not in machine.functions
        fresh = machine.plug("virtio-rng-pci")  # into the same place, while the old device is still open
        with machine.open(fresh) as other:
            again = uses(other)
            device.close()
            again()
    assert repr(function).endswith("closed>")


def test_an_unplug_ends_a_wait_in_another_thread(machine: Machine) -> None:
    function = machine.plug("virtio-keyboard-pci")
    with machine.open(function) as device, uvirtio.Input(device) as keyboard:
        found: list[BaseException] = []
        waiting = threading.Event()

        def read() -> None:
            try:
                waiting.set()
                keyboard.read(timeout=60)
            except UvirtioError as error:
                found.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        waiting.wait(10)
        machine.unplug(function)
        thread.join(30)
        assert not thread.is_alive()
        assert [type(error) for error in found] == [DeviceGone]


def test_a_device_that_others_unplug_is_gone_too(machine: Machine) -> None:
    """As by a tool on the QMP socket: the machine learns of it only by QEMU's report."""
    function = machine.plug("virtio-rng-pci")
    with machine.open(function) as device:
        use = uses(device)
        machine._take_out(function.id)
        with pytest.raises(DeviceGone, match="is gone"):
            use()


def test_what_cannot_be_plugged_in_is_said() -> None:
    with Machine("q35", ["virtio-rng-pci"], root_ports=1) as machine:
        with pytest.raises(NotSupported, match="cannot be unplugged"):
            machine.unplug(0)
        for device, error in (
            ("virtio-rng-device", BadAddress),
            ("e1000", BadAddress),
            ("virtio-mem-pci", NotSupported),
            ("virtio-rng-pci,id=dev0", UsageError),
            ("virtio-rng-pci,nonsense=1", QemuFailed),
            ("virtio-nothing-pci", QemuFailed),
        ):
            with pytest.raises(error):
                machine.plug(device)
        function = machine.plug("virtio-rng-pci,id=mine")
        assert function.id == "mine"
        with pytest.raises(NotSupported, match="no free socket") as caught:
            machine.plug("virtio-rng-pci")
        assert "root_ports=2" in str(caught.value.remedy)
        machine.unplug(function)
        with pytest.raises(UsageError, match="mine is taken"):
            machine.plug("virtio-rng-pci,id=mine")
        machine.plug("virtio-rng-pci")
    with Machine("q35") as machine, pytest.raises(NotSupported, match="no free socket"):
        machine.plug("virtio-rng-pci")
    with Machine("microvm") as machine, pytest.raises(NotSupported, match="cannot be plugged"):
        machine.plug("virtio-rng-device")
    with pytest.raises(Closed):
        machine.plug("virtio-rng-device")


def test_a_legacy_device_finds_no_ports_behind_a_root_port_and_leaves_nothing_behind() -> None:
    with Machine("q35", root_ports=1) as machine:
        with pytest.raises(OperationFailed, match="no address space"):
            machine.plug("virtio-rng-pci,disable-modern=on,disable-legacy=off")
        assert machine.functions == []
        machine.plug("virtio-rng-pci")
    with Machine("pc") as machine:
        function = machine.plug("virtio-rng-pci,disable-modern=on,disable-legacy=off")
        with machine.open(function) as device, uvirtio.Rng(device) as rng:
            assert device.transport.legacy and len(rng.read(8)) == 8


# --- a QEMU that is killed ------------------------------------------------------------------------------------


KILLED = [
    *(("q35", mode) for mode in InterruptMode),
    ("microvm", InterruptMode.INTX),
    ("microvm", InterruptMode.POLLING),
]


@pytest.mark.parametrize(("name", "mode"), KILLED)
def test_a_killed_qemu_is_told_as_that_and_never_as_hot_unplug(name: str, mode: InterruptMode) -> None:
    form = "device" if name == "microvm" else "pci"
    for _ in range(3):
        with Machine(name, [f"virtio-rng-{form}"]) as machine, machine.open(interrupts=[mode]) as device:
            use = uses(device)
            os.kill(machine.pid, signal.SIGKILL)
            with pytest.raises(DeviceGone) as caught:
                use()
            assert caught.value.seen == "QEMU was ended by SIGKILL"
            assert caught.value.remedy == "open the device again"
            assert device.state == "gone"


KILLED_IN = {
    "rng": ("rng", lambda device: uvirtio.Rng(device).read, (8,)),
    "blk": ("blk", lambda device: uvirtio.Blk(device).read, (0, 1)),
    "inflate": ("balloon", lambda device: uvirtio.Balloon(device).inflate, (512,)),
    "input": ("keyboard", lambda device: uvirtio.Input(device).read_frame, ()),
    "bring-up": ("rng", lambda device: uvirtio.Rng, None),
}
"""By what is going on: the device, what makes the call ready before QEMU is killed, and its arguments."""


@pytest.mark.parametrize("what", KILLED_IN)
def test_in_whatever_call_a_killed_qemu_is_told_and_again_in_the_next(what: str) -> None:
    kind, ready, arguments = KILLED_IN[what]
    for _ in range(2):
        with Machine(devices=[f"virtio-{kind}-pci"]) as machine, machine.open() as device:
            call = ready(device)
            os.kill(machine.pid, signal.SIGKILL)
            for _ in range(2):
                with pytest.raises(DeviceGone) as caught:
                    call(*((device,) if arguments is None else arguments))
                assert caught.value.seen == "QEMU was ended by SIGKILL"
            assert device.state == "gone"


def test_a_qemu_that_is_killed_during_a_wait_is_told_as_that() -> None:
    for pause in (0, 0.05, 0.2):
        with uvirtio.open("qemu:virtio-keyboard-pci") as device, uvirtio.Input(device) as keyboard:
            assert device.guest is not None
            pid = int(device.transport.description.rpartition("process ")[2])
            killer = threading.Timer(pause, os.kill, (pid, signal.SIGKILL))
            killer.start()
            with pytest.raises(DeviceGone) as caught:
                keyboard.read(timeout=60)
            killer.join()
            assert caught.value.seen == "QEMU was ended by SIGKILL"


def test_a_machine_that_is_closed_under_its_device_is_told_as_that() -> None:
    machine = Machine(devices=["virtio-keyboard-pci"])
    with machine, machine.open() as device, uvirtio.Input(device) as keyboard:
        machine.close()
        with pytest.raises((Closed, DeviceGone), match="closed"):
            keyboard.read(timeout=30)


@pytest.mark.fault(91)
def test_a_forked_child_leaves_the_machine_alone() -> None:
    """Neither its end nor its commands: the sockets are shared, and an answer to the child is one less here."""
    with Machine(devices=["virtio-rng-pci"], timeout=20) as machine, machine.open() as device:
        child = os.fork()
        if not child:
            refused = 0
            try:
                for use in (lambda: machine.qmp("query-status"), machine.open, lambda: machine.unplug(0)):
                    try:
                        use()
                    except NotSupported:
                        refused += 1
                machine.close()
                machine.process.close()
            finally:
                os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert machine.qmp("query-status")["running"]
        with uvirtio.Rng(device) as rng:
            assert len(rng.read(4)) == 4


# --- the host's side ------------------------------------------------------------------------------------------


def test_qmp_and_its_events() -> None:
    with Machine("pc", ["virtio-balloon-pci"]) as machine:
        function = machine.functions[0]
        assert machine.qmp("qom-get", path=f"/machine/peripheral/{function.id}", property="type")
        with machine.open() as device, uvirtio.Balloon(device) as balloon:
            balloon.inflate(256)
            (event, *_) = machine.qmp_events("BALLOON_CHANGE", timeout=20)
            assert event["data"]["actual"] == 511 * MIB
        begun = time.monotonic()
        assert machine.qmp_events("NO_SUCH_EVENT", timeout=0.01) == []
        assert time.monotonic() - begun < 20
        with pytest.raises(QemuFailed, match="refused no-such"):
            machine.qmp("no-such")
        assert repr(machine) == f"<Machine pc, process {machine.pid}, 1 functions>"


RESET = {
    "q35": ("q35", "virtio-rng-pci", {}),
    "q35, a root port": ("q35", "virtio-rng-pci", {"root_ports": 1}),
    "q35, an IOMMU": ("q35", "virtio-rng-pci,iommu_platform=on,disable-legacy=on", {"iommu": "intel"}),
    "pc": ("pc", "virtio-rng-pci", {}),
    "microvm": ("microvm", "virtio-rng-device", {}),
    "virt": ("virt", "virtio-rng-pci", {}),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(RESET[name][0])) for name in RESET])
@pytest.mark.parametrize("other", [False, True], ids=["by this program", "by another one"])
def test_a_machine_that_was_reset_has_its_devices_again(name: str, other: bool, tmp_path: Path) -> None:
    """A device in use says so; closed and opened again it works, and so do the others, with interrupts."""
    kind, device, options = RESET[name]
    path = tmp_path / "qmp"
    if other:
        options = {**options, "qmp_path": str(path)}
    with Machine(kind, [device, device], **options) as machine:  # type: ignore[arg-type]
        functions = [*machine.functions]
        if "root_ports" in options:
            functions.append(machine.plug("virtio-rng-pci"))
        with machine.open(0) as one, uvirtio.Rng(one) as rng:
            assert len(rng.read(16)) == 16
            if other:
                with closing(connect(str(path), 5)) as qmp:
                    qmp.execute("system_reset")
                assert machine.qmp_events("RESET", 20)
            else:
                machine.qmp("system_reset")
            with pytest.raises((uvirtio.DeviceFailure, uvirtio.DeviceAbsent)):
                rng.read(16)
            started = time.monotonic()
            if not other:
                rng.close()
                assert time.monotonic() - started < 4
        for _ in range(2):
            for function in functions:
                with machine.open(function) as device_again, uvirtio.Rng(device_again) as rng:
                    assert all(len(rng.read(100)) == 100 for _ in range(20))
                    counters = device_again.counters  # a completion that is seen early needs no interrupt
                    assert counters.interrupts_taken and not counters.missed_interrupts


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in ("q35", "pc", "virt")])
def test_devices_are_plugged_and_unplugged_after_a_reset_by_another_program(name: str, tmp_path: Path) -> None:
    """What it took back is what hot-plug needs: the bridge, the ports, the addresses of BARs."""
    options = {} if name == "pc" else {"root_ports": 1}
    with Machine(name, ["virtio-rng-pci"], qmp_path=str(tmp_path / "qmp"), **options) as machine:  # type: ignore[arg-type]
        for plugged_before in (False, True):
            function = machine.plug("virtio-rng-pci") if plugged_before else None
            with closing(connect(str(tmp_path / "qmp"), 5)) as qmp:
                qmp.execute("system_reset")
            assert machine.qmp_events("RESET", 20)
            if function is not None:
                machine.unplug(function)
            function = machine.plug("virtio-rng-pci")
            with machine.open(function) as device, uvirtio.Rng(device) as rng:
                assert len(rng.read(100)) == 100
            machine.unplug(function)
        assert len(machine.functions) == 1
