"""What is seen of a device at one moment, and at which rate its counters went up since the moment before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from uvirtio.device.evidence import Stall


@dataclass(frozen=True, slots=True)
class QueueSample:
    """One virtqueue."""

    index: int
    name: str
    format: str
    """``split`` or ``packed``."""
    size: int
    """Entries."""
    used: int
    """Descriptors of the ring that are in chains."""
    in_flight: int
    """Chains that the device has."""
    ages: tuple[float, ...]
    """For how long it has had them, in seconds; the oldest first, 64 at most."""
    kicks: int
    kicks_per_s: float
    completions: int
    """Chains that came back since the start."""
    completions_per_s: float
    stall: Stall
    says: str
    """``stall`` in words."""
    words: dict[str, int]
    """The indices, flags and event words of the ring."""
    addresses: tuple[int, int, int]
    """Device addresses of the descriptor, driver and device areas (2.6)."""


@dataclass(frozen=True, slots=True)
class VectorSample:
    """One interrupt of a device that another driver has."""

    irq: int
    name: str
    count: int | None
    """Since the kernel set it up; None: /proc/interrupts does not have it."""
    per_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A device at one moment."""

    number: int
    """0, 1, 2 ...; 0 is taken at the start, and has no rates."""
    time: float
    """Seconds since the start."""
    address: str
    type: str
    state: str
    """``DRIVER_OK`` and the like, ``broken``, ``gone``; of a device that another driver has: its status bits."""
    driver: str
    """Who drives it."""
    interrupt_mode: str
    """How it interrupts; empty: not known."""
    queues: tuple[QueueSample, ...]
    """Empty where another driver has them."""
    vectors: tuple[VectorSample, ...]
    """The interrupts that the kernel counts; empty for a device that this process drives."""
    interrupts: int | None
    """Interrupts that were taken; None: not known."""
    interrupts_per_s: float
    counters: dict[str, int]
    """Other counters: lost interrupts, interrupt storms, rounds of load, messages of the device."""
    config_changes: int | None
    """Notifications that the configuration changed; None: not known."""
    config: dict[str, int | str]
    """The fields of the device configuration."""
    about: dict[str, str]
    """What else is known, for people."""
    events: tuple[str, ...]
    """What happened since the sample before, for people."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, for JSON."""
        made = asdict(self)
        for queue in made["queues"]:
            queue["addresses"] = [f"{one:#x}" for one in queue["addresses"]]
        return made


Tell = Callable[[Sample], None]
"""Called with each sample, in the thread that runs the source."""


class Stopped(BaseException):
    """Ends ``Source.run`` in order."""


class Source(Protocol):
    """Where samples come from."""

    def run(self, tell: Tell) -> None:
        """Take samples until the source is stopped or interrupted.

        Args:
            tell: Called with each sample. It may raise ``Stopped``.
        """
        ...

    def interrupt(self, reason: BaseException) -> None:
        """Make ``run`` raise ``reason``. From a signal handler or another thread.

        Args:
            reason: The exception; ``Stopped`` lets ``run`` return.
        """
        ...


def rate(now: int, before: int, seconds: float) -> float:
    """How fast a counter went up.

    Args:
        now: The counter.
        before: Its value ``seconds`` ago.
        seconds: 0: it was not looked at before.
    """
    return max(0, now - before) / seconds if seconds > 0 else 0.0
