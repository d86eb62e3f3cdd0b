"""The floors of the tests: what each runs, where, and what came of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab import CHECKOUT, LabError, arches, natives, process, roots, systemd
from lab.kernels import Kernel
from lab.machines import Machine
from lab.qemus import Qemu
from lab.vm import TIMED_OUT, Config, Vm

LEFT = "left to tools/test --all"
"""How the reason of a skipped test begins that only tools/test --all runs there (tests/vm/plain_run.py)."""
_NO_TESTS = 5  # pytest's exit code for "nothing was collected"
_ENDS = {
    4: "pytest refused its arguments, and says above why: a test that is not there?",
    _NO_TESTS: "no test there",
}


@dataclass(slots=True)
class Outcome:
    """What one step came to. A step that is no test suite counts as one test."""

    name: str
    ok: bool
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""
    left: int = 0
    """Of the skipped tests those that are for tools/test --all."""
    ran_on: tuple[str, ...] = ()
    """The QEMU that had the devices, the kernel of the VM, each with its version."""


def _document(report: Path) -> ET.Element | None:
    """The report of a run of pytest; None where there is none, or one that was not written to its end."""
    try:
        return ET.parse(report).getroot()
    except (FileNotFoundError, ET.ParseError):
        return None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the steps with one environment; reports go below ``reports``."""

    venv: Path
    reports: Path
    expression: str | None = None
    """pytest's -k."""
    spec: tuple[str, ...] = ()
    """Only tests that prove one of these requirements."""
    python: str = ""
    """The version of the environment's interpreter, where it is not the usual one."""

    def tool(self, name: str, command: list[str], *, quiet: bool = False) -> Outcome:
        """A program that passes or fails as a whole. ``quiet``: what it says is shown only when it fails."""
        _title(name)
        begin = time.monotonic()
        if not quiet:
            return _whole(name, self._run(command, timeout=300) == 0, begin)
        with tempfile.TemporaryFile() as said:
            code = self._run(command, timeout=300, output=said)
            if code:
                said.seek(0)
                print(said.read().decode(errors="replace"), flush=True)
        return _whole(name, code == 0, begin)

    def pytest(
        self,
        name: str,
        arguments: list[str],
        wrapper: list[str],
        *,
        qemu: Qemu | None = None,
        programs: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Outcome:
        """pytest with ``arguments`` on this machine, inside ``wrapper`` (a command that ends by running its rest).

        ``qemu``: the one that the tests start; ``programs``: a folder with others; ``env``: set as well.
        """
        name = f"{name} {self.python}".rstrip()
        _title(name)
        begin = time.monotonic()
        report = self.reports / f"{name.replace(' ', '-')}.xml"
        with _scratch() as scratch:
            command = [*wrapper, *self._pytest(arguments, report, scratch)]
            env = {**(env or {}), "TMPDIR": str(scratch)}
            folders = (programs, None if qemu is None else qemu.programs)
            code = self._run(command, timeout=900, env=env, programs=[one for one in folders if one is not None])
        outcome = self._judge(name, code, report, begin)
        outcome.ran_on = () if qemu is None else (str(qemu),)
        return outcome

    def compile(self, files: list[str], wrapper: list[str]) -> None:
        """Have pytest write the byte code of these tests beside them, and of what they import.

        Or every VM compiles them again, on an emulated CPU, into an overlay that is then thrown away. A fault in
        them is not told here: it is met again where they run.
        """
        command = [*wrapper, str(self.venv / "bin/python"), "-m", "pytest", "-p", "no:cacheprovider"]
        with _scratch() as scratch, tempfile.TemporaryFile() as said:
            env = {"TMPDIR": str(scratch)}
            self._run([*command, "--collect-only", "-qq", *files], timeout=300, env=env, output=said)

    def vm(
        self, name: str, machine: Machine, kernel: Kernel, qemu: Qemu, udev: Path, programs: Path | None = None
    ) -> Outcome:
        """The machine's tests in the lab VM; ``udev``, a folder with ``programs``: for those that want it."""
        _title(name)
        begin = time.monotonic()
        arch = arches.get(machine.arch)
        inside = Path("/run/lab/out/report.xml")
        command = self._pytest(list(machine.arguments or map(str, machine.files)), inside, Path("/tmp"))
        config = Config(
            kernel=kernel,
            # Without hypothesis' plugin: it is not used there, and costs seconds on an emulated CPU.
            command=[*command, "-p", "no:hypothesispytest"],
            arch=arch,
            root=roots.get(arch),
            firmware=roots.firmware(arch) if machine.acpi else None,
            machine=machine.machine,
            cpu=machine.cpu,
            qemu=qemu.program(arch),
            qemu_arguments=list(machine.qemu),
            iommu=machine.iommu,
            memory=machine.memory,
            devices=list(machine.devices),
            append=machine.append,
            timeout=machine.timeout,
            venv=self.venv,
            programs=programs,
            libraries=natives.get(arch, self.venv),
            env={
                "UVIRTIO_LAB_KERNEL": kernel.version,
                "UVIRTIO_LAB_MACHINE": machine.name,
                "UVIRTIO_LAB_WHOLE": str(int(machine.whole)),
                "UVIRTIO_UDEV": str(udev),
                **({"UVIRTIO_SYSTEMD": str(systemd.get())} if machine.systemd else {}),
            },
        )
        report = self.reports / f"{self._stem(name, kernel)}.xml"
        note, alarms, faults = "", [], []
        try:
            with Vm(config) as vm:
                try:
                    code = vm.wait()
                finally:  # of a guest that panicked it is all that is left
                    report.with_suffix(".dmesg").write_text(vm.dmesg())
                alarms, faults = vm.alarms(), vm.faults()
                if (vm.out / inside.name).exists():
                    shutil.copy(vm.out / inside.name, report)
        except LabError as error:
            print(f"tools/test: {error}", file=sys.stderr)
            code = 1
        if code == TIMED_OUT:
            note = f"timed out after {machine.timeout:g} s"
        elif faults:
            note = f"{len(faults)} lines about DMA faults"
        if code == _NO_TESTS and machine.arguments:
            code, note = 0, "none of these tests is for this machine"
        outcome = self._judge(name, code, report, begin)
        outcome.ran_on = (str(qemu), str(kernel))
        if alarms:  # a kernel that complains is a failure, whatever the tests say
            print("the guest's kernel complained:", *alarms[:20], sep="\n  | ", flush=True)
            note = f"the guest's kernel complained: {alarms[0].strip()}"
            outcome.failed += 1
            outcome.ok = False
        outcome.note = outcome.note or note
        return outcome

    @staticmethod
    def _stem(name: str, kernel: Kernel) -> str:
        """The name of a report from the VM, with the series of a kernel that was asked for as the newest."""
        head, _, asked = name.rpartition(" ")
        series = re.match(r"\d+\.\d+", kernel.version) if kernel.origin else None
        return f"{head} {series[0] if series else asked}".replace(" ", "-")

    def _pytest(self, arguments: list[str], report: Path, scratch: Path) -> list[str]:
        command = [str(self.venv / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]  # which has properties, for tools/matrix
        command += [f"--basetemp={scratch}/t"]  # short: sockets have short paths
        if self.expression:
            command += ["-k", self.expression]
        for name in self.spec:
            command += ["--spec", name]
        return [*command, *arguments]

    def _judge(self, name: str, code: int, report: Path, begin: float) -> Outcome:
        """The outcome of a pytest run, from its exit code and its report."""
        outcome = Outcome(name, code == 0, time.monotonic() - begin)
        if code == _NO_TESTS and (self.expression or self.spec):
            outcome.ok, outcome.note = True, f"nothing matches {'-k' if self.expression else '--spec'}"
            return outcome
        if (document := _document(report)) is not None:
            # Of a race, how long it went on says more than that it passed.
            rounds = [int(one.get("value", 0)) for one in document.iter("property") if one.get("name") == "rounds"]
            if rounds:
                outcome.note = f"{sum(rounds):,} rounds"
            outcome.left = sum(one.get("message", "").startswith(LEFT) for one in document.iter("skipped"))
            for suite in document.iter("testsuite"):
                total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
                bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
                outcome.failed += bad
                outcome.skipped += skipped
                outcome.passed += max(0, total - bad - skipped)
        elif report.exists():
            outcome.failed, outcome.note = 1, "its report is cut off"
        if code != 0 and outcome.failed == 0:
            outcome.failed = 1
            outcome.note = _ENDS.get(code, f"pytest ended with {code}")
        outcome.ok = outcome.failed == 0
        return outcome

    def _run(
        self,
        command: list[str],
        timeout: float,
        env: dict[str, str] | None = None,
        programs: Sequence[Path] = (),
        output: IO[bytes] | None = None,
    ) -> int:
        """Run ``command`` in the checkout with a hard time-out; its exit code, or TIMED_OUT.

        ``output``: where both of its streams go, if not to ours.
        """
        sys.stdout.flush()
        # Rewriting the assertions of all tests takes longer than many of them.
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        path = f"{self.venv}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        path = ":".join([*map(str, programs), path])
        child = process.start(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**inherited, "VIRTUAL_ENV": str(self.venv), "PATH": path, **(env or {})},
        )
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            print(f"tools/test: timed out after {timeout:g} s: {' '.join(command)}", file=sys.stderr, flush=True)
            return TIMED_OUT
        finally:
            process.kill(child)


def without_devices(*, scratch: bool = False) -> list[str]:
    """The wrapper for a private, empty /sys, so that no real device can be reached; for root only.

    ``scratch``: with $TMPDIR in memory, too: journals are synced, and need not wait for a disk here.
    """
    first = "mount -t tmpfs -o ro none /sys"
    if scratch:
        first += ' && mount -t tmpfs -o mode=1777 none "$TMPDIR"'
    return ["unshare", "--mount", "sh", "-c", f'{first} && exec "$@"', "sh"]


def without_privilege() -> list[str]:
    """The wrapper for an ordinary user: uid 1000 of a user namespace, with root's files and no capability."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def _whole(name: str, ok: bool, begin: float) -> Outcome:
    return Outcome(name, ok, time.monotonic() - begin, passed=int(ok), failed=int(not ok))


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="uvt-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _title(name: str) -> None:
    print(f"\n=== {name} ===", flush=True)


Step = Callable[[], Outcome]
