"""A device that this process opens and drives, looked at from inside: its rings, its books, its configuration."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio import opening
from uvirtio.device import Device, OpenOptions, unobserved
from uvirtio.device.evidence import SAYS, of_queue
from uvirtio.diag import datapath
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.errors import UvirtioError
from uvirtio.interfaces.backend import Backend
from uvirtio.sampling.sample import QueueSample, Sample, Stopped, Tell, rate
from uvirtio.spec import device_config
from uvirtio.spec import features as f
from uvirtio.spec import input as input_spec

_EVENTS_MAX = 100
"""Lines of text that are kept for one sample."""
_WRITTEN = frozenset({("balloon", "actual"), ("balloon", "poison_val"), ("blk", "writeback")})
"""Fields that the driver writes (5.5.4, 5.2.5): their changes are its own."""


class Driven:
    """Opens a device, brings it up with the driver of its type and serves it; a ``Source``.

    All of that, and the looking, goes on in the thread that calls ``run``.
    """

    def __init__(
        self,
        address: str | Backend,
        options: OpenOptions,
        *,
        interval: float,
        load: float = 0.0,
        opened: Callable[[Device], None] = lambda _: None,
    ) -> None:
        """Note what to do; nothing is opened yet.

        Args:
            address: The device, as ``uvirtio.open`` takes it.
            options: How to open it.
            interval: Seconds from one sample to the next.
            load: How many times a second the data path of ``diag`` is run; 0: never, the device is only served.
            opened: Called with the device as soon as it is open.
        """
        self._address, self._options = address, options
        self._interval, self._load = interval, load
        self._opened = opened
        self._device: Device | None = None
        self._reason: BaseException | None = None

    def interrupt(self, reason: BaseException) -> None:
        """Make ``run`` raise ``reason``, as soon as the device is open; see ``Source``."""
        self._reason = reason
        if self._device is not None:
            self._device.interrupt(reason)

    def run(self, tell: Tell) -> None:
        """Open the device and take samples until it is interrupted; see ``Source``.

        Raises:
            UvirtioError: What opening the device, its bring-up and its driver raise; where the device was brought
                up, a last sample comes before it.
        """
        with opening.open(self._address, options=self._options) as device:
            self._device = device
            self._opened(device)
            try:
                if self._reason is not None:
                    raise self._reason
                self._drive(device, tell)
            except Stopped:
                pass
            finally:
                self._device = None

    def _drive(self, device: Device, tell: Tell) -> None:
        clock = device.clock
        path = datapath.for_device(device)
        path.start(unobserved)
        looks = _Looks(device, self._load, tell)
        if device.warning is not None:
            looks.note(f"warning: {device.warning}")
        looks.take()
        due = clock.monotonic() + self._interval
        again = clock.monotonic()  # when the next round of load is due

        def pulse() -> None:
            nonlocal due
            now = clock.monotonic()
            if now >= due:
                looks.take()
                # Late samples are not made up for: the rates go by the time that passed.
                due = max(due + self._interval, now)

        device.pulse = pulse
        try:
            while True:
                now = clock.monotonic()
                if self._load and now >= again:
                    looks.round(path.exercise())
                    again = max(again + 1 / self._load, now)
                until = min(due, again) if self._load else due
                looks.arrived += path.serve(max(0.0, until - clock.monotonic()))
                pulse()
        except UvirtioError as error:
            looks.note(f"{error.code}: {error.message}" + (f"; seen: {error.seen}" if error.seen else ""))
            looks.take()
            raise
        finally:
            device.pulse = None


class _Looks:
    """Takes the samples of one device."""

    def __init__(self, device: Device, load: float, tell: Tell) -> None:
        self._device, self._tell, self._load = device, tell, load
        self._begin = self._before = device.clock.monotonic()
        self._number = 0
        self._kicks: dict[int, int] = {}
        self._completions: dict[int, int] = {}
        self._interrupts = 0
        self._changes = 0
        self._config: dict[str, int | str] | None = None
        self._events: list[str] = []
        self._odd = ""
        self.arrived = 0
        self._rounds = 0

    def note(self, text: str) -> None:
        """Note an event for the next sample."""
        if len(self._events) < _EVENTS_MAX:
            self._events.append(text)

    def round(self, result: PathResult) -> None:
        """Note a round of load, and what is odd about it where that is new."""
        self._rounds += 1
        told = result.suspicious or (result.detail if result.skipped else "")
        if told and told != self._odd:
            self.note(f"data path: {told}")
        self._odd = told

    def take(self) -> None:
        """Take a sample and tell it."""
        device = self._device
        now = device.clock.monotonic()
        passed = now - self._before if self._number else 0.0
        config = self._read_config()
        counters = device.counters
        queues = tuple(one for index in sorted(device.queues) if (one := self._queue(index, passed)) is not None)
        events, self._events = tuple(self._events), []
        sample = Sample(
            number=self._number,
            time=now - self._begin,
            address=device.address,
            type=device.type,
            state=device.state,
            driver="uvirtio",
            interrupt_mode=device.transport.interrupt_mode.value,
            queues=queues,
            vectors=(),
            interrupts=counters.interrupts_taken,
            interrupts_per_s=rate(counters.interrupts_taken, self._interrupts, passed),
            counters={
                "missed interrupts": counters.missed_interrupts,
                "interrupt storms": counters.interrupt_storms,
                "messages": self.arrived,
                **({"rounds": self._rounds} if self._load else {}),
            },
            config_changes=counters.config_changes,
            config=config,
            about={"transport": device.transport.description, "features": f"{device.features:#x}"},
            events=events,
        )
        self._interrupts, self._before = counters.interrupts_taken, now
        self._number += 1
        self._tell(sample)

    def _queue(self, index: int, passed: float) -> QueueSample | None:
        queue = self._device.queues[index]
        seen = of_queue(queue)
        if seen is None:
            return None
        kicks, completions = self._kicks.get(index, 0), self._completions.get(index, 0)
        self._kicks[index], self._completions[index] = queue.kicks, queue.completions
        return QueueSample(
            index=index,
            name=queue.name,
            format=seen.format,
            size=seen.size,
            used=seen.size - seen.free,
            in_flight=seen.in_flight,
            ages=tuple(seconds for _, seconds in seen.ages),
            kicks=queue.kicks,
            kicks_per_s=rate(queue.kicks, kicks, passed),
            completions=queue.completions,
            completions_per_s=rate(queue.completions, completions, passed),
            stall=seen.stall,
            says=SAYS[seen.stall],
            words=seen.words,
            addresses=seen.addresses,
        )

    def _read_config(self) -> dict[str, int | str]:
        """The configuration, and notes of what is new in it; as it was, where the device is of no use any more."""
        device, before = self._device, self._config or {}
        changes, told = device.counters.config_changes, device.counters.config_changes != self._changes
        if device.broken is not None or device.device_id == input_spec.TYPE:
            return before  # 5.8.4: what an input device shows there is a window of its driver's
        fields = [
            field
            for field, needs in device_config.FIELDS.get(device.type, ())
            if field.width in (1, 2, 4, 8)
            and field.end <= device.transport.config_length
            and (needs is None or f.has(device.offered, needs))
        ]
        values = device.read_config(*fields) if fields else ()
        config: dict[str, int | str] = {field.name: value for field, value in zip(fields, values, strict=True)}
        if self._config is not None:
            for name, value in config.items():
                if value != before.get(name) and (device.type, name) not in _WRITTEN:
                    unsaid = "" if told else " (without a notification)"
                    self.note(f"configuration: {name} {before.get(name)} -> {value}{unsaid}")
            if told and config == before:
                self.note("configuration: the device says that it changed, and it reads as before")
        self._changes, self._config = changes, config
        return config
