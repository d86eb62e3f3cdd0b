"""The same targets under atheris, libFuzzer for Python: guided by the branches of instrumented byte code."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def run(name: str, runs: int, seed: int, folder: Path) -> int:
    """Fuzz one target; libFuzzer ends the process at the first finding, and writes its input into ``folder``.

    Args:
        name: The target.
        runs: Executions.
        seed: Of libFuzzer.
        folder: Where inputs go.
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
    with atheris.instrument_imports(include=["uvirtio"]):
        targets = import_module("fuzzers.targets")
    findings, corpus = import_module("fuzzers.findings"), import_module("fuzzers.target").corpus
    made = targets.BY_NAME[name]()
    seeds = folder / "corpus"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate([*corpus(name), *made.seeds()]):
        (seeds / f"seed-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        error = findings.fault(made, data)
        if error is not None:
            raise error

    words = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={made.most}",
        f"-artifact_prefix={folder}/",
        "-timeout=60",
    ]
    atheris.Setup([name, *words, str(seeds)], one)
    atheris.Fuzz()
    return 0
