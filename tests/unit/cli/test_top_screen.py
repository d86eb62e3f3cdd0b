"""The screen of ``uvirtio top``: pictures of it compared with those in screens/, and its keys.

A picture is the text of the SVG that Textual exports, cell by cell. The SVG itself has another id each time, and
other markup in each version of Textual. To write the pictures again: UVIRTIO_SCREENS=write.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

pytest.importorskip("textual")

from textual.pilot import Pilot

from uvirtio.cli.screen import Top
from uvirtio.device import OpenOptions
from uvirtio.device.evidence import SAYS
from uvirtio.errors import DeviceTimeout, OperationFailed, UsageError
from uvirtio.sampling.driven import Driven
from uvirtio.sampling.sample import QueueSample, Sample, Source, Stopped, Tell, VectorSample

if TYPE_CHECKING:
    from uvirtio.device.evidence import Stall

SCREENS = Path(__file__).parent / "screens"
_CELL = 12.2
"""Width of a character in the SVG, in pixels."""

Act = Callable[[Pilot[None]], Awaitable[None]]


def picture(app: Top) -> str:
    """The text on the screen, line by line."""
    lines: dict[int, list[str]] = {}
    for text in ElementTree.fromstring(app.export_screenshot()).iter("{http://www.w3.org/2000/svg}text"):
        place = re.search(r"line-(\d+)\)", text.get("clip-path", ""))
        if place is None:
            continue  # the title of the window
        line = lines.setdefault(int(place[1]), [])
        start = round(float(text.get("x", "0")) / _CELL)
        line += [" "] * (start - len(line)) + list((text.text or "").replace("\xa0", " "))
    width, height = app.size
    made = ["".join(lines.get(number, ())).rstrip() for number in range(height)]
    assert all(len(line) <= width for line in made)
    return "\n".join(made) + "\n"


class Fed:
    """A source of samples that were made up."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._stopped = threading.Event()

    def run(self, tell: Tell) -> None:
        for sample in self._samples:
            tell(sample)
        self._stopped.wait(30)

    def interrupt(self, reason: BaseException) -> None:
        assert isinstance(reason, Stopped)
        self._stopped.set()


def shown(source: Source, act: Act, size: tuple[int, int] = (110, 26)) -> Top:
    """The application, after ``act`` has been done to it and the device was left."""

    async def go() -> Top:
        app = Top(source, interval=0.5)
        try:
            async with app.run_test(size=size) as pilot:
                await act(pilot)
        finally:
            await asyncio.to_thread(app.end)
        return app

    return asyncio.run(go())


async def until(pilot: Pilot[None], wanted: Callable[[str], bool], *, or_last: bool = False) -> str:
    """The picture, as soon as it is as wanted; ``or_last``: the last one, where it never is."""
    deadline = time.monotonic() + 20
    while True:
        await pilot.pause(0.02)
        assert isinstance(pilot.app, Top)
        seen = picture(pilot.app)
        if wanted(seen) or (or_last and time.monotonic() > deadline):
            return seen
        assert time.monotonic() < deadline, seen


def queue(index: int, name: str, stall: Stall, used: int, *ages: float, rate: float = 0.0) -> QueueSample:
    return QueueSample(
        index=index,
        name=name,
        format="split",
        size=64,
        used=used,
        in_flight=len(ages),
        ages=ages,
        kicks=100 * index,
        kicks_per_s=rate,
        completions=99 * index,
        completions_per_s=rate / 2,
        stall=stall,
        says=SAYS[stall],
        words={"avail.idx": 7, "used.idx": 6, "avail_event": 3},
        addresses=(0x8000_0000, 0x8000_1000, 0x8000_2000),
    )


def sample(number: int, **changes: object) -> Sample:
    made: dict[str, object] = {
        "number": number,
        "time": number / 2,
        "address": "0000:03:00.0",
        "type": "balloon",
        "state": "DRIVER_OK",
        "driver": "uvirtio",
        "interrupt_mode": "msix-per-queue",
        "queues": (
            queue(0, "inflateq", "idle", 0, rate=12.25),
            queue(1, "deflateq", "untaken", 17, *(3.5 - n / 8 for n in range(17))),
            queue(2, "statsq", "kept", 1, 200.0),
        ),
        "vectors": (),
        "interrupts": 1234,
        "interrupts_per_s": 12.3,
        "counters": {"missed interrupts": 0, "interrupt storms": 2},
        "config_changes": 3,
        "config": {"num_pages": 4096, "actual": 2048},
        "about": {"transport": "modern, vfio-pci", "features": "0x130000000"},
        "events": ("configuration: num_pages 0 -> 4096",) if number == 1 else (),
    }
    return Sample(**{**made, **changes})  # type: ignore[arg-type]


async def becomes(pilot: Pilot[None], name: str) -> None:
    """Wait until the screen looks as the picture of this name."""
    file = SCREENS / f"{name}.txt"
    if os.environ.get("UVIRTIO_SCREENS") == "write":
        await pilot.pause(1)
        assert isinstance(pilot.app, Top)
        file.write_text(picture(pilot.app), encoding="utf-8")
    expected = file.read_text(encoding="utf-8")
    seen = await until(pilot, lambda seen: seen == expected, or_last=True)
    assert seen == expected


def test_a_wide_screen_and_a_narrow_one_and_back() -> None:
    async def act(pilot: Pilot[None]) -> None:
        await becomes(pilot, "wide")
        await pilot.press("down")
        await becomes(pilot, "second-queue")
        await pilot.resize_terminal(64, 30)
        await becomes(pilot, "narrow")
        await pilot.resize_terminal(110, 26)
        await pilot.press("up")
        await becomes(pilot, "wide")

    shown(Fed([sample(0), sample(1)]), act)


def test_a_device_that_another_driver_has() -> None:
    one = sample(
        1,
        driver="virtio_balloon",
        state="ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK",
        interrupt_mode="",
        queues=(),
        vectors=(VectorSample(35, "virtio1-config", 1, 0.0), VectorSample(36, "virtio1-req.0", None, 0.0)),
        counters={},
        config_changes=None,
        config={},
        about={"bound to": "virtio-pci", "not seen": "rings and kicks"},
        # What a device or a file says cannot draw on the screen.
        events=("in use: \x1b[31m[red]/dev/vda\x07 is mounted",),
    )

    async def act(pilot: Pilot[None]) -> None:
        await becomes(pilot, "seen")

    shown(Fed([one]), act)


def test_pause_holds_the_picture_and_the_log_goes_on() -> None:
    go_on = threading.Event()

    class Later(Fed):
        def run(self, tell: Tell) -> None:
            tell(sample(1))
            assert go_on.wait(30)
            tell(sample(2, interrupts=5678, events=("something new",)))
            self._stopped.wait(30)

    async def act(pilot: Pilot[None]) -> None:
        await until(pilot, lambda seen: "1234" in seen)
        await pilot.press("p")
        go_on.set()
        seen = await until(pilot, lambda seen: "something new" in seen)
        assert "paused" in seen and "1234" in seen and "5678" not in seen
        await pilot.press("p")
        seen = await until(pilot, lambda seen: "5678" in seen)
        assert "paused" not in seen

    shown(Later([]), act)


def test_a_silent_device_does_not_freeze_the_screen_and_its_error_stays() -> None:
    async def act(pilot: Pilot[None]) -> None:
        seen = await until(pilot, lambda seen: "untaken" in seen)
        assert "1/8" in seen and "kicked, and the device has not taken the buffers" in seen
        await pilot.press("p")  # answered while the device is waited for
        assert "paused" in await until(pilot, lambda seen: "paused" in seen)
        await pilot.press("p")
        seen = await until(pilot, lambda seen: "q leaves the screen" in seen)
        assert "✖ ended" in seen and "UV-DEV-TIMEOUT" in seen and "broken" in seen
        await pilot.press("q")

    app = shown(Driven("scripted:rng,silent", OpenOptions(timeout=1.0), interval=0.2, load=10), act)
    assert isinstance(app.error, DeviceTimeout)


def test_a_device_that_cannot_be_opened_leaves_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    left, leave = threading.Event(), Top.exit
    monkeypatch.setattr(Top, "exit", lambda self: (leave(self), left.set()))

    async def act(pilot: Pilot[None]) -> None:
        assert await asyncio.to_thread(left.wait, 20)

    app = shown(Driven("scripted:rng,nothing", OpenOptions(), interval=0.2), act)
    assert isinstance(app.error, UsageError)


def test_ctrl_c_is_the_signal_that_it_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)

    async def act(pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+c")

    shown(Fed([sample(0)]), act)
    assert raised == [signal.SIGINT]


def test_what_ended_the_source_is_raised_when_the_screen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Top(Fed([]), interval=1.0)
    monkeypatch.setattr(app, "run", lambda: setattr(app, "error", DeviceTimeout("late")))
    with pytest.raises(DeviceTimeout):
        app.show()
    monkeypatch.setattr(app, "run", lambda: None)
    monkeypatch.setattr(Top, "return_code", 1)
    app.error = None
    with pytest.raises(OperationFailed, match="not left by a key"):
        app.show()
