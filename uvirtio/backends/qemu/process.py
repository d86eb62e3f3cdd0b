"""The QEMU process: started with a parked CPU.

No file that QEMU needs has a name that another process could use or find (``backends/child.py``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from uvirtio.backends.child import ChildProcess, which
from uvirtio.backends.qemu.models import WHY_LITTLE, Model, is_big_endian
from uvirtio.errors import NotSupported, QemuFailed, QemuMissing

OLDEST = (7, 2)
_PREFIX = "qemu-system-"


def halt_firmware() -> int:
    """Return a memfd with 64 KiB of firmware that parks the CPU: ``cli; hlt`` and back, at the reset vector.

    The CPU has to run (timers stop in a stopped machine) and must do nothing: a real firmware would program the
    PCI functions at the same time as this process.
    """
    image = bytearray(b"\xf4" * 65536)
    image[0xFFF0:0xFFF4] = b"\xfa\xf4\xeb\xfc"
    fd = os.memfd_create("uvirtio-halt", os.MFD_CLOEXEC)
    os.write(fd, image)
    return fd


def ram_file(size: int) -> int:
    """Return a memfd for ``size`` bytes of guest memory.

    Raises:
        OSError: The kernel refused.
    """
    fd = os.memfd_create("uvirtio-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def find_binary(binary: str | None, model: Model) -> str:
    """Return the path of QEMU.

    Args:
        binary: The program, by name or path; None: the usual one of the machine.
        model: The machine.

    Raises:
        QemuMissing: There is no such program.
    """
    name = binary or model.binary
    path = which(name)
    if path is None:
        remedy = f"apt-get install {model.package}"
        if model.older_package:
            remedy += f", or in an older release: apt-get install {model.older_package}"
        raise QemuMissing(
            f"QEMU is not installed: there is no program {name}",
            seen=f"no {name}" + ("" if "/" in name else " in PATH"),
            expected=f"QEMU {OLDEST[0]}.{OLDEST[1]} or later",
            remedy=f"{'install it' if binary is None else 'name another with binary=, or none'}: {remedy}",
        )
    return path


def check_target(target: str, model: Model, program: str) -> None:
    """Check that a QEMU emulates a CPU that the machine has.

    Args:
        target: What QEMU calls the CPU: ``x86_64``, ``riscv64``, ``s390x`` ...
        model: The machine.
        program: The program, for the error.

    Raises:
        NotSupported: It is another CPU.
    """
    if target in model.targets:
        return
    big = is_big_endian(target)
    raise NotSupported(
        f"{program} is the QEMU of a big-endian CPU: {WHY_LITTLE}"
        if big
        else f"{program} does not have the machine {model.name}",
        seen=target,
        expected=" or ".join(model.targets),
        remedy=f"leave binary= out, or name a {model.binary}",
    )


def target_of(program: str) -> str:
    """Return the CPU in the name of a program, ``qemu-system-TARGET``; empty if it has another name."""
    name = program.rpartition("/")[2]
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


def version_of(program: str) -> tuple[int, ...]:
    """Return the three numbers that ``--version`` reports; () if unknown.

    Args:
        program: The path of QEMU.
    """
    import re
    import subprocess  # here: QEMU starts without

    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(rb"version ([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", done.stdout)
    return tuple(int(part) for part in match.groups()) if match else ()


def check_version(version: tuple[int, ...]) -> None:
    """Check that QEMU is not older than the oldest supported version.

    Raises:
        QemuFailed: It is.
    """
    if version[:2] < OLDEST:
        raise QemuFailed(
            "this QEMU is too old",
            seen=".".join(str(part) for part in version),
            expected=f"{OLDEST[0]}.{OLDEST[1]} or later",
            remedy="install a newer QEMU, or name one with binary=PATH",
        )


class QemuProcess(ChildProcess):
    """One running QEMU."""

    name = "QEMU"
    not_started = QemuFailed

    def __init__(
        self,
        binary: str,
        arguments: Sequence[str],
        fds: Sequence[int],
        *,
        timeout: float,
        disposable: bool = False,
    ) -> None:
        """Start QEMU; the other parameters are those of ``ChildProcess``.

        Args:
            disposable: It has nothing of the caller's (an image, a socket's name, arguments) to leave in order, as
                long as nothing is given to it later.
        """
        self.disposable = disposable
        super().__init__(binary, arguments, fds, timeout=timeout)

    def version(self) -> tuple[int, ...]:
        """Return what ``--version`` reports, for a QEMU that ended before its greeting; () if unknown."""
        return version_of(self._binary)


def check_socket_path(path: str) -> None:
    """Check the path of a socket that QEMU is to make: QEMU would remove any other file there.

    Raises:
        QemuFailed: The path exists, and is not a socket.
    """
    from pathlib import Path

    place = Path(path)
    if place.exists() and not place.is_socket():
        raise QemuFailed(
            f"{path} exists and is not a socket",
            seen="a file of another kind",
            expected="a new name for the QMP socket",
            remedy="give qmp= another path",
        )
