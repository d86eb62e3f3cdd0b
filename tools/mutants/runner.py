"""Runs tests against mutants: pytest collects once, and each mutant is a fork of that.

Nothing is written: a mutant is byte code that takes the place of a function's in the fork. Which tests come to
which guard is seen once, in a fork of its own, by the same means: there each guard tells what it finds. A mutant
is judged by the tests that come to it, the quickest first, to the first failure; and the test that fails has to
pass without the mutant, in a fork as well. Programs that tests start have no mutant in them.
"""

from __future__ import annotations

import builtins
import ctypes
import functools
import mmap
import os
import pickle
import resource
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from mutants.guards import Mutant, code, probed

_CPU = 60
"""Seconds of CPU time in one test after which a mutant counts as hanging, and so as noticed."""
_PATIENCE = 30.0, 20.0
"""By the clock: so many seconds, and so many times what a test took without a mutant."""
_LONGEST = 1800.0
_PR_SET_PDEATHSIG = 1
_PROBE = "uvirtio_probe_"  # no two underscores: a class would make another name of it
_BEGUN = struct.Struct("<qdd")
KILLED, SURVIVED, UNREACHED, HUNG, SLOW = "killed", "survived", "unreached", "hung", "slow"
"""``hung``: a test used up its CPU time, died or did not end, which is noticed. ``slow``: all its tests together
took too long; it is not judged."""
NOTICED = (KILLED, HUNG)


class Verdict(NamedTuple):
    """How a mutant ended."""

    mutant: Mutant
    end: str
    by: str
    """The node id of the test that noticed it."""
    cpu: float
    """Seconds of CPU time."""


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

    def __init__(
        self, mutants: Sequence[Mutant], say: Callable[[Verdict], None], known: Mapping[Mutant, str] | None = None
    ) -> None:
        """Judge these mutants.

        Args:
            mutants: Which.
            say: Called with each verdict.
            known: The node id of the test that noticed each before: only that is run, and nothing is said of a
                mutant that passes it.
        """
        self._mutants = mutants
        self._say = say
        self._known = known
        self._sound: dict[int, bool] = {}
        self._files = ""
        self.broken = ""
        """Why nothing was judged."""

    def pytest_runtestloop(self, session: Any) -> bool:
        """Judge, after the collection."""
        if session.testsfailed:
            self.broken = "not all tests can be collected"
            return True
        self._files = session.config.option.basetemp or ""
        if self._known is not None:
            places = {item.nodeid: place for place, item in enumerate(session.items)}
            for mutant in self._mutants:
                if (place := places.get(self._known[mutant])) is not None:
                    self._judge(session, mutant, [place], {place: 0.0})
            return True
        reach = self._forked(lambda _: _reached(session, self._mutants))
        if not isinstance(reach, _Reach):
            self.broken = reach or "the tests did not end without a mutant"
            return True
        for mutant in self._mutants:
            quickest = sorted(reach.took, key=reach.took.__getitem__)
            chosen = [place for place in quickest if reach.tells(place, mutant)]
            self._judge(session, mutant, chosen, reach.took)
        return True

    def _judge(self, session: Any, mutant: Mutant, chosen: Sequence[int], took: Mapping[int, float]) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        end, by = UNREACHED, -1
        while chosen:
            job = functools.partial(_judged, session, chosen, took, mutant)
            answer = self._forked(job)
            if not isinstance(answer, tuple):
                raise RuntimeError(f"{mutant} cannot be judged:\n{answer}")
            end, by = answer
            if end not in NOTICED or self._is_sound(session, by):
                break
            chosen = [place for place in chosen if place != by]  # it fails by itself: it judges nothing
            end = SURVIVED
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if self._known is None or end in NOTICED:
            noticed = end in NOTICED and by >= 0
            self._say(Verdict(mutant, end, session.items[by].nodeid if noticed else "", cpu))

    def _forked(self, do: Callable[[mmap.mmap], Any]) -> Any:
        """What it returns, in a fork; then what its tests have left as files is removed.

        The next fork would remove it in its first test, whose time ends while the files of thousands of tests go.
        """
        try:
            return _forked(do, _LONGEST)
        finally:
            if self._files:
                shutil.rmtree(self._files, ignore_errors=True)

    def _is_sound(self, session: Any, place: int) -> bool:
        if place not in self._sound:
            answer = self._forked(functools.partial(_judged, session, [place], {place: 0.0}, None))
            self._sound[place] = isinstance(answer, tuple) and answer[0] == SURVIVED
        return self._sound[place]


class _Reach(NamedTuple):
    """Which tests come to which guards."""

    found: dict[int, set[tuple[str, int, bool]]]
    """By test: file and number of a guard, and what its condition was."""
    took: dict[int, float]
    """By test that passes: seconds by the clock."""

    def tells(self, place: int, mutant: Mutant) -> bool:
        """Whether a test could notice a mutant: a deleted guard matters only where the condition was true."""
        if mutant.after != "False":
            return self.comes(place, mutant)
        return (mutant.file, mutant.number, True) in self.found[place]

    def comes(self, place: int, mutant: Mutant) -> bool:
        """Whether a test comes to a guard."""
        return any((mutant.file, mutant.number, was) in self.found[place] for was in (True, False))


def _forked(do: Callable[[mmap.mmap], Any], seconds: float) -> Any:
    """What it returns, in a fork of this process that may take so long.

    It is handed shared memory, where it may say which test it began, when, and how long that may take. Where it
    does not return: the verdict, and the test.
    """
    board = mmap.mmap(-1, mmap.PAGESIZE)
    _BEGUN.pack_into(board, 0, -1, 0.0, 0.0)
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
                data = pickle.dumps(do(board))
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
            now = time.monotonic()
            place, begun, limit = _BEGUN.unpack_from(board)
            if place >= 0 and now > begun + limit:
                return HUNG, place
            if now >= deadline:
                return SLOW, -1
            if not poller.poll(1000):
                continue
            more = os.read(near, 1 << 20)
            if not more:  # it has died: of its CPU time, or because a test goes on without a process
                return HUNG, place
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


def _reached(session: Any, mutants: Sequence[Mutant]) -> Any:
    """Run all tests, and return what each finds at the guards."""
    guards = list({(mutant.file, mutant.number) for mutant in mutants})
    # Shared, so that what forks of a test find is seen too: a byte for each guard that was false, one where true.
    seen = mmap.mmap(-1, 2 * len(guards))
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    one: dict[tuple[str, str], Mutant] = {}
    for mutant in mutants:
        numbers[mutant.file, mutant.function].add(mutant.number)
        one[mutant.file, mutant.function] = mutant
    for (file, function), wanted in numbers.items():
        name = f"{_PROBE}{len(vars(builtins))}"
        places = {number: 2 * guards.index((file, number)) for number in wanted}
        setattr(builtins, name, functools.partial(_told, seen, places))
        function_of(one[file, function]).__code__ = probed(file, function, wanted, name)
    reach = _Reach({}, {})
    failed = 0
    for place, item in enumerate(session.items):
        seen[:] = bytes(len(seen))
        begin = time.monotonic()
        _run(item, session.items[place + 1] if place + 1 < len(session.items) else None)
        if session.testsfailed > failed:  # by itself: it judges nothing
            failed = session.testsfailed
            continue
        reach.found[place] = {(*guards[at // 2], bool(at % 2)) for at, byte in enumerate(seen[:]) if byte}
        reach.took[place] = time.monotonic() - begin
    return reach


def _told(seen: mmap.mmap, places: Mapping[int, int], number: int, condition: Any) -> Any:
    seen[places[number] + bool(condition)] = 1
    return condition


def _judged(
    session: Any, chosen: Sequence[int], took: Mapping[int, float], mutant: Mutant | None, board: mmap.mmap
) -> tuple[str, int]:
    """Put the mutant in, and run the tests until one fails; which."""
    if mutant is not None:
        function_of(mutant).__code__ = code(mutant)
    for number, place in enumerate(chosen):
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _CPU, most))
        _BEGUN.pack_into(board, 0, place, time.monotonic(), _PATIENCE[0] + _PATIENCE[1] * took[place])
        after = session.items[chosen[number + 1]] if number + 1 < len(chosen) else None
        _run(session.items[place], after)
        if session.testsfailed:
            return KILLED, place
    return SURVIVED, -1


def _run(item: Any, after: Any) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
