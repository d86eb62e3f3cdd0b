"""kill -9 and SIGSTOP at random moments, on each way to a device: the machines deaths-*, for tools/test --all.

One of each here; ``tools/soak --kills N --vm`` has N. What each death leaves is judged in deaths.py.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from tests.vm import pattern, vduse
from tests.vm.commands import commands, uvirtio
from tests.vm.deaths import AUTO_ONLINE, PATIENCE, PRELOADED, Killing, Machine, Victim, Way
from tests.vm.hands import MODULES, address_of, driver_of, hand_over, modprobe
from tests.vm.pattern import MIB
from tests.vm.qmp_witness import Witness

EIGHT = (
    *("dying-balloon", "dying-mem", "dying-keyboard", "dying-disk", "dying-rng"),
    *("dying-rng-2", "dying-rng-3", "dying-rng-4", "dying-rng-5"),
)
for _name in PRELOADED:  # before the process is forked from which the commands are (conftest.py)
    import_module(_name)

MEM = "/machine/peripheral/dying-mem"
ONLINE = 256 * MIB


# --- the workloads ------------------------------------------------------------------------------------------


def actual(machine: Machine) -> int:
    return int(machine.witness.execute("query-balloon")["actual"])


def plugged(machine: Machine) -> int:
    (device,) = machine.witness.execute("query-memory-devices")
    return int(device["data"]["size"])


def wanted(size: int) -> Callable[[Machine], None]:
    """The host wants so much plugged."""
    return lambda machine: machine.witness.execute("qom-set", path=MEM, property="requested-size", value=size)


def the_balloon_is_empty(machine: Machine) -> list[str]:
    left = machine.memory - actual(machine)
    return [f"the host counts {left >> 20} MiB in the balloon"] if left else []


def nothing_is_plugged(machine: Machine) -> list[str]:
    size = plugged(machine)
    return [f"{size >> 20} MiB are plugged"] if size else []


def linux_has_what_it_had(machine: Machine) -> list[str]:
    found = nothing_is_plugged(machine)
    if (more := pattern.total() - machine.total) != 0:
        found.append(f"MemTotal is {more >> 20} MiB more")
    if (auto := AUTO_ONLINE.read_text().strip()) != machine.auto_online:
        found.append(f"auto_online_blocks is {auto}, not {machine.auto_online}")
    return found


def online_first(machine: Machine) -> None:
    wanted(ONLINE)(machine)
    works("mem", "online", machine.addresses["dying-mem"], "256M", *machine.way.drive)


def works(*words: str) -> None:
    done = commands().run(*words, timeout=PATIENCE)
    assert done.returncode == 0, f"uvirtio {' '.join(words)}: {done.stdout}{done.stderr}"


def press(machine: Machine) -> None:
    """A key goes down and up."""
    for down in (True, False):
        data = {"down": down, "key": {"type": "qcode", "data": "a"}}
        machine.witness.execute("input-send-event", events=[{"type": "key", "data": data}])


def no_clone(_machine: Machine) -> list[str]:
    deadline = time.monotonic() + 5
    while left := [path.name for path in Path("/sys/devices/virtual/input").glob("input*")]:
        if time.monotonic() > deadline:
            return [f"clones left: {left}"]
        time.sleep(0.02)
    return []


def new_bytes(machine: Machine) -> None:
    new, old = machine.folder / "new", machine.folder / "old"
    if new.exists():
        (machine.folder / "seen").replace(old)
    else:
        old.write_bytes(bytes(MIB))
    new.write_bytes(os.urandom(MIB))


def each_sector_is_old_or_new(machine: Machine) -> list[str]:
    new, old, seen = ((machine.folder / name).read_bytes() for name in ("new", "old", "seen"))
    torn = [at for at in range(0, MIB, 512) if seen[at : at + 512] not in (new[at : at + 512], old[at : at + 512])]
    return [f"{len(torn)} sectors are neither what they were nor what was written"] if torn else []


def bind_first(machine: Machine) -> None:
    works("bind", *machine.addresses.values(), *machine.way.bind, *MANY)


def all_are_back(machine: Machine) -> list[str]:
    found = []
    if (now := machine.drivers()) != machine.at_first:
        found.append(f"drivers are {now}, and were {machine.at_first}")
    entries = json.loads(uvirtio("journal", "--json").stdout)["entries"]
    return found + ([f"{len(entries)} entries in the journal"] if entries else [])


INFLATE = ("balloon", "inflate", "ADDRESS")
BRIDGE = ("input", "bridge", "ADDRESS", "--for")
OFFLINE = ("mem", "offline", "ADDRESS")
RESTORE = ("restore", "--all")
MANY = ("--force", "many")
VICTIMS = {
    one.name: one
    for one in (
        Victim(
            "inflate",
            "dying-balloon",
            (*INFLATE, "24M", "--hold", "0.3", "--force", "free-memory"),
            (*INFLATE, "4M", "--hold", "0", "--force", "free-memory"),
            after=the_balloon_is_empty,
        ),
        Victim(
            "plug",
            "dying-mem",
            ("mem", "plug", "ADDRESS", "64M"),
            ("mem", "unplug-all", "ADDRESS"),
            before=wanted(64 * MIB),
            after=nothing_is_plugged,
        ),
        Victim(
            "online",
            "dying-mem",
            ("mem", "online", "ADDRESS", "256M"),
            OFFLINE,
            before=wanted(ONLINE),
            after=linux_has_what_it_had,
        ),
        Victim("offline", "dying-mem", OFFLINE, OFFLINE, before=online_first, after=linux_has_what_it_had),
        Victim("bridge", "dying-keyboard", (*BRIDGE, "0.5"), (*BRIDGE, "0.1"), meanwhile=press, after=no_clone),
        Victim(
            "write",
            "dying-disk",
            ("blk", "write", "ADDRESS", "0", "--in", "FOLDER/new", "--allow-write"),
            ("blk", "read", "ADDRESS", "0", "1M", "--output", "FOLDER/seen"),
            before=new_bytes,
            after=each_sector_is_old_or_new,
        ),
        Victim("bind", "", ("bind", "ADDRESSES", *MANY), RESTORE, after=all_are_back),
        Victim("restore", "", RESTORE, RESTORE, before=bind_first, after=all_are_back),
    )
}
EACH = [(victim.device or "dying-balloon", name) for name, victim in VICTIMS.items()]


# --- the ways -----------------------------------------------------------------------------------------------


def by_hand(driver: str, addresses: list[str]) -> None:
    for address in addresses:
        hand_over(address, driver)


def vdpa_by_hand(driver: str, addresses: list[str]) -> None:
    for address in addresses:
        vduse.hand_over(address.removeprefix("vdpa:"), driver)


def without_virtio_mmio(_addresses: list[str]) -> None:
    if Path("/sys/bus/platform/drivers/virtio-mmio").exists():
        modprobe("-r", "virtio_mmio")


def with_virtio_mmio(_addresses: list[str]) -> None:
    modprobe("-a", "virtio_mmio", *MODULES)


PCI_BACK = partial(by_hand, "virtio-pci")
UNSAFE = ("--unsafe-dma",)
WAYS = {
    "deaths-vfio": Way("vfio", partial(by_hand, "vfio-pci"), PCI_BACK),
    "deaths-uio": Way(
        "uio", partial(by_hand, "uio_pci_generic"), PCI_BACK, UNSAFE, ("--driver", "uio_pci_generic")
    ),
    "deaths-mmio": Way("/dev/mem", without_virtio_mmio, with_virtio_mmio, UNSAFE, ("--group",), ""),
    "deaths-vdpa": Way("vhost-vdpa", partial(vdpa_by_hand, "vhost_vdpa"), partial(vdpa_by_hand, "virtio_vdpa")),
}


def vdpa_devices(functions: dict[str, str]) -> dict[str, str]:
    """A vDPA device on each function."""
    for module in ("vhost_vdpa", "vp_vdpa", "virtio_vdpa", "virtio_blk"):
        modprobe(module)
    for name, address in functions.items():
        function = Path("/sys/bus/pci/devices", address)
        (function / "driver_override").write_text("vp-vdpa")
        if (function / "driver").exists():
            (function / "driver/unbind").write_text(address)
        Path("/sys/bus/pci/drivers_probe").write_text(address)
        vduse.run("vdpa", "dev", "add", "name", name, "mgmtdev", f"pci/{address}")
    return {name: f"vdpa:{name}" for name in functions}


@pytest.fixture(scope="module")
def machine(lab_devices: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    way = WAYS[os.environ["UVIRTIO_LAB_MACHINE"]]
    modprobe("-a", "uinput", "evdev")
    # vhost-vdpa counts what it pins by this, for root as for everyone.
    resource.prlimit(commands().pid, resource.RLIMIT_MEMLOCK, (256 * MIB, 256 * MIB))
    addresses = {name: lab_devices[name] for name in EIGHT if name in lab_devices}
    drivers: Callable[[str], str] = driver_of
    with Witness() as witness:
        if way.name == "/dev/mem":
            addresses = {name: address_of(witness, name) for name in EIGHT if name != "dying-mem"}
            drivers = lambda address: listed()[address]  # noqa: E731
        elif way.name == "vhost-vdpa":
            addresses = vdpa_devices(addresses)
            drivers = lambda address: vduse.driver_of(address.removeprefix("vdpa:"))  # noqa: E731
        assert len(addresses) >= 8
        way.give(list(addresses.values()))
        yield Machine(
            way,
            addresses,
            witness,
            tmp_path_factory.mktemp("deaths"),
            lambda: {name: drivers(address) for name, address in addresses.items()},
        )
        way.give(list(addresses.values()))


def listed() -> dict[str, str]:
    """Drivers by address, as Linux has them."""
    from uvirtio.binding.discover import scan
    from uvirtio.host.roots import Roots

    return {found.address: found.driver or "" for found in scan(Roots())}


@pytest.fixture(scope="module")
def killing(machine: Machine) -> Iterator[Killing]:
    with closing(Killing(machine, int(os.environ.get("UVIRTIO_KILLS_SEED", "1")))) as it:
        yield it


@pytest.fixture(scope="module")
def turns(request: pytest.FixtureRequest) -> Iterator[float]:
    """Seconds for each workload in turn: its part of what is left of all."""
    end = time.monotonic() + float(os.environ.get("UVIRTIO_KILLS_SECONDS", "inf"))
    return ((end - time.monotonic()) / left for left in range(len(request.session.items), 0, -1))


@pytest.mark.fault(66, 79, 82, 89, level="K")
@pytest.mark.parametrize(("device", "name"), EACH, ids=list(VICTIMS))
def test_killed_or_stopped_at_any_moment_it_harms_nothing_and_can_be_followed(
    machine: Machine,
    killing: Killing,
    turns: Iterator[float],
    device: str,
    name: str,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim = VICTIMS[name]
    addresses = list(machine.addresses.values())
    (machine.way.take if victim.drives else machine.way.give)(addresses)
    try:
        deaths = killing.run(victim, int(os.environ.get("UVIRTIO_KILLS", "1")), next(turns))
    finally:
        if victim.device == "dying-mem":
            wanted(0)(machine)
    record_property("deaths", json.dumps(deaths.as_dict()))
    with capsys.disabled():  # at once: a run takes long, and may be cut off
        print(f"\n{deaths}", flush=True)
    assert not deaths.faults, deaths.faults
