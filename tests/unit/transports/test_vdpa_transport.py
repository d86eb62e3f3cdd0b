"""Virtio over vDPA, from the address to a driver, against a kernel that is played and a device that serves."""

from __future__ import annotations

import errno
import struct
import time
from array import array

import pytest

from tests.fakes.played_vdpa import MODERN, PATTERN, Played
from uvirtio import opening
from uvirtio.backends.vhost_vdpa import VhostVdpaNode
from uvirtio.device import Device, QueueSpec
from uvirtio.diag import diagnose
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.rng import Rng
from uvirtio.errors import (
    BadAddress,
    ConfigError,
    Denied,
    DeviceFailure,
    DeviceGone,
    NotBound,
    NotSupported,
    NotVirtio,
    OperationFailed,
    QueueError,
    UvirtioError,
)
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec.layout import Field
from uvirtio.spec.status import Status
from uvirtio.trace import replayed
from uvirtio.transports.vdpa import PACKED_BASE, Vdpa

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode
NUM_PAGES = Field("num_pages", 0, 4)


def opened(played: Played, *modes: InterruptMode, trace=None) -> Device:
    node = VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)
    return opening.identify(node.address, node, timeout=2.0, interrupts=modes or tuple(InterruptMode), trace=trace)


@pytest.fixture
def played(tmp_path):
    return Played(tmp_path, config=bytes(8))


def start(device: Device, queues: int = 1) -> None:
    device.start(wanted=0, queues=[QueueSpec(index, f"queue {index}", size=8) for index in range(queues)])


def test_the_first_look_at_the_configuration_is_no_change_of_it(played):
    """Nothing was read to compare it with: before a start, and from a reset on."""

    def changed(device: Device) -> bool:
        time.sleep(0.02)  # it is not looked at all the time
        return device.transport.causes().config

    played.config[:] = b"12345678"
    with opened(played, POLLING) as device:
        assert not changed(device)
        device.transport.connect_interrupts([], [POLLING])
        played.config[:] = b"87654321"
        assert changed(device)
        device.transport.set_status(0)
        played.config[:] = b"12345678"  # as a MAC address that was set comes back
        assert not changed(device)
        device.transport.release_queues()
        assert not changed(device)


# --- the sequence -------------------------------------------------------------------------------------------


@pytest.mark.spec("INIT-01", "STAT-01", "RST-01", "CLN-02")
@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING])
def test_a_driver_comes_up_works_and_leaves(played, mode):
    with opened(played, mode) as device:
        with Rng(device) as rng:
            assert device.transport.interrupt_mode is mode
            assert played.status == 15
            assert played.taken == device.features == MODERN
            assert rng.read(100) == PATTERN[:100]
            assert rng.read(5000) == PATTERN + PATTERN[:904]
            assert (device.counters.interrupts_taken > 0) is (mode is PER_QUEUE)
        assert played.status == 0
        assert played.maps == {}
        with Rng(device) as rng:  # and once more
            assert rng.read(7) == PATTERN[:7]
    assert played.closed == 1
    assert (played.queues[0].kick, played.queues[0].call, played.config_call) == (-1, -1, -1)


@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING])
def test_a_record_is_replayed_without_the_node(played, mode, tmp_path):
    def read(device: Device) -> list[bytes]:
        with device, Rng(device) as rng:
            return [rng.read(100), rng.read(5000)]

    record = tmp_path / "run.jsonl"
    node = VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)
    first = read(opening.identify(node.address, node, timeout=2.0, interrupts=[mode], record=record))
    assert first == [PATTERN[:100], PATTERN + PATTERN[:904]]
    played.taken = None
    assert read(opening.open(replayed(record), timeout=2.0, interrupts=[mode])) == first
    assert played.taken is None


def test_the_order_is_the_kernels(played):
    with opened(played, PER_QUEUE) as device:
        del played.log[:]
        start(device)
        said = [name.removeprefix("VHOST_").removeprefix("VDPA_") for name in played.log]
        # Questions aside, this is what the kernel is told, and when.
        told = [name for name in said if not name.startswith(("GET_", "iotlb"))]
        assert told == [
            "SET_STATUS",  # reset
            "SET_STATUS",  # ACKNOWLEDGE
            "SET_STATUS",  # DRIVER
            "SET_FEATURES",
            "SET_STATUS",  # FEATURES_OK
            "SET_CONFIG_CALL",
            "SET_VRING_NUM",
            "SET_VRING_ADDR",
            "SET_VRING_KICK",
            "SET_VRING_CALL",
            "SET_VRING_ENABLE",  # before DRIVER_OK: after it only where that was agreed on
            "SET_STATUS",  # DRIVER_OK
        ]
        assert said.index("GET_IOVA_RANGE") > said.index("SET_FEATURES")  # memory is made after the negotiation


@pytest.mark.spec("STAT-02")
def test_status_bits_stay_as_the_kernel_demands(played):
    with opened(played) as device:
        start(device)
        # The played kernel refuses a status that takes a bit away, as vhost-vdpa does.
        with pytest.raises(OperationFailed):
            device.transport.set_status(1)


def test_a_call_without_a_cause_does_no_harm(played):
    with opened(played, PER_QUEUE) as device, Rng(device) as rng:
        device.service()  # the one that came when the queue was enabled
        assert device.queues[0].completions == 0
        assert rng.read(4) == PATTERN[:4]
        assert device.counters.config_changes == 0


@pytest.mark.spec("FEAT-06")
def test_nothing_is_taken_that_this_way_cannot_carry(tmp_path):
    everything = (1 << 64) - 1
    with opened(Played(tmp_path, features=everything)) as device:
        start(device)
        beyond = f.mask(f.NOTIFICATION_DATA, f.RING_RESET, f.SR_IOV, f.ADMIN_VQ, f.NOTIF_CONFIG_DATA)
        assert not device.features & beyond
        assert device.features & MODERN == MODERN


@pytest.mark.spec("SUSP-01")
def test_suspend_is_never_written_though_it_is_offered(tmp_path):
    played = Played(tmp_path, features=(1 << 64) - 1)
    written = []
    original = played._set_status
    played._set_status = lambda word: (written.append(word.value), original(word))[1]
    with opened(played) as device:
        start(device)
        device.stop()
    assert Status.DRIVER_OK | 11 in written
    assert not any(value & Status.SUSPEND for value in written)


def test_without_access_platform_there_is_no_memory(tmp_path):
    played = Played(tmp_path, features=f.mask(f.VERSION_1))
    with opened(played) as device, pytest.raises(NotSupported) as caught:
        start(device)
    assert "ACCESS_PLATFORM" in caught.value.message
    assert played.messages == []
    assert played.status == 0


def test_a_packed_ring_begins_at_wrap_counter_one(played):
    node = VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)
    transport = Vdpa(node)
    transport.set_driver_features(MODERN | f.mask(f.RING_PACKED))
    transport.enable_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert played.queues[0].base == PACKED_BASE == 0x80008000
    transport.close()


def test_trace_tells_of_every_verb(played):
    lines: list[str] = []
    with opened(played, trace=lines.append) as device, Rng(device) as rng:
        rng.read(1)
    text = "\n".join(lines)
    for word in ("get_features -> 0x300000000", "set_status <- 0xf (", "enabled", "kick queue 0"):
        assert word in text


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.spec("CFG-02", "CFG-L01")
def test_without_a_generation_fields_are_read_until_they_agree(played):
    with opened(played) as device:
        start(device)
        assert device.transport.generation() is None
        played.config[:] = (7).to_bytes(8, "little")
        assert device.read_config(NUM_PAGES) == (7,)
        values = iter([1, 2, 3, 3])
        played._get_config = lambda buffer: buffer.__setitem__(
            slice(8, None), next(values).to_bytes(len(buffer) - 8, "little")
        )
        assert device.read_config(NUM_PAGES) == (3,)


@pytest.mark.spec("CFG-06", "CFG-05")
def test_the_end_of_the_configuration_is_kept(played):
    with opened(played) as device:
        start(device)
        for field in (Field("beyond", 8, 4), Field("across", 6, 4)):
            with pytest.raises(ConfigError):
                device.read_config(field)
            with pytest.raises(ConfigError):
                device.transport.write_config(field.offset, field.width, 0)
        device.write_config(Field("all", 0, 8), 1 << 40)
        assert device.transport.read_config(0, 8) == 1 << 40


def test_a_part_of_a_field_is_no_value(played, monkeypatch):
    with opened(played) as device:
        monkeypatch.setattr(device.transport.backend, "get_config", lambda offset, length: b"\0" * (length - 1))
        with pytest.raises(ConfigError):
            device.transport.read_config(0, 4)


@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING])
def test_a_change_of_the_configuration_is_noticed(played, mode):
    with opened(played, mode) as device:
        start(device)
        device.service()
        assert device.counters.config_changes == 0
        played.change_config(bytes([1] * 8))
        device.wait(lambda: device.counters.config_changes > 0, timeout=2, what="the change")
        seen = device.counters.config_changes
        device.write_config(NUM_PAGES, 5)  # ours is no news
        for _ in range(3):
            time.sleep(0.011)
            device.service()
        assert device.counters.config_changes == seen


# --- a balloon ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [PER_QUEUE, POLLING])
def test_a_balloon_over_vdpa(tmp_path, monkeypatch, mode):
    """Frames are guest-physical, whatever rings have; num_pages is followed with and without calls."""

    def frames(_pagemap, vaddr, size):
        return array("I", [(vaddr + at) >> 12 & 0xFFFFFF for at in range(0, size, PAGE)])

    monkeypatch.setattr(Pagemap, "frames", frames)
    told: list[int] = []

    def serve(_played, out, _room):
        told.extend(struct.unpack(f"<{len(out) // 4}I", out))
        return b""

    played = Played(tmp_path, device_id=5, config=bytes(16), queues=2, pins=True)
    played.serve = serve
    with opened(played, mode) as device, Balloon(device) as balloon:
        assert balloon.inflate(300) == 300
        assert len(set(told)) == 300
        assert int.from_bytes(played.config[4:8], "little") == 300  # actual
        assert played.pinned >= 300 * PAGE
        played.change_config((512).to_bytes(4, "little") + bytes(played.config[4:]))
        balloon.follow(timeout=0.2)
        assert balloon.held == 512
        played.change_config((10).to_bytes(4, "little") + bytes(played.config[4:]))
        balloon.follow(timeout=0.2)
        assert balloon.held == 10
    assert int.from_bytes(played.config[4:8], "little") == 0
    assert played.pinned == 0


# --- queues and interrupts ----------------------------------------------------------------------------------


def test_each_queue_has_its_own_size_where_the_kernel_says(tmp_path):
    played = Played(tmp_path, queues=3, sizes={0: 8, 1: 0, 2: 1024})
    with opened(played) as device:
        layout = device.transport.queue_layout
        assert [layout(index).size_max for index in range(4)] == [8, 0, 256, 0]
        with pytest.raises(QueueError):
            start(device, 2)
        assert played.status == 0


@pytest.mark.parametrize("num_max", [0, 3])
def test_a_size_that_cannot_be_is_refused(tmp_path, num_max):
    with opened(Played(tmp_path, num_max=num_max)) as device, pytest.raises(QueueError):
        start(device)


def test_a_queue_is_enabled_once(played):
    with opened(played) as device:
        start(device)
        with pytest.raises(QueueError):
            device.transport.enable_queue(0, 8, 0, 0, 0)


@pytest.mark.parametrize(("calls", "mode"), [(None, PER_QUEUE), (3, PER_QUEUE), (2, POLLING), (1, POLLING)])
def test_calls_that_do_not_get_through_are_not_waited_for(tmp_path, calls, mode):
    with opened(Played(tmp_path, queues=2)) as device:
        device.transport.backend.calls = calls
        start(device, 2)
        assert device.transport.interrupt_mode is mode


def test_a_parent_that_wants_a_vector_for_nothing_is_not_driven_into_a_warning(played):
    with opened(played) as device:
        device.transport.backend.calls = 0
        del played.log[:]
        with pytest.raises(NotSupported) as caught:
            start(device)
        assert "MSI-X" in caught.value.seen
        assert "VHOST_VDPA_SET_VRING_ENABLE" not in played.log
        assert played.status == 0


@pytest.mark.parametrize("mode", [SHARED, INTX])
def test_there_are_two_rungs_only(played, mode):
    with opened(played, mode) as device, pytest.raises(NotSupported) as caught:
        start(device)
    assert mode.value in caught.value.seen


def test_a_kernel_without_a_config_call_leaves_polling(played):
    played.refuse["VHOST_VDPA_SET_CONFIG_CALL"] = lambda fd: errno.EOPNOTSUPP if fd.value >= 0 else 0
    with opened(played) as device:
        start(device)
        assert device.transport.interrupt_mode is POLLING


# --- what fails ---------------------------------------------------------------------------------------------


@pytest.mark.spec("INIT-05")
@pytest.mark.parametrize(
    "name",
    [
        "VHOST_SET_VRING_NUM",
        "VHOST_SET_VRING_ADDR",
        "VHOST_SET_VRING_KICK",
        "VHOST_VDPA_SET_VRING_ENABLE",
        "iotlb 2",
    ],
)
@pytest.mark.parametrize(("number", "error"), [(errno.EINVAL, OperationFailed), (errno.EIO, UvirtioError)])
def test_a_bring_up_that_fails_leaves_nothing(played, name, number, error):
    written = []
    original = played._set_status
    played._set_status = lambda word: (written.append(word.value), original(word))[1]
    with opened(played) as device:
        played.refuse[name] = number
        with pytest.raises(error):
            start(device)
        assert played.maps == {}
        assert played.status == 0 or number == errno.EIO
        if number == errno.EINVAL:
            assert written[-2] & 0x80  # FAILED, and then the reset
        played.refuse.clear()
    assert played.closed == 1


def test_a_device_whose_process_has_gone_is_gone(played):
    with opened(played) as device:
        start(device)
        for name in ("SET_STATUS", "GET_STATUS"):
            played.refuse[f"VHOST_VDPA_{name}"] = errno.EIO
        with pytest.raises(DeviceGone):
            device.check()
        device.stop()
        assert isinstance(device.broken, DeviceGone)
        played.refuse.clear()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"device_id": 0}, NotVirtio), ({"queues": 1}, DeviceFailure)],
)
def test_a_node_that_is_no_device_is_closed_again(tmp_path, arguments, error):
    played = Played(tmp_path, **arguments)
    if error is DeviceFailure:
        played._get_vqs_count = lambda word: setattr(word, "value", 65537)
    with pytest.raises(error):
        opened(played)
    assert played.closed == 1


# --- the address --------------------------------------------------------------------------------------------


@pytest.fixture
def real(played, monkeypatch):
    """``uvirtio.open`` with the played kernel."""
    whole = VhostVdpaNode.open
    monkeypatch.setattr(VhostVdpaNode, "open", lambda address, roots: whole(address, roots, kernel=played.kernel))
    (played.roots.etc / "uvirtio").mkdir(parents=True)
    return played


@pytest.mark.parametrize("address", ["vdpa:vdpa0", "/dev/vhost-vdpa-0"])
def test_both_forms_of_the_address_open_the_node(real, address):
    with opening.open(address, roots=real.roots, backend="vhost-vdpa") as device:
        assert device.address == "/dev/vhost-vdpa-0"
        assert device.type == "rng"
        assert device.transport.interface == "vDPA, 1 queues, 8 bytes of configuration"


@pytest.mark.parametrize("address", ["vdpa:vdpa0", "/dev/vhost-vdpa-0"])
@pytest.mark.parametrize("pattern", ["*", "vdpa:vdpa0", "/dev/vhost-vdpa-*"])
def test_the_deny_list_holds_for_every_name(real, address, pattern):
    (real.roots.etc / "uvirtio/deny").write_text(pattern + "\n")
    with pytest.raises(Denied):
        opening.open(address, roots=real.roots)
    assert not real.opened


def test_whoever_denies_the_function_denies_what_stands_on_it(real):
    device = real.roots.sys / "bus/vdpa/devices/vdpa0"
    function = real.roots.sys / "devices/pci0000:00/0000:03:00.0"
    function.mkdir(parents=True)
    device.resolve().rename(function / "vdpa0")
    device.unlink()
    device.symlink_to(function / "vdpa0")
    (real.roots.etc / "uvirtio/deny").write_text("03:00.0\n")
    with pytest.raises(Denied):
        opening.open("vdpa:vdpa0", roots=real.roots)
    assert not real.opened


def test_wrong_addresses(real):
    with pytest.raises(BadAddress):
        opening.open("/dev/vhost-vdpa-x", roots=real.roots)
    with pytest.raises(BadAddress):
        opening.open("vdpa:vdpa0", roots=real.roots, backend="vfio")
    (real.roots.sys / "bus/vdpa/devices/vdpa0/driver").unlink()
    with pytest.raises(NotBound):
        opening.open("vdpa:vdpa0", roots=real.roots)
    assert not real.opened


def test_there_is_no_legacy_interface(real):
    with pytest.raises(NotSupported):
        opening.open("vdpa:vdpa0", roots=real.roots, force_legacy=True)
    assert real.closed == 1


def test_rings_are_pages_that_the_device_can_reach(played):
    with opened(played) as device:
        start(device)
        for address in device.queues[0].ring.addresses:
            assert address >= PAGE
            assert played.load(address, 4) is not None


def test_diag_has_words_for_ioctls(played: Played) -> None:
    report = diagnose(VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel), timeout=2.0)
    steps = {step.name: step for step in report.steps}
    assert steps["driver_ok"].verdict == "pass"
    assert steps["discover"].spec.startswith("vhost-vdpa: ") and "VRING_CALL" in steps["vectors"].spec
    assert "eventfd" in steps["vectors"].detail
    assert "IOVAs" in steps["leave"].detail and "bus master" not in steps["leave"].detail
