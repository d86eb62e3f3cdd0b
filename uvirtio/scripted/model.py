"""What makes a scripted device an rng, a balloon, a disk: the part that a device of your own replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from uvirtio.scripted.memory import Memory, ScriptedBlock
from uvirtio.scripted.ring import Chain
from uvirtio.spec.layout import Field


class Surroundings(Protocol):
    """What a model may ask of the scripted device that it is in (``ScriptedCore``)."""

    memory: Memory
    """What the device reaches by DMA."""
    driver_features: int
    """The features that the driver accepted."""

    @property
    def status_now(self) -> int:
        """The device status (2.1)."""

    @property
    def speaks_legacy(self) -> bool:
        """Whether the driver uses a legacy interface (2.2.3)."""

    def check(self, requirement: str, holds: bool, message: str) -> None:
        """Record that the driver broke a rule, unless it holds."""

    def complete(self, queue: int, chain: Chain, written: int = 0, *, interrupt: bool = True) -> None:
        """Give back a chain that the model kept."""

    def fetch(self, queue: int) -> int:
        """Take all chains of a queue; how many there were."""

    def interrupt_queue(self, queue: int, *, force: bool = False) -> None:
        """The interrupt for what was completed, if the driver wants one."""

    def change_config(self, offset: int, data: bytes, *, interrupt: bool = True) -> None:
        """Change the device configuration as a device does: new generation, then the notification."""

    def needs_reset(self) -> None:
        """The device gives up (2.1.1)."""


class Model:
    """What makes the device an rng, a balloon, an input: features, configuration, and what a kick does."""

    device_id = 0
    features = 0
    queue_sizes: Sequence[int] = (64,)
    fields: Mapping[str, Field] = {}
    """The fields of the configuration, by name."""
    any_time: frozenset[int] = frozenset()
    """Offsets of configuration fields that a driver may write before it has set FEATURES_OK."""
    other_sides: frozenset[str] = frozenset()
    """What there is of ``peer``, ``screen`` and ``memory`` (``interfaces.backend.OtherSide``)."""

    def __init__(self) -> None:
        self.config = bytearray()
        self.device: Surroundings

    def reset(self) -> None:
        """The device was reset."""

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""

    def driver_ok(self) -> None:
        """The driver set DRIVER_OK."""

    def memory_freed(self, block: ScriptedBlock) -> None:
        """The driver frees memory while the device runs."""

    def handle(self, queue: int, chain: Chain) -> int | None:
        """A chain came; the bytes written to it, or None to keep it for later (``device.complete``)."""
        return 0

    def shown_queues(self, count: int) -> int:
        """How many of its queues the device shows (``num_queues``) with the features that are accepted now."""
        return count

    def read_config(self, offset: int, width: int) -> int:
        """Read ``width`` bytes of the configuration at ``offset``, little-endian."""
        return int.from_bytes(self.config[offset : offset + width], "little")

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write of ``width`` bytes to the configuration at ``offset``, little-endian."""
        self.config[offset : offset + width] = value.to_bytes(width, "little")

    def peer_send(self, data: bytes) -> None:
        """``peer``: the host sends bytes."""
        raise NotImplementedError

    def peer_receive(self) -> bytes:
        """``peer``: the bytes that came at the host since the last call."""
        raise NotImplementedError

    def screen(self) -> bytes:
        """``screen``: what it shows, as a portable pixmap (P6)."""
        raise NotImplementedError

    def cpu_read(self, address: int, length: int) -> bytes:
        """``memory``: read guest-physical memory that is the device's."""
        raise NotImplementedError

    def cpu_write(self, address: int, data: bytes) -> None:
        """``memory``: write guest-physical memory that is the device's."""
        raise NotImplementedError

    def file_read(self, offset: int, length: int) -> bytes:
        """``memory``: read what is behind that memory."""
        raise NotImplementedError

    def file_write(self, offset: int, data: bytes) -> None:
        """``memory``: write what is behind that memory."""
        raise NotImplementedError

    def put(self, name: str, value: int, *, interrupt: bool | None = None) -> None:
        """Change a field; with ``interrupt`` as a device does it, otherwise just so."""
        field = self.fields[name]
        data = value.to_bytes(field.width, "little")
        if interrupt is None:
            self.config[field.offset : field.end] = data
        else:
            self.device.change_config(field.offset, data, interrupt=interrupt)

    def get(self, name: str) -> int:
        """The value of the configuration field ``name``."""
        field = self.fields[name]
        return int.from_bytes(self.config[field.offset : field.end], "little")


class Admin:
    """What is behind the administration queues of a device; see ``scripted.admin``."""

    queue_sizes: Sequence[int] = ()
    first = 0
    device: Surroundings
    """The device that it belongs to."""

    def reset(self) -> None:
        """The device was reset."""

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Answer a command; the bytes written, or None to keep it."""
        raise NotImplementedError
