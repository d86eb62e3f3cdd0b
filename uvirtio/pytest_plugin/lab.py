"""A lab VM for one test: a stock kernel under QEMU, by ``tools/vm serve`` of a checkout of uvirtio.

The lab is not part of the package, so nothing of it is imported: the two processes write lines of JSON to each
other (``tools/lab/serve.py``). When this one ends, in whatever way, the other sees the end of its input and ends
the VM. Nothing here knows pytest.
"""

from __future__ import annotations

import json
import os
import platform
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import uvirtio
from uvirtio.errors import EnvironmentLack, Misuse, OperationFailed, QemuFailed

RUN_SECONDS: Final = 120.0
"""Seconds that a command in the VM has, unless its call says otherwise: its CPU is emulated."""

BOOT_SECONDS: Final = 240.0

_REMEDY: Final = "--uvirtio-lab DIR (or uvirtio_lab in pytest's configuration) names a checkout of uvirtio"
_MARGIN: Final = 30.0  # beyond the deadlines that the other side keeps itself
_END_SECONDS: Final = 10.0
_QUOTED: Final = 2000
_DISTRIBUTION: Final = ("/usr", "/usr/local")


def find_lab(given: Path | None) -> Path:
    """Return ``tools/vm`` of a checkout of uvirtio.

    Args:
        given: The checkout; None: that which the package is imported from.

    Raises:
        EnvironmentLack: There is none, or this machine cannot run it.
    """
    checkout = Path(uvirtio.__file__).resolve().parents[1] if given is None else given
    program = checkout / "tools/vm"
    if not program.is_file():
        raise EnvironmentLack(
            "virtio_vm wants the lab of a checkout of uvirtio" if given is None else f"{given} has no tools/vm",
            seen=f"no {program}",
            expected="a checkout of uvirtio",
            remedy=_REMEDY,
        )
    if platform.machine() != "x86_64":  # its machines run this machine's programs
        raise EnvironmentLack(
            "the lab's machines are x86-64, and run this machine's programs",
            seen=platform.machine(),
            expected="an x86-64 machine",
            remedy="run the test on one",
        )
    return program


class LabVm:
    """A lab VM, booted; ``close`` ends it. It has this machine's files, read-only below what it writes itself."""

    def __init__(
        self,
        program: Path,
        devices: Sequence[str],
        files: Path,
        *,
        kernel: str = "6.1",
        iommu: str = "intel",
        memory: str = "1G",
        append: str = "",
        boot_timeout: float = BOOT_SECONDS,
    ) -> None:
        """Boot the VM.

        Args:
            program: ``tools/vm`` of a checkout.
            devices: QEMU's ``-device`` arguments. Each gets a root port and an IOMMU group of its own, and the
                id dev0, dev1 ... unless it names one.
            files: The folder that ``copy_out`` copies to.
            kernel: One of the lab's kernels: "6.1", "6.12", or the path of an unpacked package.
            iommu: "intel" or "none".
            memory: QEMU's ``-m`` argument.
            append: More for the kernel's command line.
            boot_timeout: Seconds that the VM has to boot.

        Raises:
            EnvironmentLack: The lab lacks something on this machine; the remedy is what to run.
            QemuFailed: The VM did not boot in time, or ended.
        """
        self._files = files
        self._ids = []
        command = [str(program), "serve", f"--kernel={kernel}", f"--iommu={iommu}", f"--memory={memory}"]
        command += [f"--append={append}", f"--boot-timeout={boot_timeout:g}"]
        command.append(f"--libraries={Path(uvirtio.__file__).resolve().parents[1]}")
        if sys.prefix not in _DISTRIBUTION:
            command.append(f"--venv={sys.prefix}")
        for number, device in enumerate(devices):
            given = [option[3:] for option in device.split(",") if option.startswith("id=")]
            self._ids.append(given[-1] if given else f"dev{number}")
            command.append(f"--device={device}" + ("" if given else f",id=dev{number}"))
        self.history: list[str] = []
        """What was run, with what it printed."""
        self._closed = False
        self._last_console = ""
        self._console = Path()
        self._copies = 0
        self._answer = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the VM
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise EnvironmentLack(f"{program} cannot be run: {error}", remedy=_REMEDY) from error
        try:
            first = self._receive(boot_timeout, "the lab VM did not boot")
            if "missing" in first:
                raise EnvironmentLack(f"virtio_vm: {first['missing']}", remedy=first["remedy"])
            ready = first["ready"]
            self.kernel: str = ready["kernel"]
            """The release of its kernel, as ``uname -r`` prints it."""
            self.addresses: dict[str, str] = ready["addresses"]
            """The PCI addresses of the devices in the VM, by their ids."""
            self._out, self._console = Path(ready["out"]), Path(ready["console"])
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LabVm {', '.join(self._ids) or 'without devices'}{', closed' if self._closed else ''}>"

    def __enter__(self) -> LabVm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, which: int | str = 0) -> str:
        """Return the PCI address of a device in the VM.

        Args:
            which: Its number in the fixture's arguments, or its id.

        Raises:
            Misuse: The VM has no such device on a PCI bus.
        """
        try:
            return self.addresses[which if isinstance(which, str) else self._ids[which]]
        except (LookupError, TypeError):
            raise Misuse(
                "the VM has no such PCI device", seen=which, expected=f"a number, or one of {self._ids}"
            ) from None

    def run(
        self, command: Sequence[str | Path], *, timeout: float = RUN_SECONDS, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the VM as its root, to its end; in the folder that this process runs in, with no input.

        Args:
            command: The program and its arguments. The environment of the test's Python comes first in PATH.
            timeout: Seconds that it has. A command that takes longer is a ``subprocess.TimeoutExpired``, with what
                it had printed, and takes the VM with it.
            check: Whether an exit code other than 0 is a ``subprocess.CalledProcessError``.

        Raises:
            QemuFailed: The VM has ended.
            Misuse: The command is no list of words.
        """
        given = [] if isinstance(command, str) else list(command)
        words = [str(word) for word in given if isinstance(word, str | Path)]
        if not words or len(words) != len(given) or any("\0" in word for word in words):
            raise Misuse("run takes a program and its arguments", seen=command, expected="a list of str")
        if not timeout < float("inf"):
            raise Misuse("a timeout is a number of seconds, and finite", seen=timeout)
        if self._closed:
            raise QemuFailed("the lab VM has ended", seen="it was closed", remedy="ask virtio_vm for another")
        try:
            self._process.stdin.write(json.dumps({"run": words, "timeout": timeout}).encode() + b"\n")  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # what _receive finds then says why
        self.history.append(f"$ {shlex.join(words)}")
        got = self._receive(timeout, f"no answer to {shlex.join(words)}")
        code, out, err = got["code"], got["stdout"], got["stderr"]
        self.history += [out, err, f"exit {code}" if code is not None else f"not ended after {timeout:g} s"]
        if code is None:
            self.close()
            raise subprocess.TimeoutExpired(words, timeout, out, err)
        done = subprocess.CompletedProcess(words, code, out, err)
        if check:
            done.check_returncode()
        return done

    def copy_out(self, path: str | Path, to: str | Path | None = None, *, timeout: float = RUN_SECONDS) -> Path:
        """Copy a file or folder of the VM to this machine, and return where it is.

        Args:
            path: The file or folder in the VM. Links are followed there.
            to: Where to; None: a file of that name in the test's ``tmp_path``.
            timeout: As for ``run``.

        Raises:
            OperationFailed: The VM could not read it; ``seen`` is the sentence of its ``cp``.
            QemuFailed: The VM has ended.
        """
        self._copies += 1
        name = f"copy-{self._copies}"
        script = 'cp -rL -- "$1" "$UVIRTIO_LAB_OUT/$2"'
        done = self.run(["/bin/sh", "-c", script, "sh", str(path), name], timeout=timeout)
        if done.returncode:
            raise OperationFailed(f"{path} cannot be copied out of the VM", seen=done.stderr.strip())
        target = self._files / Path(path).name if to is None else Path(to)
        source = self._out / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return target

    def console(self) -> str:
        """Return the warnings and errors of the VM's kernel so far, also after the VM was closed."""
        if not self._closed:
            path = self._console
            with suppress(OSError):  # the lab has ended, and has removed it
                self._last_console = path.read_text(errors="replace")
        return self._last_console

    def close(self) -> None:
        """End the VM, with everything that runs in it; idempotent."""
        if self._closed:
            return
        self.console()  # before the lab removes it
        self._closed = True
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its QEMU dies with it
            self._process.wait()
        self._said.close()

    def _receive(self, seconds: float, what: str) -> dict[str, Any]:
        """The next line of the other side, which keeps a deadline itself; this one is for a lab that hangs."""
        deadline = time.monotonic() + seconds + _MARGIN
        stream = self._process.stdout
        assert stream is not None
        poller = select.poll()
        poller.register(stream, select.POLLIN)
        while b"\n" not in self._answer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise self._failed(what, f"nothing within {seconds + _MARGIN:g} s")
            data = os.read(stream.fileno(), 1 << 20)
            if not data:
                raise self._failed(what, self._last_words())
            self._answer += data
        line, _, self._answer = self._answer.partition(b"\n")
        try:
            got = json.loads(line)
        except ValueError:
            raise self._failed(what, line.decode(errors="replace")[:_QUOTED]) from None
        return dict(got)

    def _failed(self, what: str, seen: str) -> QemuFailed:
        self.history.append(f"{what}: {seen}")
        self.close()
        return QemuFailed(
            what, seen=seen, expected="a VM that answers", remedy="try it by hand: tools/vm run -- true"
        )

    def _last_words(self) -> str:
        try:
            code: object = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = "still running"
        self._said.seek(0)
        return f"tools/vm: {code}\n" + self._said.read().decode(errors="replace")[-_QUOTED:]
