"""The objects of a back end on a tape: a PCI function, a virtio-mmio window, a vDPA node.

Each is the same class for a record and for its replay. What a back end's object has beyond the three Protocols (a
guest machine, a guardian, the memory of a virtio-mem device) is added from mixins, because ``isinstance`` asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvirtio.errors import BadTrace
from uvirtio.interfaces.backend import (
    Backend,
    Guarded,
    GuestMachine,
    Hurries,
    OtherSide,
    ProvidesMemory,
    WithoutIommu,
)
from uvirtio.interfaces.memory import AdoptsMemory, DmaSpace, Event
from uvirtio.interfaces.values import BarInfo
from uvirtio.trace.chains import ChainWatch
from uvirtio.trace.parts import WatchedClock, WatchedDoorbell, WatchedEvent, WatchedRegisters, WatchedWindow
from uvirtio.trace.tape import Fits, Tape, anything, feature_word, flag, no_facts, nothing, number, obtain, of
from uvirtio.trace.words import WatchedDma, dma_on

_FACTS = {
    "pci": ("address", "description", "translates", "has_intx"),
    "mmio": ("address", "description", "translates"),
    "vdpa": ("address", "description", "calls"),
    "vhost-user": ("address", "description", "calls"),
}


def facts_of(found: Backend) -> dict[str, Any]:
    """Return what is fixed about a back end's object, for the line ``open`` of a record."""
    facts: dict[str, Any] = {name: getattr(found, name) for name in _FACTS[found.bus]}
    facts["bus"] = found.bus
    facts["removal"] = getattr(found, "removal", None) is not None
    for name, registers in (("config", "config"), ("window", "registers")):
        length = getattr(getattr(found, registers, None), "length", None)
        if isinstance(length, int):
            facts[name] = length
    if isinstance(found, GuestMachine):
        facts["guest"] = [found.id, found.ram]
    if isinstance(found, WithoutIommu):
        facts["warning"] = found.warning
    facts["guarded"] = isinstance(found, Guarded) and found.bus == "pci"
    facts["memory"] = isinstance(found, ProvidesMemory)
    facts["other_sides"] = sorted(found.other_sides) if isinstance(found, OtherSide) else []
    return facts


def _facts_of_dma(space: DmaSpace) -> list[Any]:
    return [space.translated, space.contiguous_limit, isinstance(space, AdoptsMemory)]


def _is_there(found: object) -> bool:
    return found is not None


def _bar(value: Any) -> bool:
    return value is None or of(number, number, flag)(value)


def _hex(value: Any) -> bool:
    try:
        return isinstance(value, str) and bytes.fromhex(value) is not None
    except ValueError:
        return False


class _Watched:
    """The part that all back ends' objects have on a tape."""

    def __init__(self, tape: Tape, facts: dict[str, Any], inner: Any) -> None:
        self.tape, self.inner = tape, inner
        self.bus = facts["bus"]
        self.address, self.description = str(facts["address"]), str(facts["description"])
        self.clock = WatchedClock(tape)
        if "translates" in facts:
            self.translates = bool(facts["translates"])
        self.removal: Event | None = None
        if facts.get("removal"):
            self.removal = WatchedEvent(tape, "removal", getattr(inner, "removal", None))
        self._spaces: list[WatchedDma] = []
        self._closed = False
        self.undivided = inner is None or bool(getattr(inner, "undivided", False))

    def call(self, name: str, *args: Any, fits: Fits = nothing) -> Any:
        """Call a method of the object that has only plain arguments and results."""
        return self.tape.ask("call", name, list(args), lambda: getattr(self.inner, name)(*args), fits)

    def dma(self, translated: bool) -> WatchedDma:
        """Return memory for this device."""
        facts, inner = obtain(
            self.tape,
            "dma",
            [translated],
            lambda: self.inner.dma(translated),
            _facts_of_dma,
            of(flag, number, flag),
        )
        space = dma_on(self.tape, len(self._spaces), facts, inner)
        self._spaces.append(space)
        return space

    def hurry(self, deadline: float | None) -> float | None:
        """Hand on a deadline, which is no part of the record; see ``Hurries``."""
        return self.inner.hurry(deadline) if isinstance(self.inner, Hurries) else None

    def event(self, name: str, method: str) -> WatchedEvent | None:
        """Call a method that returns an event, or None."""
        there, event = obtain(self.tape, method, [], lambda: getattr(self.inner, method)(), _is_there, flag)
        return WatchedEvent(self.tape, name, event) if there else None

    def note(self, text: str) -> None:
        """Note a line of text; see ``Witnesses``."""
        self.tape.remark("note", text=text)

    def watch(self, queue: Any) -> None:
        """Note the chains of a queue from now on; see ``Witnesses``."""
        if not self.tape.replays:
            ChainWatch(self.tape, queue, self.bytes_at)

    def bytes_at(self, address: int, length: int) -> bytes:
        """Return DMA memory by its device address; what is not found is left out."""
        for space in reversed(self._spaces):
            found = space.bytes_at(address, length)
            if found:
                return found
        return b""

    def close(self) -> None:
        """Release the object; idempotent.

        Raises:
            Diverged: A replay: this is not where the recorded driver closed it, or an error before was swallowed.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.tape.ask("call", "close", [], lambda: self.inner.close())
        finally:
            self.tape.left()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}, {'replayed' if self.tape.replays else 'recorded'}>"


class WatchedFunction(_Watched):
    """A PCI function on a tape. Satisfies ``PciFunction``."""

    def __init__(self, tape: Tape, facts: dict[str, Any], inner: Any) -> None:
        """Put a function on a tape.

        Args:
            tape: The tape.
            facts: What ``facts_of`` says of it.
            inner: The real function; None in a replay.
        """
        super().__init__(tape, facts, inner)
        self.has_intx = bool(facts["has_intx"])
        self.config = WatchedRegisters(tape, "config", facts["config"], getattr(inner, "config", None))

    def _value(self, name: str, fits: Fits) -> Any:
        return self.tape.ask("call", name, [], lambda: getattr(self.inner, name), fits)

    @property
    def msix_vectors(self) -> int:
        """Number of vectors that ``enable_msix`` can enable."""
        return int(self._value("msix_vectors", number))

    @property
    def has_reset(self) -> bool:
        """Whether ``reset`` can reset the function."""
        return bool(self._value("has_reset", flag))

    def bar(self, index: int) -> BarInfo | None:
        """Return a base address register; see ``PciFunction``."""

        def do() -> list[Any] | None:
            found = self.inner.bar(index)
            return None if found is None else [found.index, found.size, found.is_io]

        found = self.tape.ask("call", "bar", [index], do, _bar)
        return None if found is None else BarInfo(*found)

    def registers(self, bar: int, offset: int, length: int) -> WatchedRegisters:
        """Return a window of a BAR; see ``PciFunction``."""
        place = [bar, offset, length]
        _, inner = obtain(self.tape, "registers", place, lambda: self.inner.registers(*place), no_facts)
        return WatchedRegisters(self.tape, f"bar{bar}+{offset:#x}", length, inner)

    def doorbell(self, bar: int, offset: int, value: int) -> WatchedDoorbell | None:
        """Return a doorbell that needs no access by this process; see ``PciFunction``."""
        place = [bar, offset, value]
        there, inner = obtain(self.tape, "doorbell", place, lambda: self.inner.doorbell(*place), _is_there, flag)
        return WatchedDoorbell(self.tape, f"bar{bar}+{offset:#x}={value}", inner) if there else None

    def enable_msix(self, count: int) -> list[WatchedEvent]:
        """Enable MSI-X; see ``PciFunction``."""
        found, events = obtain(
            self.tape,
            "enable_msix",
            [count],
            lambda: self.inner.enable_msix(count),
            len,
            lambda value: number(value) and value <= count,
        )
        return [
            WatchedEvent(self.tape, f"vector {index}", None if events is None else events[index])
            for index in range(found)
        ]

    def enable_intx(self) -> WatchedEvent | None:
        """Enable the interrupt pin; None where it is not available."""
        return self.event("intx", "enable_intx")

    def disable_interrupts(self) -> None:
        """Disable MSI-X or the interrupt pin."""
        self.call("disable_interrupts")

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable."""
        self.call("bus_master", on)

    def reset(self) -> bool:
        """Do a function-level reset; False where the function has none."""
        return bool(self.call("reset", fits=flag))


class WatchedMmio(_Watched):
    """A virtio-mmio window on a tape. Satisfies ``MmioWindow``."""

    def __init__(self, tape: Tape, facts: dict[str, Any], inner: Any) -> None:
        """Put a window on a tape; see ``WatchedFunction``."""
        super().__init__(tape, facts, inner)
        self.registers = WatchedRegisters(tape, "window", facts["window"], getattr(inner, "registers", None))

    def enable_interrupt(self) -> WatchedEvent | None:
        """Enable the interrupt line; None where it is not delivered."""
        return self.event("line", "enable_interrupt")

    def disable_interrupt(self) -> None:
        """Disable the interrupt line."""
        self.call("disable_interrupt")

    def guard(self, status: int) -> None:
        """Announce that the device is about to use memory."""
        self.call("guard", status)


class WatchedNode(_Watched):
    """A vDPA device on a tape. Satisfies ``VdpaNode``."""

    def __init__(self, tape: Tape, facts: dict[str, Any], inner: Any) -> None:
        """Put a node on a tape; see ``WatchedFunction``."""
        super().__init__(tape, facts, inner)
        self.calls = facts.get("calls")

    def watched_event(self, name: str, event: Event) -> WatchedEvent:
        """Return what stands for a call; see ``WatchesEvents``."""
        return WatchedEvent(self.tape, name, event)

    def watched_doorbell(self, name: str, doorbell: Any) -> WatchedDoorbell:
        """Return what stands for a kick; see ``WatchesEvents``."""
        return WatchedDoorbell(self.tape, name, doorbell)

    def get_config(self, offset: int, length: int) -> bytes:
        """Read the device configuration; see ``VdpaNode``."""
        found = self.tape.ask(
            "call",
            "get_config",
            [offset, length],
            lambda: bytes(self.inner.get_config(offset, length)).hex(),
            _hex,
        )
        return bytes.fromhex(found)

    def set_config(self, offset: int, data: bytes) -> None:
        """Write to the device configuration; see ``VdpaNode``."""
        self.tape.ask("call", "set_config", [offset, data.hex()], lambda: self.inner.set_config(offset, data))

    def _descriptor(self, name: str, *args: int) -> None:
        """A call whose last argument is a descriptor, which is another in each process."""
        kept = [*args[:-1], "none" if args[-1] < 0 else "eventfd"]
        self.tape.ask("call", name, kept, lambda: getattr(self.inner, name)(*args))

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Set the eventfd by which the driver kicks a queue."""
        self._descriptor("set_vring_kick", index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """Set the eventfd by which the device signals used buffers of a queue."""
        self._descriptor("set_vring_call", index, fd)

    def set_config_call(self, fd: int) -> None:
        """Set the eventfd by which the device signals a change of its configuration."""
        self._descriptor("set_config_call", fd)


def _plain(name: str) -> Callable[..., Any]:
    def method(self: _Watched, *args: Any) -> Any:
        return self.call(name, *args, fits=feature_word)

    method.__name__ = name
    method.__doc__ = f"``{name}`` of ``VdpaNode``."
    return method


for _name in [
    "get_device_id",
    "get_status",
    "set_status",
    "get_features",
    "set_features",
    "get_config_size",
    "get_vqs_count",
    "get_vring_num",
    "get_vring_size",
    "set_vring_num",
    "set_vring_addr",
    "set_vring_base",
    "get_vring_base",
    "set_vring_enable",
    "suspend",
    "resume",
]:
    setattr(WatchedNode, _name, _plain(_name))


class WatchedVhostUser(WatchedNode):
    """A vhost-user back end on a tape. Satisfies ``VhostUserNode``."""

    def __init__(self, tape: Tape, facts: dict[str, Any], inner: Any) -> None:
        """Put a back end on a tape; see ``WatchedFunction``."""
        super().__init__(tape, facts, inner)
        self._change: tuple[Event | None, WatchedEvent] | None = None

    @property
    def config_changes(self) -> WatchedEvent | None:
        """Fires when the configuration changes; a reset may replace it."""
        now = getattr(self.inner, "config_changes", None)
        if not self.tape.ask("call", "config_changes", [], lambda: now is not None, flag):
            return None
        if self._change is None or self._change[0] is not now:
            self._change = now, WatchedEvent(self.tape, "configuration", now)
        return self._change[1]


class _Guest(_Watched):
    """The ability ``GuestMachine``."""

    id = ""
    _ram = 0

    @property
    def ram(self) -> int:
        """Guest memory in bytes."""
        return self._ram

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of the machine's monitor."""
        return self.tape.ask(
            "call", "qmp", [command, arguments], lambda: self.inner.qmp(command, **arguments), anything
        )


class _Guarded(_Watched):
    """The ability ``Guarded`` of a PCI function."""

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Set where the device status is."""
        self.call("guard", bar, offset, width)


class _Memory(_Watched):
    """The ability ``ProvidesMemory``."""

    def plugged_memory(self) -> WatchedWindow:
        """Return a window of the memory region of the device."""
        size, inner = obtain(
            self.tape,
            "plugged_memory",
            [],
            lambda: self.inner.plugged_memory(),
            lambda made: int(made.size),
            number,
        )
        return WatchedWindow(self.tape, size, inner)


class _OtherSide(_Watched):
    """The ability ``OtherSide``."""

    other_sides: frozenset[str] = frozenset()

    def peer_send(self, data: bytes) -> None:
        """Send bytes to the device from what it connects to."""
        self.tape.ask("call", "peer_send", [data.hex()], lambda: self.inner.peer_send(data))

    def peer_receive(self, timeout: float) -> bytes:
        """Receive what the device has sent there."""
        return self._bytes("peer_receive", timeout)

    def screen(self) -> bytes:
        """Return what the device's screen shows."""
        return self._bytes("screen")

    def cpu_read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory."""
        return self._bytes("cpu_read", address, length)

    def cpu_write(self, address: int, data: bytes) -> None:
        """Write guest-physical memory."""
        self.tape.ask("call", "cpu_write", [address, data.hex()], lambda: self.inner.cpu_write(address, data))

    def file_read(self, offset: int, length: int) -> bytes:
        """Read the file behind the device's memory."""
        return self._bytes("file_read", offset, length)

    def file_write(self, offset: int, data: bytes) -> None:
        """Write the file behind the device's memory."""
        self.tape.ask("call", "file_write", [offset, data.hex()], lambda: self.inner.file_write(offset, data))

    def _bytes(self, name: str, *args: Any) -> bytes:
        ask = self.tape.ask
        return bytes.fromhex(ask("call", name, [*args], lambda: getattr(self.inner, name)(*args).hex(), _hex))


_KINDS: dict[str, type[_Watched]] = {
    "pci": WatchedFunction,
    "mmio": WatchedMmio,
    "vdpa": WatchedNode,
    "vhost-user": WatchedVhostUser,
}


def on_tape(tape: Tape, facts: dict[str, Any], inner: Backend | None) -> Any:
    """Return a back end's object on a tape.

    Args:
        tape: The tape.
        facts: What ``facts_of`` says of it.
        inner: The real object; None in a replay.

    Raises:
        BadTrace: The facts of a record are not those of a back end's object.
    """
    try:
        kind = _KINDS[facts["bus"]]
        abilities = {"guest": _Guest, "guarded": _Guarded, "memory": _Memory, "other_sides": _OtherSide}
        mixed = tuple(mixin for name, mixin in abilities.items() if facts.get(name))
        made = type(kind.__name__, (*mixed, kind), {})(tape, facts, inner)
        if facts.get("guest"):
            made.id, made._ram = facts["guest"]
        if facts.get("other_sides"):
            made.other_sides = frozenset(map(str, facts["other_sides"]))
        if "warning" in facts:
            made.warning = str(facts["warning"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadTrace(
            "the record does not say what was opened", seen=f"{type(error).__name__}: {error}"
        ) from error
    return made
