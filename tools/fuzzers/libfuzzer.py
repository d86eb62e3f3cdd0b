"""The same targets under atheris, libFuzzer for Python: guided by the branches of instrumented byte code."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

_FOUND = 1
"""The exit code where something was found, as the own engine's; libFuzzer's own is 77."""


def run(name: str, runs: int, seed: int, folder: Path, seconds: int = 0) -> int:
    """Fuzz one target; libFuzzer ends the process, and at the first finding, whose input is in ``folder``.

    Args:
        name: The target.
        runs: Executions; -1: as many as the time allows.
        seed: Of libFuzzer.
        folder: Where inputs go: findings, and the inputs with new coverage below ``corpus``.
        seconds: After which it ends; 0: never.

    Returns:
        4 where there is no atheris; else the process ends without returning.
    """
    try:
        atheris: Any = import_module("atheris")
    except ImportError:
        print(
            "atheris is not installed here: pip install 'uvirtio[fuzz]'; --engine own needs nothing",
            file=sys.stderr,
        )
        return 4
    for module in [one for one in sys.modules if one.split(".")[0] in ("uvirtio", "fuzzers") and one != __name__]:
        del sys.modules[module]  # or it would not be instrumented
    # A line of stderr for each module is left out.
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["uvirtio"]):
        targets = import_module("fuzzers.targets")
    corpus = import_module("fuzzers.target").corpus
    made = targets.BY_NAME[name]()
    seeds = folder / "corpus"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate([*corpus(name), *made.seeds()]):
        (seeds / f"seed-{number}").write_bytes(data)
    words = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={made.most}",
        f"-max_total_time={seconds}",
        f"-artifact_prefix={folder}/",
        f"-error_exitcode={_FOUND}",
        "-timeout=60",
        "-print_final_stats=1",
    ]
    if made.tokens:
        dictionary = folder / "tokens.dict"
        dictionary.write_text("".join(f"{word}\n" for word in map(quoted, made.tokens) if word), encoding="ascii")
        words.append(f"-dict={dictionary}")
    atheris.Setup([name, *words, str(seeds)], Once(made, folder))
    atheris.Fuzz()
    return 0


def quoted(token: bytes) -> str:
    """A piece of inputs as a line of libFuzzer's dictionaries; empty for one that they cannot hold."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in token) + '"' if token else ""


class Once:
    """Runs one input; raises, after telling it, what the target may not end with."""

    def __init__(self, made: Any, folder: Path) -> None:
        self._made, self._folder = made, folder
        self._findings: Any = import_module("fuzzers.findings")  # the instrumented package's, where there is one
        self._open = 0
        self._executions = 0

    def __call__(self, data: bytes) -> None:
        """Run it."""
        findings = self._findings
        self._executions += 1
        error = findings.fault(self._made, data)
        if error is None and (count := findings.descriptors()) > self._open:
            if self._executions > 1:  # the first may open what stays, once
                findings.fault(self._made, data)
                if (more := findings.descriptors()) > count:
                    error = AssertionError(f"Leaked: {more - count} descriptors stay open")
            self._open = findings.descriptors()
        if error is None:
            return
        key = findings.key(error)
        small = data
        if not isinstance(error, AssertionError) or not str(error).startswith("Leaked"):
            small = findings.smaller(self._made, data, key, lambda one: findings.fault(self._made, one))
        text = "".join(traceback.format_exception(error, limit=-12))
        found = findings.Finding(self._made.name, key, small, len(data), self._executions, text)
        path = self._folder / found.file
        path.write_bytes(small)
        print(found.report(path), flush=True)
        raise error
