"""The loop: inputs are changed, run, and kept where they came to something new."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from random import Random

from fuzzers.coverage import EVERY, Coverage
from fuzzers.findings import Finding, Hung, Watch, descriptors, fault, key, place, smaller
from fuzzers.mutations import mutated
from fuzzers.target import Target, corpus
from uvirtio.errors import UvirtioError

_BATCH = 1000
"""Executions after which descriptors are counted."""
_EARLY = 2000
"""Executions after which fewer are traced."""
_KEPT = 2000
"""Inputs that a pool has at most; then the oldest of those that are not seeds go."""


@dataclass
class Result:
    """What came of fuzzing one target."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    lines: int = 0
    kept: list[bytes] = field(default_factory=list)
    """Inputs that came to something that none of the seeds did."""
    findings: list[Finding] = field(default_factory=list)


class Loop:
    """Fuzzes one target. The same seed, number and corpus give the same executions."""

    def __init__(self, target: Target, seed: int, *, most_findings: int = 10) -> None:
        """Prepare.

        Args:
            target: What is fuzzed.
            seed: Decides every input.
            most_findings: Ends after so many.
        """
        self._target = target
        self._seed = seed
        self._most = most_findings
        self._rng = Random(f"{seed} {target.name}")
        self._pool: list[bytes] = []
        self._fixed = 0
        self._ends: set[Hashable] = set()
        self._keys: set[str] = set()
        self._watch = Watch()
        self._coverage = Coverage(target.modules)
        self._end: Hashable = None
        self.result = Result(target.name)

    def run(
        self, executions: int, until: float | None = None, say: Callable[[Finding], None] | None = None
    ) -> Result:
        """Fuzz.

        Args:
            executions: Ends after so many.
            until: Ends at this time of ``time.monotonic()``; None: whenever it is through.
            say: Called with each finding.
        """
        begin, result = time.monotonic(), self.result
        say = say or (lambda finding: None)
        seeds = list(dict.fromkeys([*corpus(self._target.name), *self._target.seeds(), b""]))
        with self._watch.on():
            self._batch(seeds, say, keep=True)
            self._fixed = len(self._pool)
            while result.executions < executions and len(result.findings) < self._most:
                if until is not None and time.monotonic() >= until:
                    break
                count = min(_BATCH, executions - result.executions)
                self._batch((self._next() for _ in range(count)), say)
        result.seconds = time.monotonic() - begin
        result.lines = len(self._coverage.seen)
        self._coverage.close()
        return result

    def _next(self) -> bytes:
        rng, pool = self._rng, self._pool or [b""]
        # The newest a little more often: what is behind a new branch is looked for there.
        at = int(rng.random() * len(pool)) if rng.random() < 0.7 else -1 - int(rng.random() ** 2 * len(pool))
        return mutated(rng, pool[at], pool, self._target.tokens, self._target.most)

    def _batch(self, inputs: Iterable[bytes], say: Callable[[Finding], None], *, keep: bool = False) -> None:
        before, done = descriptors(), []
        for data in inputs:
            done.append(data)
            self._one(data, say, keep=keep)
            if len(self.result.findings) >= self._most:
                return
        if descriptors() > before:
            self._find_leak(done, say)

    def _one(self, data: bytes, say: Callable[[Finding], None], *, keep: bool) -> None:
        result, watch = self.result, self._watch
        watch.executions += 1
        result.executions += 1
        error: BaseException | None = None
        new, end = False, None
        # Seldom later on: what is new is found early, or by where an execution ends.
        trace = keep or result.executions % (EVERY if result.executions < _EARLY else 8 * EVERY) == 0
        self._end = None
        try:
            new = self._coverage.run(self._take, data, trace=trace)
            end = self._end
        except UvirtioError as caught:
            end = (type(caught), place(caught))
            error = caught if type(caught) is UvirtioError else None
        except (Exception, Hung) as caught:  # noqa: BLE001 - that is what is looked for
            error = caught
        if error is not None:
            self._found(data, error, say)
        elif keep or new or end not in self._ends:
            self._ends.add(end)
            self._pool.append(data)
            if not keep:
                result.kept.append(data)
                if len(self._pool) > _KEPT:
                    del self._pool[self._fixed]

    def _take(self, data: bytes) -> Hashable:
        self._end = self._target.run(data)
        return self._end

    def _found(self, data: bytes, error: BaseException, say: Callable[[Finding], None]) -> None:
        name = key(error)
        if name in self._keys:
            return
        self._keys.add(name)
        small = data if isinstance(error, Hung) else smaller(self._target, data, name, self._again)
        last = self._again(small) or error
        text = "".join(traceback.format_exception(last, limit=-12))
        if len(text) > 6000:
            text = f"{text[:3000]}\n...\n{text[-3000:]}"
        finding = Finding(self._target.name, name, small, len(data), self.result.executions, text)
        self.result.findings.append(finding)
        say(finding)

    def _again(self, data: bytes) -> BaseException | None:
        self._watch.executions += 1
        return fault(self._target, data)

    def _find_leak(self, done: list[bytes], say: Callable[[Finding], None]) -> None:
        """Run what was run once more, one by one: which input leaves descriptors open?"""
        for data in done:
            before = descriptors()
            fault(self._target, data)
            if descriptors() > before:
                finding = Finding(
                    self._target.name,
                    "Leaked",
                    data,
                    len(data),
                    self.result.executions,
                    f"{descriptors() - before} descriptors stay open\n",
                )
                if "Leaked" not in self._keys:
                    self._keys.add("Leaked")
                    self.result.findings.append(finding)
                    say(finding)
                return
