"""Runs the tests of one part against its mutants: pytest collects once, and each mutant is a fork of that.

Nothing is written: a mutant is byte code that takes the place of a function's in the fork. Which tests reach which
function is seen once, in a fork of its own. A mutant is judged by the tests that reach it, to the first failure.
Programs that tests start have no mutant in them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

from mutants.guards import ROOT, Mutant, code

CPU = 60
"""Seconds of CPU time after which a mutant counts as hanging, and so as noticed."""
WALL = 240
"""Seconds by the clock."""
_PR_SET_PDEATHSIG = 1
KILLED, SURVIVED, UNREACHED, HUNG, SLOW = "killed", "survived", "unreached", "hung", "slow"
"""``hung``: it used up its CPU time, which is noticed. ``slow``: its tests took too long; it is not judged."""

Verdicts = list[tuple[Mutant, str, float, int]]
"""Mutant, how it ended, seconds of CPU time, tests that reach it."""


def function_of(mutant: Mutant) -> FunctionType:
    """The function that the mutant takes the place of, under all that decorates it."""
    name = mutant.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    found: Any = sys.modules.get(name) or __import__(name, fromlist=["_"])
    for part in mutant.function.split("."):
        found = vars(found)[part]
    while not isinstance(found, FunctionType):
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, functools.cached_property):
            found = found.func
        else:
            found = getattr(found, "__wrapped__", None) or found.__func__
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    assert isinstance(found, FunctionType)
    return found


class Judge:
    """A plugin of pytest in place of its loop."""

    def __init__(self, mutants: Sequence[Mutant], say: Callable[[Mutant, str, float], None]) -> None:
        """Judge these mutants.

        Args:
            mutants: The mutants of one part.
            say: Called with each, its verdict, and its seconds of CPU time.
        """
        self._mutants = mutants
        self._say = say
        self.verdicts: Verdicts = []
        self.broken = ""
        """Why nothing was judged."""

    def pytest_runtestloop(self, session: Any) -> bool:
        """Judge, after the collection."""
        items: list[Any] = session.items
        wanted = {code_of(mutant) for mutant in self._mutants}
        reach: dict[int, Any] | str | None = _forked(lambda: _reached(session, items, wanted), 1800)
        if not isinstance(reach, dict):
            self.broken = reach or "the tests did not end without a mutant"
            return True
        if len(reach) <= len(items):
            print(f"{len(items) + 1 - len(reach)} tests judge nothing: they fail when they are traced", flush=True)
        took = reach.pop(-1)
        for mutant in self._mutants:
            key = code_of(mutant)
            chosen = sorted((place for place, seen in reach.items() if key in seen), key=lambda place: took[place])
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            end = UNREACHED
            if chosen:
                answer = _forked(functools.partial(_judged, session, [items[one] for one in chosen], mutant), WALL)
                if answer not in (KILLED, SURVIVED, None):
                    raise RuntimeError(f"{mutant} cannot be judged:\n{answer}")
                end = answer or ""
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            end = end or (HUNG if cpu >= CPU - 1 else SLOW)
            self.verdicts.append((mutant, end, cpu, len(chosen)))
            self._say(mutant, end, cpu)
        return True


def code_of(mutant: Mutant) -> tuple[str, str]:
    """File and function, as a frame names them."""
    return str(ROOT / mutant.file), mutant.function


def _forked(do: Callable[[], Any], seconds: float) -> Any:
    """What it returns, in a fork of this process that may take so long; None where it ends otherwise."""
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(near)
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(quiet, stream)
            try:
                data = pickle.dumps(do())
            except Exception:  # noqa: BLE001 - whatever it is, it is told
                data = pickle.dumps(traceback.format_exc())
            with os.fdopen(far, "wb") as pipe:
                pipe.write(len(data).to_bytes(8, "little") + data)
        finally:
            os._exit(0)
    os.close(far)
    poller = select.poll()
    poller.register(near, select.POLLIN)
    data, deadline = b"", time.monotonic() + seconds
    try:
        # Not to the end of the pipe: a process that a test has left may hold it open.
        while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(1000 * left):
                return None
            more = os.read(near, 1 << 20)
            if not more:
                return None
            data += more
    finally:
        os.close(near)
        _kill(child)
        os.waitpid(child, 0)
    return pickle.loads(data[8:])


def _kill(child: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _reached(session: Any, items: list[Any], wanted: set[tuple[str, str]]) -> Any:
    """Run all tests, and return which of the wanted functions each reaches."""
    seen: set[Any] = set()
    known: dict[CodeType, tuple[str, str] | None] = {}

    def call(frame: FrameType, event: str, arg: Any) -> None:
        made = frame.f_code
        if made not in known:
            name = (made.co_filename, made.co_qualname)
            known[made] = name if name in wanted else None
        key = known[made]
        if key is not None:
            seen.add(key)

    sys.settrace(call)
    threading.settrace(call)
    reach: dict[int, Any] = {}
    took: dict[int, float] = {}
    failed = 0
    for place, item in enumerate(items):
        seen.clear()
        begin = time.process_time()
        _run(item, items[place + 1] if place + 1 < len(items) else None)
        if session.testsfailed > failed:  # timed, or about tracing itself: it judges nothing
            failed = session.testsfailed
            continue
        reach[place] = set(seen)
        took[place] = time.process_time() - begin
    reach[-1] = took
    return reach


def _judged(session: Any, chosen: list[Any], mutant: Mutant) -> str:
    """Put the mutant in, and run the tests until one fails."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 1))
    function_of(mutant).__code__ = code(mutant)
    for place, item in enumerate(chosen):
        _run(item, chosen[place + 1] if place + 1 < len(chosen) else None)
        if session.testsfailed:
            return KILLED
    return SURVIVED


def _run(item: Any, after: Any) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
