"""``tools/test``: everything that has to hold, with one command."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lab import (
    CHECKOUT,
    LabError,
    arches,
    cache,
    cli_fleet,
    daemons,
    debian,
    debian_pythons,
    fleet,
    kernels,
    lanes,
    machines,
    modules,
    process,
    qemus,
    quick,
    roots,
    selection,
    setup,
    soft_reserve,
    systemd,
    udev,
)
from lab.floors import Outcome, Runner, Step, without_devices, without_privilege
from lab.selection import TESTS, Chosen

_WAKE_UPS = "test_wakeups.py"
"""Two processes that poll, each on a CPU of its own: beside another lane they hardly ever run at the same time."""
_UNPRIVILEGED = "@pytest.mark.unprivileged"
_RACE_SECONDS = "UVIRTIO_RACE_SECONDS"
_RACES = {False: "2", True: "4"}
"""Seconds for each race of the wake-ups: in a plain run, and with --all."""
_FUZZ = 1_000_000
"""Executions of the fuzz targets in all."""
_UNIT_PARTS = 2
_USAGE = 2
_TOOLS = ("lab", "benches", "fuzzers", "mutants", "soaks")
"""The packages below tools/."""
_FLEET_KERNEL = "6.1"
_CONFORM_QEMUS = ("", "10.0")
"""Those that the lists of known failures are for (uvirtio/conform/known/qemu.toml)."""

_EXAMPLES = """\
examples:
  tools/test                                  everything
  tools/test --quick                          before a commit
  tools/test tests/unit/drivers/test_rng.py   one file, or a folder, on its floor
  tools/test tests/qemu/test_rings.py::test_a_register_written_on_purpose
                                              one test
  tools/test tests/vm/test_mem.py             in the lab VM, on each machine that has this file
  tools/test --unit -k "queue and not reset"  a part of a floor
  tools/test --spec PCI-COM-01                what proves this requirement
  tools/test --python 3.14                    the unit floor with another interpreter
"""


def parser() -> argparse.ArgumentParser:
    """The command line of tools/test."""
    top = argparse.ArgumentParser(
        prog="tools/test",
        description="Set up what is missing, then lint and run the floors of tests. With no floor and no PATH:\n"
        "all, but without the extra machines, whose kernel modules have to be built first.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="test files, folders or pytest node ids (FILE::NAME) below tests/unit, tests/qemu or tests/vm",
    )
    top.add_argument("--all", action="store_true", help="everything, the extra machines too")
    top.add_argument(
        "--quick",
        action="store_true",
        help="under three minutes: lint, and most tests of floors 1 and 2, each with the first sets of its"
        " parameters; what is left out is printed",
    )
    top.add_argument("--lint", action="store_true", help="ruff, mypy, the layers, the conformance table, the site")
    top.add_argument("--unit", action="store_true", help="floor 1: no root, no QEMU; tools/fuzz")
    top.add_argument("--qemu", action="store_true", help="floor 2: QEMU's device models, no guest; the benches")
    top.add_argument("--vm", action="store_true", help="floor 3: a real kernel in the lab VM")
    top.add_argument(
        "--kernel",
        metavar="V",
        help="floor 3 on this kernel only, and the machines that it fits: 6.1, 6.12, newest (Debian sid's),"
        " experimental, 6.12-16k (aarch64, with pages of 16 KiB), or an unpacked package",
    )
    top.add_argument("--machine", metavar="NAME", help="floor 3 on this machine of tests/vm/machines.toml only")
    top.add_argument(
        "--qemu-version",
        metavar="V",
        help=f"floors 2 and 3 with this QEMU only: {', '.join(qemus.names())}; default: this machine's own",
    )
    top.add_argument("--accept-expired", action="store_true", help=debian.ACCEPT_EXPIRED)
    top.add_argument(
        "--python",
        metavar="V",
        help="floor 1 (or --qemu, or PATHs of these) with this interpreter, in an environment of its own: 3.13,"
        " 3.14t (free-threaded), python3.12 or a path; one that is not on this machine is fetched, if it is of"
        f" {', '.join(debian_pythons.names())}",
    )
    top.add_argument("--jobs", type=int, metavar="N", help="steps at once (default: 2, --quick 3; on one core 1)")
    top.add_argument("-k", dest="expression", metavar="EXPR", help="pytest's -k")
    top.add_argument(
        "--spec",
        action="append",
        default=[],
        metavar="ID",
        help="only tests that prove this requirement of virtio 1.4 (tools/conformance has the ids); may be given"
        " again; without a floor or a PATH: on floors 1 and 2",
    )
    return top


def main(arguments: list[str]) -> int:
    """Run tools/test; the exit code."""
    options = parser().parse_args(arguments)
    begin = time.monotonic()
    floors = _floors(options)
    interpreter = None
    if options.python:
        interpreter = debian_pythons.find(options.python, accept_expired=options.accept_expired)
    setup.packages(_packages(floors) | (setup.FOR_FLEET if options.all else {}))
    reports = _reports_folder()
    runner = Runner(
        setup.venv(interpreter),
        reports,
        options.expression,
        tuple(options.spec),
        "" if interpreter is None else str(interpreter),
    )
    alone: list[tuple[str, Step]] = []
    steps: list[tuple[str, Step]] = []
    left_out: list[str] = []
    booted: list[tuple[str, Step]] = []
    if "vm" in floors:
        chosen, left_out = _machines(
            options.kernel, options.machine, options.qemu_version, extras=options.all, named=floors["vm"]
        )
        whole = bool(options.all or options.paths or options.kernel or options.machine)
        chosen = [(replace(machine, whole=whole), version) for machine, version in chosen]
        runner.compile(sorted({str(file) for machine, _ in chosen for file in machine.files}), _wrapper("unit"))
        booted += vm_floor(runner, chosen, accept_expired=options.accept_expired)
    if "unit" in floors:
        races = quick.RACE_SECONDS if options.quick else _RACES[options.all]
        alone += _wake_ups(runner, floors["unit"], seconds=races)
        if floors["unit"] == _whole("unit") and not (options.expression or options.spec or options.jobs == 1):
            steps += _unit_parts(runner, brief=options.quick)
        else:
            steps += _unit_floor(runner, floors["unit"], brief=options.quick)
        left_out += quick.told() if options.quick else []
    if "qemu" in floors:
        expired = options.accept_expired
        steps += _qemu_floor(
            runner,
            floors["qemu"],
            options.qemu_version or "",
            brief=options.quick,
            plain=not (options.quick or options.all or options.paths or options.spec or options.qemu_version),
            accept_expired=expired,
        )
        if floors["qemu"] == _whole("qemu") and interpreter is None and not options.quick:
            steps += _benches(runner)
        if options.all and options.qemu_version is None:
            steps += _own_daemons(runner, floors["qemu"], accept_expired=expired)
            for version in qemus.names():
                steps += _qemu_floor(runner, floors["qemu"], version, accept_expired=expired)
            if floors["qemu"] == _whole("qemu"):
                steps += _soak(runner)
                for version in _CONFORM_QEMUS:
                    steps += _battery(runner, version, accept_expired=expired)
        elif not options.paths and "vm" in floors and options.qemu_version is None:
            left_out += [
                "vhost-user daemons",
                *(f"qemu {version}" for version in qemus.names()),
                "soak",
                "conform",
            ]
    if floors.get("unit") == _whole("unit") and interpreter is None and not (options.expression or options.spec):
        steps += _unprivileged(runner)
        steps += _fuzz(runner, quick.FUZZ if options.quick else _FUZZ)
        if options.all:
            steps += _newer_pythons(runner, accept_expired=options.accept_expired)
    if options.all and not (options.kernel or options.paths or options.spec or options.qemu_version):
        steps += _mutate(runner)
        booted = [
            *_fleet(runner, accept_expired=options.accept_expired),
            *_plugin(runner, accept_expired=options.accept_expired),
            *booted,
        ]
    elif floors.get("vm") == _whole("vm"):
        left_out += ["mutate", "fleet", "plugin", *(f"unit {version}" for version in debian_pythons.names())]
        left_out += [f"races after {_RACES[False]} s"]
    if "lint" in floors:
        # The site takes as long as all other linting, and says nothing about code.
        steps += [step for step in _lint(runner) if not (options.quick and step[0] == "docs")]
    if options.quick:
        steps.sort(key=lambda step: step[0] not in quick.FIRST)
    print(f"tools/test: set up in {time.monotonic() - begin:.1f} s", flush=True)
    fuller = "tools/test" if options.quick else "tools/test --all"
    return _run(
        [(alone, 1), ([*steps, *booted], _lanes(options.jobs, brief=options.quick))],
        begin=begin,
        reports=reports,
        left_out=left_out,
        whole=fuller,
    )


def _lanes(jobs: int | None, *, brief: bool) -> int:
    """How many steps run at once: as many as there are cores, two at most.

    ``brief``: one more, for the steps of --quick leave out the tests that have short time-outs.
    """
    cores = min(2, os.cpu_count() or 1)
    return jobs or (cores + 1 if brief and cores > 1 else cores)


def _run(
    phases: list[tuple[list[tuple[str, Step]], int]],
    *,
    begin: float,
    reports: Path,
    left_out: list[str],
    whole: str = "tools/test --all",
) -> int:
    """Run the phases, each after the other and its steps in so many lanes, and print what came of them.

    Returns:
        The exit code.
    """
    done: dict[str, Outcome] = {}
    outcomes: list[Outcome] = []
    try:
        with process.signals_raise():
            for steps, wide in phases:
                if steps:
                    outcomes += lanes.run(steps, wide, done)
    except process.Interrupted as interrupt:
        unfinished = [name for steps, _ in phases for name, _ in steps if name not in done]
        _interrupted(list(done.values()), unfinished, time.monotonic() - begin, reports)
        return interrupt.code
    return _verdict(outcomes, time.monotonic() - begin, reports, left_out, whole)


def _floors(options: argparse.Namespace) -> dict[str, list[Chosen]]:
    """The floors to run, each with the tests that were chosen. LabError for what cannot be had together."""
    flags = [floor for floor in ("lint", *selection.FLOORS) if getattr(options, floor)]
    if options.quick:
        if flags or options.python or options.all or options.paths or options.spec or options.qemu_version:
            raise LabError("--quick chooses by itself: leave all other options but --jobs and -k out", 2)
        return {floor: _whole(floor) for floor in ("lint", "unit", "qemu")}
    if options.python and not (flags or options.all or options.paths or options.spec):
        flags = ["unit"]
    floors = _chosen(options, flags)
    if options.python and not {"unit", "qemu"} >= set(floors):
        raise LabError("--python is for --unit, --qemu and the tests below them: leave everything else out", 2)
    return floors


def _chosen(options: argparse.Namespace, flags: list[str]) -> dict[str, list[Chosen]]:
    named = selection.by_floor(options.paths)
    if named:
        if tests := [f"--{floor}" for floor in flags if floor != "lint"]:
            raise LabError(f"a PATH says its floor itself: leave {' '.join(tests)} out", 2)
        selection.check_requirements(options.spec)
        return named | {floor: [] for floor in flags}
    if options.spec:
        where = selection.FLOORS if options.all else [floor for floor in flags if floor != "lint"]
        return selection.of_requirements(options.spec, where) | {floor: [] for floor in flags if floor == "lint"}
    if options.all or not flags:
        flags = ["lint", *selection.FLOORS]
    return {floor: _whole(floor) for floor in flags}


def _whole(floor: str) -> list[Chosen]:
    return [Chosen(TESTS / floor)]


def _packages(floors: Iterable[str]) -> setup.Packages:
    """What the chosen floors need on this machine, and nothing else."""
    needs = {"lint": setup.FOR_LINT, "unit": setup.FOR_UNIT, "qemu": setup.FOR_QEMU}
    needs["vm"] = setup.FOR_VM | setup.for_arch(arches.AARCH64)
    return {name: present for floor in floors for name, present in needs[floor].items()}


def _reports_folder() -> Path:
    """A new folder for this run's reports; those of the last few runs are kept."""
    top = cache.root() / "reports"
    top.mkdir(exist_ok=True)
    for old in sorted(top.iterdir())[:-4]:
        if time.time() - old.stat().st_mtime > 24 * 3600:  # a younger one may be of a run that goes on
            shutil.rmtree(old, ignore_errors=True)
    path = top / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir()
    return path


def _lint(runner: Runner) -> Iterator[tuple[str, Step]]:
    """The longest first. What mypy knows of the package, mypy of tools finds in its cache, so not beside it."""
    tools = {
        "docs": [str(CHECKOUT / "tools/docs")],
        "mypy": ["mypy"],
        "ruff check": ["ruff", "check", "--no-cache", "."],
        "ruff format": ["ruff", "format", "--check", "--no-cache", "."],
        "import-linter": ["lint-imports", "--no-cache"],
        "conformance": [str(CHECKOUT / "tools/conformance")],
        "faults": [str(CHECKOUT / "tools/faults")],
        "mypy of tools": [
            *("env", f"MYPYPATH={CHECKOUT}/tools", "mypy", "--strict"),
            *(f"-p={name}" for name in _TOOLS),
        ],
    }
    for name, command in tools.items():
        yield name, lambda name=name, command=command: runner.tool(name, command)  # type: ignore[misc]


def _fuzz(runner: Runner, executions: int) -> Iterator[tuple[str, Step]]:
    """Every fuzz target, with the same seed each time: a minute of CPU time for a million executions."""
    yield "fuzz", lambda: runner.tool("fuzz", [str(CHECKOUT / "tools/fuzz"), "--runs", str(executions)])


def _mutate(runner: Runner) -> Iterator[tuple[str, Step]]:
    """The first twelve of the guards whose verdicts are kept; each has to be noticed."""
    words = ["--count", "12", "--wanted", "1"]
    yield "mutate", lambda: runner.tool("mutate", [str(CHECKOUT / "tools/mutate"), *words])


def _benches(runner: Runner) -> Iterator[tuple[str, Step]]:
    """The benches, which drive QEMU's devices. The figures of so short a run say nothing: they are not shown."""
    name, command = "bench, that it runs", [str(CHECKOUT / "tools/bench"), "--quick"]
    yield name, lambda: runner.tool(name, command, quiet=True)


def _soak(runner: Runner) -> Iterator[tuple[str, Step]]:
    """Each workload of tools/soak for a second: it runs, and nothing stays."""
    yield "soak", lambda: runner.tool("soak", [str(CHECKOUT / "tools/soak"), "--minutes", "0.17"])


def _unprivileged(runner: Runner) -> Iterator[tuple[str, Step]]:
    """The units that are skipped for root, as the ordinary user of the QEMU floor: no skip hides a rule."""
    files = [file for file in sorted((TESTS / "unit").rglob("test_*.py")) if _UNPRIVILEGED in file.read_text()]
    arguments = ["-m", "unprivileged", *map(str, files)]
    yield "unit, not as root", lambda: runner.pytest("unit, not as root", arguments, _wrapper("qemu"))


def _wake_ups(runner: Runner, chosen: list[Chosen], seconds: str) -> Iterator[tuple[str, Step]]:
    """The part of the unit floor that wants the machine for itself, and some seconds to make its rounds in."""
    env = {_RACE_SECONDS: os.environ.get(_RACE_SECONDS, seconds)}
    arguments = [str(one.within(file)) for file in _wake_ups_files() for one in chosen if one.has(file)]
    if arguments:
        yield "wake-ups", lambda: runner.pytest("wake-ups", arguments, _wrapper("unit"), env=env)


def _wake_ups_files() -> list[Path]:
    return sorted((TESTS / "unit").rglob(_WAKE_UPS))


def _unit_floor(runner: Runner, chosen: list[Chosen], *, brief: bool = False) -> Iterator[tuple[str, Step]]:
    """The unit floor without the wake-ups, in one step. ``brief``: what --quick runs of it."""
    alone = _wake_ups_files()
    rest = [one for one in chosen if one.path not in alone]
    if not rest:
        return
    arguments = [*(quick.options("unit") if brief else []), *map(str, rest)]
    arguments += [f"--ignore={file}" for file in alone if any(one.has(file) for one in rest)]
    env = quick.ENVIRONMENT if brief else None
    yield "unit", lambda: runner.pytest("unit", arguments, _wrapper("unit"), env=env)


def _unit_parts(runner: Runner, *, brief: bool = False) -> Iterator[tuple[str, Step]]:
    """The whole unit floor without the wake-ups, in several steps: each lane takes the next one."""
    left_out = {TESTS.parent / name for name in quick.LEFT_OUT} if brief else set()
    every = set((TESTS / "unit").rglob("test_*.py")) - left_out - set(_wake_ups_files())
    count = quick.UNIT_PARTS if brief else _UNIT_PARTS
    for number, files in enumerate(selection.dealt(every, count), 1):
        name = f"unit {number} of {count}"
        arguments = [*(quick.options("unit") if brief else []), *map(str, files)]
        env = quick.ENVIRONMENT if brief else None
        step = functools.partial(runner.pytest, name, arguments, _wrapper("unit"), env=env)
        yield f"{name} {runner.python}".rstrip(), step


def _newer_pythons(runner: Runner, *, accept_expired: bool = False) -> Iterator[tuple[str, Step]]:
    """The unit floor, but for the wake-ups, with each interpreter of other Debian releases."""
    for version in debian_pythons.names():
        try:
            interpreter = debian_pythons.get(version, accept_expired=accept_expired)
            other = replace(runner, venv=setup.venv(interpreter), python=str(interpreter))
        except LabError as error:
            yield f"unit {version}", _failing(f"unit {version}", _unless_usage(error))
        else:
            yield from _unit_parts(other)


def _qemu_floor(
    runner: Runner,
    chosen: list[Chosen],
    version: str = "",
    *,
    brief: bool = False,
    plain: bool = False,
    accept_expired: bool = False,
) -> Iterator[tuple[str, Step]]:
    """The floor on QEMU's device models.

    ``version``: with this QEMU instead of the machine's own. ``brief``: what --quick runs of it. ``plain``:
    without what tests/qemu/plain_run.py leaves to --all.
    """
    name = f"qemu {version}".rstrip()
    try:
        qemu = qemus.get(version, accept_expired=accept_expired)
        back_ends = None
        if version and any(one.has(file) for one in chosen for file in _daemon_files()):
            back_ends = daemons.get(version, accept_expired=accept_expired)
    except LabError as error:  # as with modules: the mirror has moved on
        yield name, _failing(name, _unless_usage(error))
        return
    arguments = [*(quick.options("qemu") if brief else []), *map(str, chosen)]
    env = {"UVIRTIO_LAB_WHOLE": "0"} if plain else None
    yield name, lambda: runner.pytest(name, arguments, _wrapper("qemu"), qemu=qemu, programs=back_ends, env=env)


def _battery(runner: Runner, version: str, *, accept_expired: bool = False) -> Iterator[tuple[str, Step]]:
    """All rows of uvirtio conform on each device model, with this QEMU; empty: the machine's own."""
    name = f"conform {version}".rstrip()
    try:
        qemu = qemus.get(version, accept_expired=accept_expired)
    except LabError as error:
        yield name, _failing(name, _unless_usage(error))
        return
    tests, env = [str(TESTS / "qemu/test_conform_whole.py")], {"UVIRTIO_CONFORM_WHOLE": "1"}
    yield name, lambda: runner.pytest(name, tests, _wrapper("qemu"), qemu=qemu, env=env)


def _daemon_files() -> list[Path]:
    """The tests of vhost-user back ends."""
    return sorted((TESTS / "qemu").glob("test_vhost_user*.py"))


def _own_daemons(
    runner: Runner, chosen: list[Chosen], *, accept_expired: bool = False
) -> Iterator[tuple[str, Step]]:
    """The tests of vhost-user back ends, with those of this release that a plain run does not have."""
    name = "vhost-user daemons"
    files = [file for file in _daemon_files() if any(one.has(file) for one in chosen)]
    if not files:
        return
    try:
        back_ends = daemons.get("", accept_expired=accept_expired)
    except LabError as error:
        yield name, _failing(name, str(error))
        return
    arguments = [str(one.within(file)) for file in files for one in chosen if one.has(file)]
    yield name, lambda: runner.pytest(name, arguments, _wrapper("qemu"), programs=back_ends)


def _fleet(runner: Runner, *, accept_expired: bool = False) -> Iterator[tuple[str, Step]]:
    """The playbook of examples/fleet: on machines that are this one, and on three lab VMs over ssh."""
    try:
        kernel = kernels.get(_FLEET_KERNEL, accept_expired=accept_expired)
        fleet.ssh_server(accept_expired=accept_expired)
        programs = fleet.ansible()
    except LabError as error:
        yield "fleet", _failing("fleet", _unless_usage(error))
        return

    def step() -> Outcome:
        print("\n=== fleet, the machines ===", flush=True)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="uvf-") as results:
            try:
                times = cli_fleet.run(kernel, runner.venv, Path(results), accept_expired=accept_expired)
            except LabError as error:
                return _failing("fleet", str(error))()
            path = f"{programs}:{runner.venv}/bin:{os.environ.get('PATH', '')}:{setup.SBIN}"
            tests = [str(TESTS / "fleet"), str(TESTS / "unit/report/test_fleet_example.py")]
            outcome = runner.pytest("fleet", tests, _wrapper("unit"), env={"UVIRTIO_FLEET": results, "PATH": path})
        outcome.seconds, outcome.note = time.monotonic() - begin, outcome.note or str(times)
        return outcome

    yield "fleet", step


def _plugin(runner: Runner, *, accept_expired: bool = False) -> Iterator[tuple[str, Step]]:
    """The pytest plugin's fixture of a lab VM, whose kernel has to be there before the test."""
    try:
        kernels.get(arches.X86_64.kernel, accept_expired=accept_expired)
    except LabError as error:
        yield "plugin", _failing("plugin", _unless_usage(error))
        return
    arguments = [str(TESTS / "plugin"), "--uvirtio-require-qemu"]
    yield "plugin", lambda: runner.pytest("plugin", arguments, _wrapper("unit"), env={"UVIRTIO_VIRTIO_VM": "1"})


def _wrapper(floor: str) -> list[str]:
    """What a floor runs inside: as root never where the real /sys is, and QEMU's as an ordinary user."""
    if os.geteuid() != 0:
        return []
    return without_devices(scratch=True) + (without_privilege() if floor == "qemu" else [])


def _machines(
    kernel: str | None,
    only: str | None,
    qemu: str | None = None,
    *,
    extras: bool,
    named: list[Chosen] | None = None,
) -> tuple[list[tuple[machines.Machine, str]], list[str]]:
    """The machines to boot, each with a kernel; and the names of those that are left out for being extra.

    ``named``: only machines that have these tests, with these alone. A file that only extra machines have is
    booted on them when it is named itself.
    """
    chosen, left_out = [], []
    table = machines.load()
    wanted = [machine for machine in table if only in (None, machine.name)]
    if not wanted:
        raise LabError(f"--machine {only}: not one of {', '.join(machine.name for machine in table)}", 2)
    named = _whole("vm") if named is None else named
    plain = {file for machine in table if not machine.extra for file in machine.files}
    needed = [one for one in named if one.path.is_file() and one.path not in plain]
    fitting = [one for one in wanted if not kernel or kernels.fits(kernel, arches.get(one.arch))]
    if not fitting:
        raise LabError(f"--kernel {kernel} is not for --machine {only}", 2)
    for machine in fitting:
        for version in (kernel,) if kernel else (*machine.kernels, *machine.more_kernels):
            more = machine.extra or (version in machine.more_kernels and version != kernel)
            spare = more and not extras and only is None
            part = selection.of_machine(machine, needed if spare else named)
            if part is not None:
                chosen.append((part if qemu is None else replace(part, qemu_version=qemu), version))
            elif spare and selection.of_machine(machine, named):
                left_out.append(f"vm {machine.name} {version}")
    if not chosen:
        where = "no machine for this kernel has any" if only is None else f"--machine {only} has none"
        raise LabError(f"{where} of {', '.join(map(str, named))}", 2)
    return chosen, left_out


def vm_floor(
    runner: Runner, chosen: list[tuple[machines.Machine, str]], *, accept_expired: bool = False
) -> Iterator[tuple[str, Step]]:
    """The machines, each with its kernel. Downloading and building is set-up, not a test."""
    rules = udev.get(accept_expired=accept_expired)
    found: dict[tuple[str, str], kernels.Kernel] = {}  # what the newest is, is asked once
    for machine, version in chosen:
        name = f"vm {machine.name} {version}"
        arch = arches.get(machine.arch)
        try:
            if (version, arch.name) not in found:
                found[version, arch.name] = kernels.get(version, arch, accept_expired=accept_expired)
            kernel = modules.add(found[version, arch.name], machine.modules)
            if machine.soft_reserved:
                kernel = soft_reserve.add(kernel, machine.soft_reserved)
            qemu = qemus.get(machine.qemu_version, accept_expired=accept_expired)
            back_ends = daemons.get(machine.daemons, accept_expired=accept_expired) if machine.daemons else None
            roots.get(arch)
            if machine.systemd:
                systemd.get(accept_expired=accept_expired)
        except LabError as error:  # the mirror has moved on, most likely: no reason to run nothing else
            yield name, _failing(name, _unless_usage(error))
            continue
        yield (
            name,
            lambda name=name, machine=machine, kernel=kernel, qemu=qemu, back_ends=back_ends: runner.vm(  # type: ignore[misc]
                name, machine, kernel, qemu, rules, back_ends
            ),
        )


def _unless_usage(error: LabError) -> str:
    """What went wrong with a download or a build; the error itself is raised where the command line is wrong."""
    if error.exit_code == _USAGE:
        raise error
    return str(error)


def _failing(name: str, why: str) -> Step:
    """A step that can only fail."""

    def step() -> Outcome:
        print(f"\n=== {name} ===\n{why}", flush=True)
        return Outcome(name, ok=False, seconds=0.0, failed=1, note=why.splitlines()[0])

    return step


def _interrupted(outcomes: list[Outcome], unfinished: list[str], seconds: float, reports: Path) -> None:
    """Print the table of what had ended, what had not, and as the very last line that there is no verdict."""
    _table(outcomes)
    print(f"not finished: {', '.join(unfinished)}")
    print(f"reports in {reports}\ninterrupted after {seconds:.0f} s", flush=True)


def _verdict(
    outcomes: list[Outcome], seconds: float, reports: Path, left_out: list[str], whole: str = "tools/test --all"
) -> int:
    """Print the table, what was left out that ``whole`` runs, and as the very last line the sum."""
    _table(outcomes)
    left_out = left_out + [f"{one.left} tests of {one.name}" for one in outcomes if one.left]
    if left_out:
        print(f"not run, for {whole} only: {', '.join(left_out)}")
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    nothing = not passed + failed + skipped  # a misspelt -k is no success
    good = not nothing and all(outcome.ok for outcome in outcomes)
    if nothing:
        print("no test ran: nothing matches")
    print(f"{'PASS' if good else 'FAIL'} in {seconds:.0f} s; reports in {reports}")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    return 0 if good else 2 if nothing else 1


def _table(outcomes: list[Outcome]) -> None:
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    print("\n=== verdict ===")
    for outcome in outcomes:
        counts = f"{outcome.passed:5} passed {outcome.failed:4} failed {outcome.skipped:4} skipped"
        word = "ok  " if outcome.ok else "FAIL"
        print(f"{word} {outcome.name:{width}} {outcome.seconds:7.1f} s {counts}  {outcome.note}".rstrip())
    ran_on = sorted({what for outcome in outcomes for what in outcome.ran_on})
    if ran_on:
        print(f"on: {', '.join(ran_on)}")
