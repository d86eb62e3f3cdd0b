"""Steps side by side: a machine with two cores runs two of them at once."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from typing import IO, NoReturn

from lab.floors import Outcome, Step


@dataclass
class _Lane:
    place: int
    log: IO[bytes]
    answer: int
    """The end of a pipe that the outcome comes through."""


def run(steps: list[tuple[str, Step]], lanes: int) -> list[Outcome]:
    """The outcomes of all steps, in their order; at most ``lanes`` run at once, each in a process of its own.

    What a step prints is shown when it has ended; with one lane, or one step, as it comes. A signal ends all.
    """
    if lanes == 1 or len(steps) == 1:
        return [step() for _, step in steps]
    outcomes: list[Outcome | None] = [None] * len(steps)
    waiting = list(enumerate(steps))
    running: dict[int, _Lane] = {}
    try:
        while waiting or running:
            while waiting and len(running) < lanes:
                place, (name, step) = waiting.pop(0)
                print(f"... {name} begins", flush=True)
                pid, lane = _start(place, step)
                running[pid] = lane
            pid, _ = os.wait()
            ended = running.pop(pid, None)
            if ended is not None:
                outcomes[ended.place] = _finish(ended, steps[ended.place][0])
    finally:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return [outcome for outcome in outcomes if outcome is not None]


def _start(place: int, step: Step) -> tuple[int, _Lane]:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _finish
    answer, far = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        _be_the_step(step, log.fileno(), far)
    os.close(far)
    return pid, _Lane(place, log, answer)


def _be_the_step(step: Step, log: int, far: int) -> NoReturn:
    """In the child: run the step with its output in ``log``, and send what came of it."""
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        outcome = step()
        with os.fdopen(far, "wb") as pipe:
            pickle.dump(outcome, pipe)
        code = 0
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _finish(lane: _Lane, name: str) -> Outcome:
    with lane.log as log:
        log.seek(0)
        sys.stdout.buffer.write(log.read())
        sys.stdout.flush()
    with os.fdopen(lane.answer, "rb") as pipe:
        data = pipe.read()
    if data:
        outcome = pickle.loads(data)
        assert isinstance(outcome, Outcome)
        return outcome
    return Outcome(name, ok=False, seconds=0.0, failed=1, note="the step itself failed")
