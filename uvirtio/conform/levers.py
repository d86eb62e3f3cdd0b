"""Levers of the host: what changes a device's configuration from outside, as its user does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

from uvirtio.conform.steps import Steps
from uvirtio.conform.verdict import Unfit
from uvirtio.device import Device
from uvirtio.diag.probes.outcome import supplied_disk
from uvirtio.errors import QemuFailed
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted import Balloon, Disk, Input, Mem, Net, ScriptedCore
from uvirtio.spec import input as input_spec
from uvirtio.spec import net

_MIB: Final = 1 << 20
_BLOCKS: Final = 4  # of a memory device, at most: those of a test with a plugged one to spare

Change = Callable[[int], object]
"""Makes one change; of two numbers that follow each other each makes another configuration."""


def lever(device: Device) -> Change:
    """What changes the configuration of a device from outside.

    Args:
        device: The device.

    Raises:
        Unfit: There is no way to do that here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore):
        return _scripted(backend)
    if device.guest is not None:
        return _of_machine(device.type, device.guest)
    raise Unfit("its host cannot be asked to change the configuration")


def reports(device: Device) -> Change:
    """What makes an input device report one update of several events (5.8.6).

    Args:
        device: The device, which runs.

    Returns:
        Presses two keys for an even number and lets go of them for an odd one, or moves along two axes.

    Raises:
        Unfit: There is no way to do that here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore):
        model = backend.model
        if isinstance(model, Input):
            return lambda number: model.report(
                (input_spec.EV_KEY, 30, 1 - number % 2), (input_spec.EV_KEY, 31, 1 - number % 2), (0, 0, 0)
            )
    elif device.guest is not None:
        guest = device.guest
        kind = str(guest.qmp("qom-get", path=f"/machine/peripheral/{guest.id}", property="type"))
        for model_name, update in _UPDATES.items():
            if kind.startswith(f"virtio-{model_name}-"):
                return lambda number: guest.qmp("input-send-event", events=update(number))
    raise Unfit("its host cannot be asked for an event")


def announce(device: Device) -> Change:
    """What makes a network device ask its driver for an announcement (5.1.6.5.4).

    Args:
        device: The device, which runs.

    Raises:
        Unfit: There is no way to do that here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Net):
        model = backend.model
        return lambda number: model.put("status", model.get("status") | net.STATUS_ANNOUNCE, interrupt=True)
    if device.guest is not None:
        guest = device.guest
        return lambda number: guest.qmp("announce-self", initial=50, max=550, rounds=1, step=50)
    raise Unfit("its host cannot be asked for an announcement")


def _keys(number: int) -> list[dict[str, Any]]:
    keys = [{"down": number % 2 == 0, "key": {"type": "qcode", "data": name}} for name in ("a", "s")]
    return [{"type": "key", "data": one} for one in keys]


def _moves(kind: str) -> Callable[[int], list[dict[str, Any]]]:
    # Never the place of before, for a pointer that is told where it is, and one that is told how far to go.
    return lambda number: [
        {"type": kind, "data": {"axis": axis, "value": value + number % 2}} for axis, value in (("x", 7), ("y", 9))
    ]


_UPDATES: Final = {"keyboard": _keys, "mouse": _moves("rel"), "tablet": _moves("abs")}
"""What QMP input-send-event is given, by the model."""


class Statistics:
    """The host's side of a balloon's statistics (5.5.6.3); a context manager, which asks no more at its end."""

    def ask(self) -> None:
        """Ask for new ones, now or soon, which gives the buffer back."""
        raise NotImplementedError

    def rest(self) -> None:
        """Ask no more."""

    def read(self) -> dict[int, int]:
        """The values that were told last, by tag."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()


def statistics(device: Device) -> Statistics:
    """The host's side of a balloon's statistics.

    Args:
        device: The balloon.

    Raises:
        Unfit: There is no way to ask it.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Balloon):
        return _ScriptedStatistics(backend.model)
    if device.guest is not None:
        return _MachineStatistics(device.guest)
    raise Unfit("its host cannot be asked for statistics")


class _ScriptedStatistics(Statistics):
    def __init__(self, model: Balloon) -> None:
        self._model = model

    def ask(self) -> None:
        """The model gives its buffer back."""
        self._model.ask_for_stats()

    def read(self) -> dict[int, int]:
        """What the model shows."""
        return dict(self._model.shown)


class _MachineStatistics(Statistics):
    """QEMU: ``guest-stats`` and ``guest-stats-polling-interval`` of the balloon."""

    def __init__(self, guest: GuestMachine) -> None:
        self._guest = guest
        self._path = f"/machine/peripheral/{guest.id}"

    def _poll(self, seconds: int) -> None:
        self._guest.qmp("qom-set", path=self._path, property="guest-stats-polling-interval", value=seconds)

    def ask(self) -> None:
        """Turn polling off and on again, which asks at once."""
        self._poll(0)
        self._poll(1)

    def rest(self) -> None:
        """Turn polling off."""
        self._poll(0)

    def read(self) -> dict[int, int]:
        """What the object shows, without what it was not told."""
        told = self._guest.qmp("qom-get", path=self._path, property="guest-stats")["stats"]
        return {tag: told[name] for name, tag in _STATS.items() if told.get(name, _UNTOLD) not in (-1, _UNTOLD)}


_UNTOLD: Final = (1 << 64) - 1
_STATS: Final = {
    "stat-swap-in": 0,
    "stat-swap-out": 1,
    "stat-major-faults": 2,
    "stat-minor-faults": 3,
    "stat-free-memory": 4,
    "stat-total-memory": 5,
    "stat-available-memory": 6,
    "stat-disk-caches": 7,
    "stat-htlb-pgalloc": 8,
    "stat-htlb-pgfail": 9,
}
"""Tags (5.5.6.4) by QEMU's names."""


class Rounds:
    """What a host does that makes use of hints (5.5.6.5), such as a migration; a context manager."""

    def begin(self) -> None:
        """Have the device ask for hints, now or soon."""
        raise NotImplementedError

    def end(self) -> None:
        """Have no more use for them; idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def rounds(t: Steps) -> Rounds:
    """A host that makes use of hints.

    Args:
        t: The trial of a balloon.

    Raises:
        Unfit: Its host cannot be made to.
    """
    backend = t.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Balloon):
        return _ScriptedRounds(backend.model)
    if t.device.guest is not None:
        return _Migrations(t, t.device.guest)
    raise Unfit("its host cannot be made to want hints")


class _ScriptedRounds(Rounds):
    def __init__(self, model: Balloon) -> None:
        self._model = model
        self._on = False

    def begin(self) -> None:
        """The model has a new id."""
        self._on = True
        self._model.begin_round()

    def end(self) -> None:
        """The model is done."""
        if self._on:
            self._on = False
            self._model.end_round()


class _Migrations(Rounds):
    """Migrations of the machine into nothing, so slow that they last as long as they have to."""

    def __init__(self, t: Steps, guest: GuestMachine) -> None:
        self._t = t
        self._guest = guest
        self._on = False

    def begin(self) -> None:
        """Begin to migrate."""
        self._guest.qmp("migrate-set-parameters", **{"max-bandwidth": _SLOW})
        try:
            self._guest.qmp("migrate", uri="exec:cat >/dev/null")
        except QemuFailed as error:
            raise Unfit(str(error)) from error
        self._on = True

    def end(self) -> None:
        """Let the migration come to its end, and the machine go on here."""
        if not self._on:
            return
        self._on = False
        self._guest.qmp("migrate-set-parameters", **{"max-bandwidth": _FAST})
        if not self._t.until(self._over, 8 * self._t.pace.deadline):
            self._guest.qmp("migrate_cancel")
        self._t.until(self._over, self._t.pace.deadline)
        self._guest.qmp("cont")

    def _over(self) -> bool:
        return self._guest.qmp("query-migrate").get("status") in ("completed", "failed", "cancelled")


_SLOW: Final = 4096  # bytes in a second
_FAST: Final = 1 << 32


def _scripted(device: ScriptedCore) -> Change:
    model = device.model
    if isinstance(model, Balloon):
        return lambda number: model.set_target(256 * (number + 1))
    if isinstance(model, Disk):
        return lambda number: model.grow(4096 + number)
    if isinstance(model, Mem):
        return lambda number: model.request(model.block_size * (1 + number % _BLOCKS))
    raise Unfit(f"a scripted {device.type} has no configuration to change")


def _of_machine(type_name: str, guest: GuestMachine) -> Change:
    if type_name == "balloon":
        return lambda number: guest.qmp("balloon", value=guest.ram - _MIB * (1 + number % 64))
    if type_name == "blk":
        return _resize(guest)
    if type_name == "mem":
        path, name = f"/machine/peripheral/{guest.id}", "requested-size"
        block = int(guest.qmp("qom-get", path=path, property="block-size"))
        return lambda number: guest.qmp("qom-set", path=path, property=name, value=block * (1 + number % _BLOCKS))
    raise Unfit(f"the host has no way to change the configuration of {type_name}")


def _resize(guest: GuestMachine) -> Change:
    """Another size of the disk that was supplied for this device."""
    disk = supplied_disk(guest.qmp, guest.id)
    if disk is None:
        raise Unfit("the disk is not the one that was made for this device")
    size = int(disk["inserted"]["image"]["virtual-size"]) // _MIB * _MIB
    return lambda number: guest.qmp("block_resize", device=disk["device"], size=size + _MIB * (1 + number % 2))
