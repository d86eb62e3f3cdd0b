"""What was run on which machine and device: read from the documents that commands printed there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from uvirtio.errors import BadDump, UvirtioError
from uvirtio.report.documents import DIAG, checked, embedded

Document = dict[str, Any]

SCHEMA: Final = "uvirtio/1"
"""What every document of a command says of itself."""

VERBS: Final = ("doctor", "plan", "bind", "diag", "restore")
"""The commands whose documents are columns of the matrix, in their order."""


@dataclass(frozen=True, slots=True)
class Result:
    """One cell: what a step came to."""

    verdict: str
    """``pass``, ``warn``, ``fail`` or ``skip``."""
    says: str
    """One line: the cause, or what was read."""
    signature: str
    """What has to be equal where two machines behave alike."""
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A device of a machine, and what each step on it came to."""

    machine: str
    device: str
    """Its address; empty: the machine alone."""
    type: str
    results: dict[str, Result]
    """By column: a verb, or a step of ``diag``."""


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str
    machine: str
    device: str | None
    document: Document


def machine_runs(files: Sequence[tuple[str, str]]) -> list[Run]:
    """Read what was run.

    Args:
        files: The name and the text of each file. A file is named after its machine (``host1.json``) and has one
            document or several: what commands printed with ``--json``, or such a document inside
            ``{"machine": ..., "device": ..., "document": ...}``, or a report in HTML with a diagnosis in it.

    Returns:
        The devices of the machines, in the order of the files.

    Raises:
        BadDump: A file holds something else; the message says where.
    """
    names = machine_names([name for name, _ in files])
    entries = [
        entry for name, (file, text) in zip(names, files, strict=True) for entry in _entries(file, name, text)
    ]
    return list(_joined(entries))


def _bad(file: str, message: str, line: int = 1, column: int = 1) -> BadDump:
    return BadDump(
        f"{file}:{line}:{column}: {message}",
        expected="what uvirtio doctor, plan, bind, diag or restore printed with --json",
        remedy="examples/fleet has a playbook that writes such files",
        line=line,
        column=column,
    )


def machine_names(files: Sequence[str]) -> list[str]:
    """What each file calls its machine: its name without the suffix; with its folder where names are equal."""
    for parts in (1, 2):
        made = ["/".join(PurePath(name).with_suffix("").parts[-parts:]) for name in files]
        if max(Counter(made).values(), default=1) == 1:
            return made
    return list(files)


def _entries(file: str, machine: str, text: str) -> Iterator[_Entry]:
    if text.lstrip().startswith("<"):
        try:
            inside = embedded(text, DIAG)
        except UvirtioError as error:
            raise _bad(file, error.message) from None
        if inside is None:
            raise _bad(file, "a report without a diagnosis in it")
        yield _entry(file, machine, inside, 1, 1)
        return
    decoder, at, found = json.JSONDecoder(), 0, False
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        if at >= len(text):
            break
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _bad(file, f"not JSON: {error.msg}", error.lineno, error.colno) from None
        except (RecursionError, ValueError) as error:
            raise _bad(file, f"not JSON that can be read: {error}"[:200], line, column) from None
        yield _entry(file, machine, document, line, column)
        found = True
    if not found:
        raise _bad(file, "an empty file")


def _entry(file: str, machine: str, told: Any, line: int, column: int) -> _Entry:
    device: str | None = None
    if isinstance(told, dict) and isinstance(told.get("document"), dict):
        machine = str(told.get("machine") or machine)
        device = None if told.get("device") is None else str(told["device"])
        told = told["document"]
    if not isinstance(told, dict) or told.get("schema") != SCHEMA or told.get("command") not in VERBS:
        verbs = ", ".join(VERBS)
        raise _bad(
            file, f"not a document of a command that can be merged ({verbs}, each with --json)", line, column
        )
    return _Entry(file, machine, device, told)


def _joined(entries: list[_Entry]) -> Iterator[Run]:
    """One run for each device of each machine; what is about the machine alone belongs to all of its devices."""
    machines: dict[str, dict[str, Run]] = {}
    shared: dict[str, dict[str, Result]] = {}
    for entry in entries:
        devices = machines.setdefault(entry.machine, {})
        for device, kind, results in _results(entry):
            if not device:
                shared.setdefault(entry.machine, {}).update(results)
                continue
            known = devices.get(device)
            merged = results if known is None else {**known.results, **results}
            better = kind if kind != "unknown" or known is None else known.type
            devices[device] = Run(entry.machine, device, better, merged)
    for machine, devices in machines.items():
        common = shared.get(machine, {})
        if not devices:
            yield Run(machine, "", "", common)
        for run in devices.values():
            yield Run(run.machine, run.device, run.type, {**common, **run.results})


def _results(entry: _Entry) -> Iterator[tuple[str, str, dict[str, Result]]]:
    """Device (empty: the machine), type, and cells of one document."""
    document, verb = entry.document, str(entry.document["command"])
    try:
        if verb == "diag":
            document = checked(document)
            device = entry.device or str(document.get("address") or "")
            yield device, str(document.get("type") or "unknown"), dict(_diag(document))
        elif verb == "doctor":
            yield "", "", {verb: _checks(document)}
        else:
            yield from _many(entry, verb)
    except UvirtioError as error:
        raise _bad(entry.file, error.message) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise _bad(entry.file, f"a document of {verb} that lacks something: {error!r}"[:200]) from None


def _many(entry: _Entry, verb: str) -> Iterator[tuple[str, str, dict[str, Result]]]:
    """A document of plan, bind or restore, which may be about several devices."""
    document = entry.document
    error = _error(document.get("error") or next(iter(document.get("problems") or ()), None))
    listed = [one for one in document.get("devices") or () if isinstance(one, dict) and one.get("address")]
    if entry.device or (not listed and document.get("address")):
        told = document.get("device") or {}
        kind = str(told.get("type") or "unknown") if isinstance(told, dict) else "unknown"
        own = next((one for one in listed if one["address"] == entry.device), {})
        yield entry.device or str(document["address"]), kind, {verb: error or _done(verb, own)}
        return
    for one in listed:
        failed = _error(one.get("error"))
        yield str(one["address"]), str(one.get("type") or "unknown"), {verb: failed or error or _done(verb, one)}
    if not listed:
        yield "", "", {verb: error or _done(verb, {})}


def _done(verb: str, one: Document) -> Result:
    says = str(one.get("action") or one.get("driver") or "done")
    return Result("pass", says, says)


def _error(error: Any) -> Result | None:
    if not isinstance(error, dict):
        return None
    remedy = (str(error["remedy"]),) if error.get("remedy") else ()
    return Result("fail", f"{error.get('code')}: {error.get('message')}", str(error.get("code")), remedy)


def _checks(document: Document) -> Result:
    error = _error(document.get("error"))
    if error is not None:
        return error
    checks = document.get("checks") or []
    failed = [one for one in checks if one["verdict"] == "fail"]
    odd = [one for one in checks if one["verdict"] == "warn"]
    verdict = "fail" if failed else "warn" if odd else "pass"
    says = "; ".join(f"{one['name']}: {one['detail']}" for one in (*failed, *odd)) or "all checks pass"
    signature = " ".join(f"{one['name']}={one['verdict']}" for one in checks)
    attempts = tuple(str(one["remedy"]) for one in (*failed, *odd) if one.get("remedy"))
    return Result(verdict, says, signature, attempts)


def _diag(document: Document) -> Iterator[tuple[str, Result]]:
    steps = document.get("steps")
    if not steps:
        error = _error(document.get("error"))
        if error is not None:
            yield "discover", error
        return
    for step in steps:
        cause = step.get("cause") or {}
        data = step.get("data") or {}
        same = [step["verdict"], cause.get("id")]
        # What a step settled: two machines that differ here behave differently although both pass.
        same += [data.get(name) for name in ("offered", "accepted", "status", "interrupts", "num_queues")]
        says = cause.get("text") or step.get("detail") or ""
        attempts = tuple(str(one) for one in cause.get("try") or ())
        yield str(step["name"]), Result(str(step["verdict"]), str(says), repr(same), attempts)
