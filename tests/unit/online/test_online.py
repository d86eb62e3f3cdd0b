"""Handing plugged memory to Linux: on a kernel made of files, which does as the real one was seen to do."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.drivers.test_mem import driven
from uvirtio.drivers.mem import Outcome
from uvirtio.errors import (
    BadSize,
    Blocked,
    Busy,
    EnvironmentLack,
    InUse,
    ModuleLack,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host.roots import Roots
from uvirtio.online import KernelView, Linux, PieceState, SystemMemory, boot_line, consumer
from uvirtio.scripted.mem import MIB, Mem

UNIT = 128 * MIB
ADDR = 0x1_0000_0000
SIZE = 4 * UNIT
BLOCKS = SIZE // (2 * MIB)


class FakeKernel:
    """A tree of sys and proc, and the writer that makes it live."""

    def __init__(self, top: Path) -> None:
        self.roots = Roots.under(top)
        self.writes: list[tuple[str, str]] = []
        self.fails: dict[tuple[str, str], list[Exception | None]] = {}
        self.refused: set[str] = set()  # what kmem's probe does not take
        self.stuck = False
        self.loaded: list[tuple[str, ...]] = []
        self.ids: set[str] = set()
        self.base = 900 << 10
        self.memory = self.roots.sys / "devices/system/memory"
        self.dax = self.roots.sys / "bus/dax"
        self.hmem = self.roots.sys / "devices/platform/hmem.0"
        self.platform = self.roots.sys / "bus/platform/devices"
        self.region = (ADDR, SIZE)
        self.memory.mkdir(parents=True)
        self.roots.proc.mkdir()
        (self.memory / "block_size_bytes").write_text("8000000\n")
        (self.memory / "auto_online_blocks").write_text("online\n")
        (self.dax / "devices").mkdir(parents=True)
        (self.dax / "drivers").mkdir()
        self.reserved = True
        self.show()

    def like_7_2(self) -> None:
        """The ranges that were kept are in no line of iomem, and hmem.0 is a child of what stands for them all."""
        self.reserved = False
        self.hmem = self.roots.sys / "devices/platform/hmem_platform.0/hmem.0"
        self.hmem.parent.mkdir(parents=True)
        self.platform.mkdir(parents=True)
        (self.platform / "hmem_platform.0").symlink_to(self.hmem.parent)
        self.show()

    def load(self, module: str, *parameters: str) -> None:
        self.loaded.append((module, *parameters))
        if module == "kmem":
            (self.dax / "drivers/kmem").mkdir()
        else:
            (self.hmem / "dax_region").mkdir(parents=True)
            for name in ("create", "delete", "seed"):
                (self.hmem / "dax_region" / name).touch()
            (self.hmem / "dax_region/size").write_text(f"{self.region[1]}\n")
            self.make("dax0.0")

    def make(self, name: str) -> Path:
        directory = self.hmem / name
        directory.mkdir()
        (directory / "size").write_text("0\n")
        (directory / "resource").write_text(f"{self.region[0]:#x}\n")
        (self.dax / "devices" / name).symlink_to(directory)
        return directory

    def give(self, name: str, start: int, size: int, driver: str | None = None) -> None:
        directory = self.hmem / name
        (directory / "size").write_text(f"{size}\n")
        (directory / "resource").write_text(f"{start:#x}\n")
        (directory / "mapping0").mkdir()
        (directory / "mapping0/start").write_text(f"{start:#x}\n")
        (directory / "mapping0/end").write_text(f"{start + size - 1:#x}\n")
        if driver:
            (directory / "driver").symlink_to(self.dax / "drivers" / driver)

    def block(self, number: int, state: str) -> None:
        (self.memory / f"memory{number}").mkdir(exist_ok=True)
        (self.memory / f"memory{number}/state").write_text(state + "\n")
        self.show()

    def spans(self, name: str) -> list[tuple[int, int]]:
        return [
            (int((m / "start").read_text(), 16), int((m / "end").read_text(), 16) + 1)
            for m in sorted((self.hmem / name).glob("mapping?"))
        ]

    def blocks(self, name: str) -> list[int]:
        return [n for start, end in self.spans(name) for n in range(start // UNIT, end // UNIT)]

    def show(self) -> None:
        """/proc as it follows from the rest."""
        lines = ["00001000-3fffffff : System RAM"]
        if self.reserved:
            lines.append(f"{ADDR:x}-{ADDR + SIZE - 1:x} : Soft Reserved")
        online = 0
        for directory in sorted(self.memory.glob("memory*")):
            at = int(directory.name[6:]) * UNIT
            lines.append(f"    {at:x}-{at + UNIT - 1:x} : System RAM (kmem)")
            online += (directory / "state").read_text() == "online\n"
        (self.roots.proc / "iomem").write_text("\n".join(lines) + "\n")
        total = self.base + online * (UNIT >> 10)
        (self.roots.proc / "meminfo").write_text(f"MemTotal: {total} kB\n")

    # --- the writer -----------------------------------------------------------------------------------------

    def write(self, path: Path, text: str, timeout: float) -> None:
        where = path.relative_to(self.roots.sys).as_posix()
        self.writes.append((where, text))
        for (part, value), errors in self.fails.items():
            if part in where and value in ("", text) and errors:
                error = errors.pop(0)
                if error is not None:
                    raise error
        name = path.name
        act = getattr(self, f"_{name}", None)
        if act is not None:
            act(path, text)
        else:
            path.write_text(text + "\n")
        self.show()

    def _create(self, path: Path, text: str) -> None:
        number = 1
        while (self.hmem / f"dax0.{number}").exists():
            number += 1
        self.make(f"dax0.{number}")
        (path.parent / "seed").write_text(f"dax0.{number}\n")

    def _mapping(self, path: Path, text: str) -> None:
        start, end = (int(part, 16) for part in text.split("-"))
        self.give(path.parent.name, start, end + 1 - start)

    def _size(self, path: Path, text: str) -> None:
        assert text == "0"
        if (path.parent / "driver").exists():
            raise OSError(errno.EBUSY, "Device or resource busy")
        path.write_text("0\n")
        (path.parent / "resource").write_text(f"{self.region[0]:#x}\n")
        shutil.rmtree(path.parent / "mapping0")

    def _delete(self, path: Path, text: str) -> None:
        if (self.hmem / text / "driver").exists() or self.spans(text):
            raise OSError(errno.EBUSY, "Device or resource busy")
        (self.dax / "devices" / text).unlink()
        shutil.rmtree(self.hmem / text)

    def _new_id(self, path: Path, text: str) -> None:
        self.ids.add(text)
        if text in self.refused:
            return  # the write succeeds; the kernel's log has the reason
        (self.hmem / text / "driver").symlink_to(self.dax / "drivers/kmem")
        policy = (self.memory / "auto_online_blocks").read_text().strip()
        for number in self.blocks(text):
            self.block(number, "offline" if policy == "offline" else "online")

    def _remove_id(self, path: Path, text: str) -> None:
        if text not in self.ids:
            raise OSError(errno.ENODEV, "No such device")
        self.ids.remove(text)

    def _unbind(self, path: Path, text: str) -> None:
        (self.hmem / text / "driver").unlink()
        for number in self.blocks(text):
            directory = self.memory / f"memory{number}"
            if (directory / "state").read_text() == "offline\n" and not self.stuck:
                shutil.rmtree(directory)

    def _state(self, path: Path, text: str) -> None:
        path.write_text("offline\n" if text == "offline" else "online\n")

    # --- what is seen ---------------------------------------------------------------------------------------

    def total(self) -> int:
        return KernelView(ADDR, SIZE, self.roots).total() - (self.base << 10)

    def devices(self) -> list[str]:
        return sorted(path.name for path in (self.dax / "devices").iterdir())


@pytest.fixture
def fake(tmp_path):
    return FakeKernel(tmp_path)


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def memory(fake, pauses):
    return SystemMemory(KernelView(ADDR, SIZE, fake.roots), writer=fake, load=fake.load, sleep=pauses.append)


@pytest.fixture
def ready(memory):
    memory.prepare()
    return memory


def busy(code: int = errno.EBUSY) -> OSError:
    return OSError(code, "Device or resource busy")


# --- before anything ----------------------------------------------------------------------------------------


def test_the_line_for_the_boot_is_that_of_the_device():
    line = "memmap=512M%0x100000000+0xefffffff dax_hmem.region_idle=1"
    assert boot_line(ADDR, SIZE) == line
    assert boot_line(ADDR, 3 << 30).startswith("memmap=3G%")


def test_without_the_parameter_of_the_boot_the_error_has_it_and_nothing_is_touched(fake, memory):
    fake.reserved = False
    fake.show()
    with pytest.raises(NotSupported) as caught:
        memory.prepare()
    assert caught.value.remedy is not None
    assert boot_line(ADDR, SIZE) in caught.value.remedy
    assert caught.value.exit_code == 4
    assert not fake.writes
    assert not fake.loaded


def test_a_range_that_has_not_all_of_the_region_is_told(fake, memory):
    text = (fake.roots.proc / "iomem").read_text().replace(f"{ADDR + SIZE - 1:x}", f"{ADDR + UNIT - 1:x}")
    (fake.roots.proc / "iomem").write_text(text)
    with pytest.raises(NotSupported) as caught:
        memory.prepare()
    assert "Soft Reserved" in caught.value.seen


def test_linux_7_2_shows_what_it_kept_as_a_dax_region_alone(fake, memory):
    fake.like_7_2()
    memory.prepare()
    assert fake.loaded == [("dax_hmem", "region_idle=1"), ("kmem",)]
    memory.prepare()
    assert len(fake.loaded) == 2
    assert memory.online(ADDR + UNIT).state is PieceState.ONLINE
    memory.prepare()


@pytest.mark.parametrize(
    "region", [(ADDR, SIZE - UNIT), (ADDR + UNIT, SIZE), (ADDR - SIZE, SIZE), (ADDR + SIZE, 2 * SIZE)]
)
@pytest.mark.parametrize("loaded", [False, True], ids=["", "loaded"])
def test_a_dax_region_that_has_not_all_of_it_is_not_taken_for_it(fake, memory, region, loaded):
    fake.like_7_2()
    fake.region = region
    if loaded:
        fake.load("dax_hmem", "region_idle=1")
    with pytest.raises(NotSupported) as caught:
        memory.prepare()
    assert f"{region[0]:#x}-{sum(region) - 1:#x} dax region" in caught.value.seen
    assert boot_line(ADDR, SIZE) in caught.value.remedy
    assert fake.loaded == [("dax_hmem", "region_idle=1")]
    assert not fake.writes


def test_linux_7_2_where_dax_hmem_makes_nothing_of_what_was_kept(fake):
    fake.like_7_2()
    memory = SystemMemory(KernelView(ADDR, SIZE, fake.roots), writer=fake, load=lambda *_: None)
    with pytest.raises(ModuleLack, match="no dax region"):
        memory.prepare()


def test_where_iomem_shows_other_ranges_nothing_is_loaded_to_look_for_ours(fake, memory):
    """It shows them all, then; and region_idle would be for memory that is none of ours."""
    fake.like_7_2()
    with (fake.roots.proc / "iomem").open("a") as iomem:
        iomem.write(f"{8 * ADDR:x}-{9 * ADDR - 1:x} : Soft Reserved\n")
    with pytest.raises(NotSupported, match="did not keep"):
        memory.prepare()
    assert not fake.loaded


def test_a_dax_region_of_which_nothing_is_idle_may_begin_lower_than_its_pieces(fake, memory):
    fake.like_7_2()
    fake.load("dax_hmem", "region_idle=1")
    fake.give("dax0.0", ADDR + UNIT, UNIT)
    view = KernelView(ADDR, SIZE, fake.roots)
    assert view.dax_region() == fake.hmem / "dax_region"
    assert KernelView(ADDR + 2 * UNIT, SIZE, fake.roots).dax_region() is None  # it would not have the piece
    assert KernelView(ADDR, 2 * SIZE, fake.roots).dax_region() is None


def test_a_directory_that_may_not_be_entered_is_no_bug(fake, memory, monkeypatch):
    real = os.stat

    def stat(path, *more, **how):
        if str(path).endswith("drivers/kmem"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *more, **how)

    monkeypatch.setattr(os, "stat", stat)
    with suppress(UvirtioError):
        memory.prepare()


def test_hidden_addresses_are_a_lack_of_permission(fake, memory):
    (fake.roots.proc / "iomem").write_text("00000000-00000000 : System RAM\n00000000-00000000 : Soft Reserved\n")
    with pytest.raises(PermissionLack):
        memory.prepare()


def test_a_kernel_without_memory_blocks(fake, memory):
    (fake.memory / "block_size_bytes").unlink()
    with pytest.raises(NotSupported, match="memory blocks"):
        memory.prepare()


def test_dax_hmem_comes_up_idle_and_before_kmem(fake, ready):
    assert fake.loaded == [("dax_hmem", "region_idle=1"), ("kmem",)]
    ready.prepare()
    assert len(fake.loaded) == 2


def test_no_module_is_loaded_for_a_tree_of_somebody_else(fake):
    memory = SystemMemory(KernelView(ADDR, SIZE, fake.roots), writer=fake)
    with pytest.raises(ModuleLack) as caught:
        memory.prepare()
    assert "modprobe dax_hmem region_idle=1" in caught.value.remedy


def test_modules_that_bring_nothing(fake):
    memory = SystemMemory(KernelView(ADDR, SIZE, fake.roots), writer=fake, load=lambda *_: None)
    with pytest.raises(ModuleLack):
        memory.prepare()


@pytest.mark.parametrize("driver", [None, "device_dax", "kmem"])
def test_a_region_that_one_device_has_whole_is_left_alone(fake, memory, driver):
    fake.load("dax_hmem")
    if driver:
        (fake.dax / "drivers" / driver).mkdir()
    fake.give("dax0.0", ADDR, SIZE, driver)
    with pytest.raises(NotSupported, match="whole region") as caught:
        memory.prepare()
    assert "dax_hmem.region_idle=1" in caught.value.remedy
    assert not fake.writes
    assert ("kmem",) not in fake.loaded  # it would have taken all of it


def test_what_an_interrupted_run_left_is_cleared_away(fake, ready):
    fake.make("dax0.1")
    fake.give("dax0.1", ADDR, UNIT)
    fake.make("dax0.2")
    ready.prepare()
    assert fake.devices() == ["dax0.0"]
    ready.online(ADDR)


# --- in -----------------------------------------------------------------------------------------------------


def test_a_piece_is_one_memory_block_and_movable(fake, ready):
    piece = ready.online(ADDR + UNIT)
    assert (piece.start, piece.size, piece.driver, piece.state) == (ADDR + UNIT, UNIT, "kmem", PieceState.ONLINE)
    assert fake.total() == UNIT
    policy = [text for where, text in fake.writes if where.endswith("auto_online_blocks")]
    assert policy == ["online_movable", "online"]  # and what it was afterwards


@pytest.mark.fault(79)
def test_a_policy_that_a_killed_run_has_left_is_given_back(fake, ready):
    record, policy = fake.roots.run / "uvirtio/auto_online_blocks", fake.memory / "auto_online_blocks"
    ready.online(ADDR)
    assert record.read_text() == "" and policy.read_text().strip() == "online"
    record.write_text("online_kernel\n")
    policy.write_text("online_movable\n")
    with record.open() as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        ready.clear_leftovers()  # it is not dead
        assert policy.read_text().strip() == "online_movable"
        with pytest.raises(Busy, match="another process adds memory"), ready._policy.movable(0.0):
            pass
    ready.clear_leftovers()
    assert policy.read_text().strip() == "online_kernel" and record.read_text() == ""
    record.write_text("online\n")  # it was killed before its change, or somebody else has changed it since
    ready.clear_leftovers()
    assert policy.read_text().strip() == "online_kernel" and record.read_text() == ""


def test_without_a_record_the_policy_is_not_changed(fake, ready):
    fake.roots.run.mkdir(exist_ok=True)
    (fake.roots.run / "uvirtio").write_text("no directory")
    with pytest.raises(EnvironmentLack, match="cannot be written"):
        ready.online(ADDR)
    assert not [text for where, text in fake.writes if where.endswith("auto_online_blocks")]
    assert fake.total() == 0


def test_where_nothing_comes_online_by_itself_it_is_brought_online(fake, ready):
    (fake.memory / "auto_online_blocks").write_text("offline\n")
    assert ready.online(ADDR, 2 * UNIT).state is PieceState.ONLINE
    assert fake.total() == 2 * UNIT
    assert [text for where, text in fake.writes if where.endswith("/state")] == ["online_movable"] * 2
    assert (fake.memory / "auto_online_blocks").read_text() == "offline\n"


@pytest.mark.parametrize(
    ("start", "size"), [(ADDR + MIB, UNIT), (ADDR, MIB), (ADDR, 0), (ADDR - UNIT, UNIT), (ADDR + SIZE, UNIT)]
)
def test_sizes_and_places_that_cannot_be(fake, ready, start, size):
    with pytest.raises(BadSize):
        ready.online(start, size)
    assert not fake.writes


def test_no_byte_has_two_owners(fake, ready):
    ready.online(ADDR)
    before = len(fake.writes)
    with pytest.raises(InUse):
        ready.online(ADDR)
    with pytest.raises(InUse):
        ready.online(ADDR, 2 * UNIT)
    fake.block((ADDR + UNIT) // UNIT, "online")  # memory of Linux without a device of ours
    with pytest.raises(InUse):
        ready.online(ADDR + UNIT)
    assert len(fake.writes) == before


@pytest.mark.parametrize(
    "fail", [("create", "1"), ("mapping", ""), ("new_id", ""), ("state", "online_movable"), ("auto_online", "")]
)
def test_what_fails_half_way_is_undone(fake, ready, fail):
    if fail[0] == "state":
        (fake.memory / "auto_online_blocks").write_text("offline\n")
    fake.fails[fail] = [OSError(errno.ENOMEM, "Cannot allocate memory")]
    with pytest.raises(OperationFailed) as caught:
        ready.online(ADDR)
    assert caught.value.seen == "Cannot allocate memory"
    assert fake.devices() == ["dax0.0"]
    assert fake.total() == 0
    assert not list(fake.memory.glob("memory*"))
    assert not fake.ids
    ready.online(ADDR)
    assert fake.total() == UNIT


def test_the_second_of_two_blocks_fails_and_the_first_goes_back(fake, ready):
    (fake.memory / "auto_online_blocks").write_text("offline\n")
    fake.fails["state", "online_movable"] = [None, OSError(errno.EINVAL, "Invalid argument")]
    with pytest.raises(OperationFailed):
        ready.online(ADDR, 2 * UNIT)
    assert fake.devices() == ["dax0.0"]
    assert fake.total() == 0


def test_a_probe_that_refuses_without_a_word(fake, ready):
    fake.refused.add("dax0.1")
    with pytest.raises(OperationFailed, match="kmem did not take"):
        ready.online(ADDR)
    assert fake.devices() == ["dax0.0"]


# --- out ----------------------------------------------------------------------------------------------------


def test_out_is_offline_then_unbound_then_destroyed(fake, ready):
    piece = ready.online(ADDR)
    fake.writes.clear()
    ready.offline(piece)
    assert [where.rsplit("/", 1)[1] for where, _ in fake.writes] == [
        "state",
        "unbind",
        "remove_id",
        "size",
        "delete",
    ]
    assert fake.devices() == ["dax0.0"]
    assert not list(fake.memory.glob("memory*"))
    assert fake.total() == 0


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EAGAIN, errno.EINTR])
def test_busy_memory_is_tried_again_ever_less_often(fake, ready, pauses, code):
    piece = ready.online(ADDR)
    fake.fails["state", "offline"] = [busy(code), busy(code), busy(code)]
    ready.offline(piece, timeout=1000)
    assert pauses == [0.05, 0.1, 0.2]
    assert ready.retries == 3
    assert fake.devices() == ["dax0.0"]


def test_memory_that_stays_busy_is_left_as_it_was(fake, ready):
    piece = ready.online(ADDR, 2 * UNIT)
    fake.fails["memory33/state", "offline"] = [busy()] * 5
    with pytest.raises(InUse) as caught:
        ready.offline(piece, timeout=0)
    assert caught.value.exit_code == 3
    assert fake.total() == 2 * UNIT  # the first block is back online
    assert not [where for where, _ in fake.writes if where.endswith("unbind")]
    fake.fails.clear()
    ready.offline(piece, timeout=0)
    assert fake.total() == 0


def test_a_try_without_end_is_ended_and_gets_longer_next_time(fake, ready):
    piece = ready.online(ADDR)
    given = []
    write = fake.write

    def slow(path, text, timeout):
        if path.name == "state":
            given.append(timeout)
            raise Blocked("the kernel moves pages about")
        write(path, text, timeout)

    fake.write = slow
    for _ in range(4):
        with pytest.raises(InUse):
            ready.offline(piece, timeout=0)
    assert given == [5.0, 10.0, 15.0, 15.0]
    fake.write = write
    ready.offline(piece, timeout=0)


@pytest.mark.parametrize("where", ["unbind", "remove_id", "size"])
def test_a_write_that_does_not_come_back_is_told_as_that(fake, ready, where):
    piece = ready.online(ADDR)
    fake.fails[where, ""] = [Blocked("the kernel is busy")]
    with pytest.raises(Blocked, match="is busy"):
        ready.offline(piece)


def test_another_failure_is_no_reason_to_try_again(fake, ready, pauses):
    piece = ready.online(ADDR)
    fake.fails["state", "offline"] = [OSError(errno.EPERM, "Operation not permitted")]
    with pytest.raises(OperationFailed):
        ready.offline(piece, timeout=1000)
    assert pauses == []
    assert fake.total() == UNIT


def test_what_the_kernel_does_not_let_go_of_is_stuck_and_stays_somebodys(fake, ready):
    piece = ready.online(ADDR)
    fake.stuck = True
    with pytest.raises(OperationFailed, match="did not let go") as caught:
        ready.offline(piece)
    assert "must not be unplugged" in caught.value.remedy
    (left,) = ready.kernel.pieces()
    assert left.state is PieceState.STUCK
    assert left.used
    ready.prepare()  # not cleared away
    with pytest.raises(InUse):
        ready.offline(left)
    with pytest.raises(InUse):
        ready.online(ADDR)


def test_a_piece_of_another_driver_is_not_taken(fake, ready):
    (fake.dax / "drivers/device_dax").mkdir()
    fake.make("dax0.1")
    fake.give("dax0.1", ADDR, UNIT, "device_dax")
    (piece,) = ready.kernel.pieces()
    assert piece.state is PieceState.FOREIGN
    with pytest.raises(InUse):
        ready.offline(piece)
    assert not fake.writes


# --- with the manager ---------------------------------------------------------------------------------------


def model(**keys):
    return Mem(blocks=BLOCKS, addr=ADDR, **keys)


def test_the_hosts_request_becomes_linuxs_memory_and_back(fake, memory):
    script = model(requested=SIZE)
    with driven(script) as (mem, _):
        linux = Linux(memory)
        manager = linux.manager(mem)
        manager.follow(timeout=0.001)
        assert (fake.total(), linux.bytes, mem.config().plugged_size) == (SIZE, SIZE, SIZE)
        assert {one.start for one in memory.kernel.pieces()} == {ADDR + n * UNIT for n in range(4)}
        script.request(UNIT)
        manager.follow(timeout=0.001)
        assert (fake.total(), linux.bytes, mem.config().plugged_size) == (UNIT, UNIT, UNIT)


def test_whole_units_only_are_plugged(fake, memory):
    with driven(model(requested=UNIT + 2 * MIB)) as (mem, _):
        linux = Linux(memory)
        manager = linux.manager(mem)
        assert manager.converge() is Outcome.REACHED
        linux.take(manager)
        assert (fake.total(), mem.config().plugged_size) == (UNIT, UNIT)


def test_another_run_finds_what_is_online_and_nobody_unplugs_it(fake, memory):
    half = set(range(BLOCKS // 2))
    script = model(requested=SIZE, plugged=half)
    with driven(script) as (mem, _):
        linux = Linux(memory)
        assert linux.take(linux.manager(mem)) == 2 * UNIT
    with driven(script) as (mem, _):
        linux = Linux(memory)
        manager = linux.manager(mem)
        assert linux.bytes == 2 * UNIT
        assert manager.hand_out("somebody") == []
        with pytest.raises(InUse):
            mem.unplug_all()
        with pytest.raises(InUse):
            manager.unplug_size(UNIT)
        assert linux.give_back(manager, UNIT, timeout=0) == UNIT
        manager.unplug_size(UNIT)
        assert (fake.total(), mem.config().plugged_size) == (UNIT, UNIT)
        (left,) = memory.kernel.pieces()
        assert left.start == ADDR  # the highest went first


def test_memory_of_linux_that_is_not_plugged_is_an_alarm(fake, ready):
    ready.online(ADDR)
    with driven(model(requested=SIZE)) as (mem, _), pytest.raises(OperationFailed, match="not plugged"):
        Linux(ready).manager(mem)


def test_memory_of_linux_without_a_device_is_nobody_elses_either(fake, ready):
    fake.block(ADDR // UNIT, "online")
    with driven(model(requested=SIZE, plugged=set(range(BLOCKS)))) as (mem, _):
        linux = Linux(ready)
        manager = linux.manager(mem)
        assert linux.take(manager) == 3 * UNIT
        with pytest.raises(InUse):
            mem.unplug(ADDR, 1)


def test_a_busy_piece_is_passed_over_and_not_asked_again_at_once(fake, ready):
    with driven(model(requested=SIZE, plugged=set(range(BLOCKS)))) as (mem, _):
        told = []
        linux = Linux(ready, told=lambda *what: told.append(what))
        manager = linux.manager(mem)
        linux.take(manager)
        told.clear()
        fake.fails["memory35/state", "offline"] = [busy()] * 9
        linux.wanted_back(manager, UNIT)
        assert told == [("busy", ADDR + 3 * UNIT), ("offline", ADDR + 2 * UNIT)]
        told.clear()
        linux.wanted_back(manager, SIZE)
        assert told == [("offline", ADDR + UNIT), ("offline", ADDR)]
        assert fake.total() == UNIT
        manager.unplug_size(3 * UNIT)
        assert mem.config().plugged_size == UNIT


def test_a_unit_that_does_not_come_online_is_told_and_stays_free(fake, ready):
    with driven(model(requested=SIZE, plugged=set(range(BLOCKS)))) as (mem, _):
        linux = Linux(ready)
        manager = linux.manager(mem)
        fake.fails["create", "1"] = [None, OSError(errno.ENOMEM, "Cannot allocate memory")]
        assert linux.take(manager) == 3 * UNIT
        assert list(linux.failures) == [ADDR + UNIT]
        assert linux.take(manager) == UNIT
        assert not linux.failures


def test_while_following_what_did_not_come_online_is_tried_again(fake, ready, monkeypatch):
    monkeypatch.setattr(consumer, "BUSY_FIRST", 0.01)
    with driven(model(requested=SIZE)) as (mem, _):
        heard = []
        linux = Linux(ready, told=lambda event, address: heard.append((event, address)))
        manager = linux.manager(mem)
        fake.fails["create", "1"] = [None, OSError(errno.ENOMEM, "Cannot allocate memory")]
        while linux.failures or not heard:
            manager.follow(timeout=0.05)
        assert fake.total() == SIZE == linux.bytes
        assert [event for event, at in heard if at == ADDR + UNIT] == ["failed", "online"]
