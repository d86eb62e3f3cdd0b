"""Samples of a device as lines of text, for ``uvirtio top`` without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.sampling.sample import QueueSample, Sample


def lines(sample: Sample) -> Iterator[str]:
    """A sample as text: a line for the device, one for each queue or interrupt, one for each event.

    Args:
        sample: The sample.
    """
    yield f"{_at(sample)}  {summary(sample)}"
    for queue in sample.queues:
        yield f"{_at(sample)}  {of_queue(queue)}"
    for vector in sample.vectors:
        known = "-" if vector.count is None else str(vector.count)
        yield f"{_at(sample)}  irq {vector.irq}  {vector.name or '-'}  {known} ({vector.per_s:.1f}/s)"
    yield from events(sample)


def events(sample: Sample) -> Iterator[str]:
    """The events of a sample as lines of text.

    Args:
        sample: The sample.
    """
    for event in sample.events:
        yield f"{_at(sample)}  log  {event}"


def _at(sample: Sample) -> str:
    return f"{sample.time:8.1f} s"


def summary(sample: Sample) -> str:
    """The device in one line.

    Args:
        sample: The sample.
    """
    parts = [f"{sample.type} at {sample.address}", sample.state]
    if sample.interrupt_mode:
        parts.append(sample.interrupt_mode)
    if sample.driver != "uvirtio":
        parts.append(f"driver {sample.driver}")
    parts.append(
        "interrupts unknown"
        if sample.interrupts is None
        else f"interrupts {sample.interrupts} ({sample.interrupts_per_s:.1f}/s)"
    )
    if sample.config_changes is not None:
        parts.append(f"configuration changes {sample.config_changes}")
    parts += [f"{name} {value}" for name, value in sample.counters.items() if value]
    return "  ".join(parts)


def of_queue(queue: QueueSample) -> str:
    """A queue in one line.

    Args:
        queue: The queue.
    """
    oldest = f"  oldest {age(queue.ages[0])}" if queue.ages else ""
    return (
        f"queue {queue.index} {queue.name}  {queue.format}  descriptors {queue.used} of {queue.size}  "
        f"in flight {queue.in_flight}{oldest}  kicks {queue.kicks} ({queue.kicks_per_s:.1f}/s)  "
        f"back {queue.completions} ({queue.completions_per_s:.1f}/s)  {queue.stall}: {queue.says}"
    )


def age(seconds: float) -> str:
    """A time in the unit that suits it.

    Args:
        seconds: The time.
    """
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02}:{int(seconds) % 60:02} h"
