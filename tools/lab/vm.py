"""One lab VM: its QEMU command line, its process, and the files that go in and come out."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TextIO

from lab import CHECKOUT, LabError, cache, initramfs, process
from lab.arches import X86_64, Arch
from lab.kernels import Kernel
from lab.qmp import Qmp

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.03
_PREFIX = "uvirtio-vm-"
TIMED_OUT = 124
_MONITOR_SECONDS = 30.0
# The settings of ours and of the tools we run that a guest shall see; everything else of the host stays out.
PASSED = re.compile(
    r"LANG|LC_\w+|TERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CI|PY_COLORS|PYTEST_\w+|HYPOTHESIS_\w+|UVIRTIO_\w+"
)
# What the kernel prints when it caught itself, or us, doing wrong; and what the IOMMU's driver prints when a
# device went where nothing is mapped, which a test may well have wanted.
ALARMS = re.compile(
    r"WARNING: CPU|BUG:|Oops|kernel BUG|general protection|Call [Tt]race|Kernel panic|Internal error"
)
FAULTS = re.compile(r"DMAR: .*[Ff]ault|DMAR: DRHD: handling|arm-smmu-v3 .*event 0x|virtio_iommu .* fault")


OOM_ON_PURPOSE = "out of memory on purpose"
"""What a test writes to /dev/kmsg before it fills the memory: the killer's report has a call trace, too."""


def alarms_of(messages: str) -> list[str]:
    """The kernel's lines about a WARNING, BUG or Oops, without the trace of an OOM killer that was wanted."""
    found, wanted, killing = [], False, False
    for line in messages.splitlines():
        wanted = wanted or OOM_ON_PURPOSE in line
        killing = killing or (wanted and "invoked oom-killer" in line)
        if ALARMS.search(line):
            if not (killing and "Call Trace" in line):
                found.append(line)
            killing = False
    return found


@dataclass(slots=True)
class Config:
    """What to boot and what to run in it."""

    kernel: Kernel
    command: list[str]
    arch: Arch = X86_64
    root: Path = Path("/")  # what has the guest's programs: this machine's own, or another architecture's
    machine: str = ""  # the architecture's usual one
    iommu: str = ""  # likewise
    cpu: str = ""
    firmware: Path | None = None  # UEFI, and with it ACPI; None: the kernel is started directly
    memory: str = "1G"
    devices: list[str] = field(default_factory=list)
    qemu: str = ""  # a path, or a name in PATH; the architecture's
    qemu_arguments: list[str] = field(default_factory=list)
    append: str = ""
    user: int | None = None
    timeout: float = 300.0
    qmp: Path | None = None
    venv: Path | None = None
    programs: Path | None = None  # a folder that stands first in PATH
    libraries: Path | None = None  # stands before the environment's in Python's path
    env: dict[str, str] = field(default_factory=dict)
    before: str = ""  # shell text that the guest's root runs before the command
    interactive: bool = False

    def __post_init__(self) -> None:
        self.machine = self.machine or self.arch.machine
        self.iommu = self.iommu or self.arch.iommus[0]
        self.cpu = self.cpu or self.arch.cpu
        self.qemu = self.qemu or self.arch.qemu


class Vm:
    """A running lab VM; a context manager, so that nothing of it is left.

    ``share`` is the folder that the guest sees as /run/lab; ``out`` in it is for what a command wants to
    hand back.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        _sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.share = self.directory / "share"
        self.out = self.share / "out"
        self.console = self.directory / "console.log"
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Vm:
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill QEMU, and remove the VM's folder."""
        if self._child is not None:
            process.kill(self._child)
            self._child = None
        if self.config.qmp is not None:
            self.config.qmp.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process of QEMU, which has a session of its own."""
        assert self._child is not None
        return self._child.pid

    # --- what comes out ---------------------------------------------------------------------------------

    def wait(self, *, tick: Callable[[], None] | None = None) -> int:
        """Stream the command's output to ours until it ends; its exit code, or TIMED_OUT.

        ``tick`` is called some thirty times a second. LabError if the VM ends without an exit code.
        """
        assert self._child is not None
        deadline = time.monotonic() + self.config.timeout
        streams = [_Tail(self.share / "stdout", sys.stdout), _Tail(self.share / "stderr", sys.stderr)]
        status = self.share / "status"
        try:
            while True:
                ended = status.exists()  # asked first: what was written before it is then there to be copied
                gone = not ended and self._child.poll() is not None and not status.exists()
                for stream in streams:
                    stream.copy()
                if ended:
                    return int(status.read_text())
                if gone:
                    raise LabError(f"the VM ended without an exit code\n{self.said()}", 1)
                if time.monotonic() > deadline:
                    print(
                        f"lab: timed out after {self.config.timeout:g} s\n{self.said()}",
                        file=sys.stderr,
                        flush=True,
                    )
                    return TIMED_OUT
                if tick is not None:
                    tick()
                time.sleep(POLL_SECONDS)
        finally:
            for stream in streams:
                stream.close()

    def check(self) -> None:
        """Raise LabError if the VM has ended, with the last that it said."""
        if self._child is not None and self._child.poll() is not None:
            raise LabError(f"the VM ended\n{self.said()}", 1)

    @contextmanager
    def monitor(self) -> Iterator[Qmp]:
        """A session at the QMP socket that the configuration names, which QEMU may not have opened yet."""
        assert self.config.qmp is not None
        deadline = time.monotonic() + _MONITOR_SECONDS
        while not self.config.qmp.exists():
            self.check()
            if time.monotonic() > deadline:
                raise LabError(f"QEMU opens no QMP socket {self.config.qmp}")
            time.sleep(POLL_SECONDS)
        with Qmp(self.config.qmp) as qemu:
            yield qemu

    def dmesg(self) -> str:
        """The kernel's messages; those of the console if the guest did not get to saving them."""
        for path in (self.share / "dmesg", self.console):
            if path.is_file():
                return path.read_text(errors="replace")
        return ""

    def alarms(self) -> list[str]:
        """The kernel's lines about a WARNING, BUG or Oops."""
        return alarms_of(self.dmesg())

    def faults(self) -> list[str]:
        """The kernel's lines about a device whose DMA the IOMMU stopped."""
        return [line for line in self.dmesg().splitlines() if FAULTS.search(line)]

    def said(self) -> str:
        """The last that QEMU and the console said."""
        texts = [self.directory / "qemu.log", self.console]
        lines = [
            line for path in texts if path.is_file() for line in path.read_text(errors="replace").splitlines()
        ]
        return "\n".join(f"  | {line}" for line in lines[-25:])

    # --- what goes in -----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        self.out.mkdir(parents=True)
        self.out.chmod(0o1777)
        kept = [CHECKOUT, Path.cwd(), cache.root(), *filter(None, (config.venv, config.libraries))]
        _write_lines(self.share / "keep", kept)
        _write_lines(self.share / "modules", [config.kernel.modules])
        shutil.copy(HERE / "stage2.sh", self.share / "stage2.sh")
        (self.share / "job").write_text(self._job())
        if config.before:
            (self.share / "before").write_text(config.before)
        (self.share / "witness").write_text(f"{config.arch.witness}\n")
        if config.interactive:
            (self.share / "interactive").write_text(f"{config.arch.console}\n")
        modules = ("virtio_iommu",) if config.iommu == "virtio" else ()
        archive = initramfs.build(config.kernel, (HERE / "init.sh").read_bytes(), root=config.root, first=modules)
        (self.directory / "initrd.cpio").write_bytes(archive)

    def _job(self) -> str:
        """A shell script with every word quoted by shlex: it runs the command, and that only."""
        config = self.config
        env = {key: value for key, value in os.environ.items() if PASSED.fullmatch(key)}
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if config.venv:
            env["VIRTUAL_ENV"] = str(config.venv)
            path = f"{config.venv}/bin:{path}"
        if config.programs:
            path = f"{config.programs}:{path}"
        env |= {
            "PATH": path,
            "HOME": "/run/home",
            "XDG_CACHE_HOME": str(cache.root().parent),
            "PYTHONUNBUFFERED": "1",  # or the output of a VM that hangs is lost
            "UVIRTIO_LAB": "1",
            "UVIRTIO_LAB_OUT": "/run/lab/out",
            "UVIRTIO_QMP_TTY": config.arch.witness,
        }
        env |= config.env
        if config.libraries is not None:
            env["PYTHONPATH"] = ":".join(filter(None, (str(config.libraries), env.get("PYTHONPATH"))))
        lines = [f"export {key}={shlex.quote(value)}" for key, value in sorted(env.items())]
        if config.interactive and sys.stdout.isatty():
            size = os.get_terminal_size()
            lines.append(f"stty rows {size.lines} cols {size.columns}")
        lines.append(f"cd {shlex.quote(str(Path.cwd()))} || exit 126")
        command = list(config.command)
        if config.user is not None:
            user = str(config.user)
            command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--", *command]
        lines.append(f"exec {shlex.join(command)}")
        return "\n".join(lines) + "\n"

    # --- QEMU -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        terminal = None
        if self.config.interactive and sys.stdin.isatty():
            terminal = termios.tcgetattr(sys.stdin)
        self._terminal = terminal
        with (self.directory / "qemu.log").open("wb") as log:
            self._child = process.start(
                self.command_line(),
                stdin=None if self.config.interactive else subprocess.DEVNULL,
                stdout=None if self.config.interactive else log,
                stderr=log,
                cwd=self.directory,
            )

    def restore_terminal(self) -> None:
        """Give the terminal back as it was before an interactive VM had it."""
        if self._terminal is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def command_line(self) -> list[str]:
        """QEMU's argument vector."""
        config = self.config
        # No other number of CPUs: with two, one run in six crawls over 9p on a host of two cores.
        words = [config.qemu, "-nodefaults", "-no-user-config", "-accel", "tcg,thread=multi"]
        words += ["-M", self._machine(), "-cpu", config.cpu, "-smp", "1", "-m", config.memory]
        words += ["-display", "none", "-no-reboot", "-monitor", "none"]
        if config.firmware is not None:
            words += ["-bios", str(config.firmware)]
        if config.iommu == "intel":
            words += ["-device", "intel-iommu,intremap=on"]
        elif config.iommu == "virtio":
            words += ["-device", "virtio-iommu-pci"]
        if config.interactive:
            words += ["-chardev", "stdio,id=console,signal=off"]
        else:
            words += ["-chardev", f"file,id=console,path={self.console}"]
        # The guest's second serial port is wired to a QMP monitor of the very same QEMU, over a socket with
        # QEMU at both ends: so a test in the guest has a witness outside of it.
        words += ["-chardev", "socket,id=witness,path=witness.sock,server=on,wait=off"]
        words += ["-qmp", "chardev:witness"]
        words += ["-chardev", "socket,id=witness-line,path=witness.sock"]
        if config.arch is X86_64:
            words += ["-device", "isa-serial,index=0,chardev=console"]
            words += ["-device", "isa-serial,index=1,chardev=witness-line"]
        else:
            words += ["-serial", "chardev:console", "-device", "pci-serial,chardev=witness-line"]
        if config.qmp is not None:
            words += ["-qmp", f"unix:{config.qmp},server=on,wait=off"]
        append = f"console={Path(config.arch.console).name} {config.arch.append}"
        words += ["-kernel", str(config.kernel.image), "-initrd", "initrd.cpio"]
        if config.machine.startswith("microvm"):
            # It has no timer to measure the CPU's clock by, and now and then hangs trying.
            append += f" tsc_early_khz={_clock_khz()}"
        words += self._folder("hostroot", Path("/"), read_only=True)
        if config.root != Path("/"):
            append += " uvirtio.root=guestroot"
            words += self._folder("guestroot", config.root, read_only=True)
        words += self._folder("share", self.share, read_only=False)
        words += ["-append", f"{append} {config.append}".strip()]
        words += config.qemu_arguments
        for number, device in enumerate(config.devices, 1):
            words += self._device(number, device)
        return words

    def _machine(self) -> str:
        """QEMU's -M argument."""
        if self.config.iommu != "smmuv3":
            return self.config.machine
        return f"{self.config.machine},iommu=smmuv3"  # a part of the board, which no -device adds

    @staticmethod
    def _folder(tag: str, path: Path, *, read_only: bool) -> list[str]:
        options = f"local,id={tag},path={path},security_model=none,multidevs=remap"
        if read_only:
            options += ",readonly=on"
        return ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]

    def _device(self, number: int, text: str) -> list[str]:
        """The arguments for one --device: the device, what it needs beside it, and a root port of its own.

        A function alone behind its own root port is alone in its IOMMU group, and has function-level reset.
        """
        driver, *options = text.split(",")
        keys = {option.split("=", 1)[0] for option in options}
        words: list[str] = []
        for prefix, key, kind, beside in _BESIDE:
            wanted = key != "iothread" or "free-page-hint=on" in options
            if driver.startswith(prefix) and key not in keys and wanted:
                name = f"lab-{key}{number}"
                if kind == "-drive":
                    disk = self.directory / f"disk{number}.raw"
                    with disk.open("wb") as handle:
                        handle.truncate(16 << 20)
                    beside = f"file={disk.name},{beside}"
                words += [kind, beside.format(name=name)]
                options.append(f"{key}={name}")
        if "bus" not in keys and _is_pci(driver) and self.config.arch.has_root_ports(self.config.machine):
            port = f"lab-port{number}"
            words += ["-device", f"pcie-root-port,id={port},chassis={number},slot={number}"]
            options.append(f"bus={port}")
        return [*words, "-device", ",".join([driver, *options])]


# A device that needs something else, and was not told what: the prefix of its name, the property, what to add.
_BESIDE = (
    ("virtio-rng-", "rng", "-object", "rng-builtin,id={name}"),
    ("virtio-blk-", "drive", "-drive", "format=raw,if=none,id={name}"),
    ("scsi-hd", "drive", "-drive", "format=raw,if=none,id={name}"),
    ("virtio-net-", "netdev", "-netdev", "user,id={name},restrict=on"),
    ("virtio-balloon-", "iothread", "-object", "iothread,id={name}"),
    ("virtio-mem-", "memdev", "-object", "memory-backend-ram,id={name},size=512M"),
)


def _clock_khz() -> int:
    """The clock of this machine's CPU, which an emulated one counts by; a usual one where it is not told."""
    match = re.search(r"^cpu MHz\s*:\s*(\d+)", Path("/proc/cpuinfo").read_text(), re.M)
    return int(match[1]) * 1000 if match else 2_000_000


def _is_pci(driver: str) -> bool:
    return "-pci" in driver or driver in ("e1000", "e1000e", "nvme", "edu", "ivshmem-plain", "ivshmem-doorbell")


def _write_lines(path: Path, lines: list[Path]) -> None:
    for line in lines:
        if "\n" in str(line):
            raise LabError(f"{line!r}: a path with a line break in it can't be taken into the VM", 2)
    path.write_text("".join(f"{line}\n" for line in lines))


def _sweep() -> None:
    """Remove the folders of VMs whose tool was killed with SIGKILL (the kernel has killed their QEMU)."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and path.stat().st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)


class _Tail:
    """Copies a growing file to a stream, as bytes."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path = path
        self._stream = stream
        self._file: IO[bytes] | None = None

    def copy(self) -> None:
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open("rb")
        data = self._file.read()
        if data:
            self._stream.flush()
            self._stream.buffer.write(data)
            self._stream.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
