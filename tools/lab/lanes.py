"""Steps side by side: a machine with two cores runs two of them at once."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, NoReturn

from lab import process
from lab.floors import Outcome, Step

_PATIENCE = 10.0
"""Seconds that a lane has to end what it started and to clean up, when all are ended."""


@dataclass
class _Lane:
    place: int
    log: IO[bytes]
    answer: int
    """The end of a pipe that the outcome comes through."""


def run(steps: list[tuple[str, Step]], lanes: int, done: dict[str, Outcome] | None = None) -> list[Outcome]:
    """The outcomes of all steps, in their order; at most ``lanes`` run at once, each in a process of its own.

    What a step prints is shown when it has ended; with one lane, or one step, as it comes. A signal ends all in
    seconds; ``done`` then has the outcomes that there are, by the names of the steps.
    """
    done = {} if done is None else done
    if lanes == 1 or len(steps) == 1:
        for name, step in steps:
            done[name] = step()
        return [done[name] for name, _ in steps]
    waiting = list(enumerate(steps))
    running: dict[int, _Lane] = {}
    try:
        while waiting or running:
            while waiting and len(running) < lanes:
                place, (name, step) = waiting.pop(0)
                print(f"... {name} begins", flush=True)
                # Or a signal that comes just now has the child go on in our code, or is not handed on to it.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, process.LEAVING)
                pid, lane = _start(place, step, mask)
                running[pid] = lane
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            pid, _ = os.wait()
            ended = running.pop(pid, None)
            if ended is not None:
                name = steps[ended.place][0]
                done[name] = _finish(ended, name)
    finally:
        _end(running)
    return [done[name] for name, _ in steps]


def _end(lanes: Iterable[int]) -> None:
    """End these processes; what they have started ends with them (process.start)."""
    left = set(lanes)
    _send(left, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    while left:
        left -= {pid for pid in left if _has_ended(pid)}
        if left and time.monotonic() >= deadline:
            _send(left, signal.SIGKILL)
            deadline += _PATIENCE
        time.sleep(0.02)


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # waited for when the signal came
            os.kill(pid, number)


def _has_ended(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _start(place: int, step: Step, mask: Iterable[int]) -> tuple[int, _Lane]:
    """A process that runs the step, with ``mask`` as its mask of signals; ours has to have those of LEAVING."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _finish
    answer, far = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        _be_the_step(step, log.fileno(), far, mask)
    os.close(far)
    return pid, _Lane(place, log, answer)


def _be_the_step(step: Step, log: int, far: int, mask: Iterable[int]) -> NoReturn:
    """In the child: run the step with its output in ``log``, and send what came of it."""
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
