"""What the tools need on this machine, and getting it: packages, and a virtual environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lab import CHECKOUT, LabError, cache, initramfs
from lab.arches import AARCH64, Arch
from lab.pythons import Interpreter

PYTHON = "/usr/bin/python3"  # the distribution's own: one of pyenv or conda may be closed to other users
SBIN = "/usr/sbin:/sbin"


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}:/usr/bin:/bin") is not None


def _library(name: str) -> Callable[[], bool]:
    return lambda: any(Path("/usr/lib").glob(f"*/{name}")) or Path("/usr/lib64", name).exists()


def _static_busybox() -> bool:
    try:
        initramfs.static_busybox()
    except LabError:
        return False
    return True


def _venv_module() -> bool:
    done = subprocess.run([PYTHON, "-c", "import ensurepip, venv"], capture_output=True, timeout=60)
    return done.returncode == 0


# Packages for each floor, and how to see that what one brings is here (it may have come from elsewhere).
Packages = dict[str, Callable[[], bool]]
FOR_LINT: Packages = {"python3-venv": _venv_module}
FOR_UNIT: Packages = {
    **FOR_LINT,
    # Our tables and structures are compared with what a compiler makes of the kernel's headers.
    "gcc": _program("gcc"),
    "libc6-dev": Path("/usr/include/stdio.h").exists,
    "linux-libc-dev": Path("/usr/include/linux/virtio_pci.h").exists,
    "libatomic1": _library("libatomic.so.1"),  # the fence of other CPUs than x86's
    "busybox-static": _static_busybox,  # whose cpio unpacks what initramfs.py writes
    "zsh": _program("zsh"),  # completion is tested in real shells
    "fish": _program("fish"),
    "groff": _program("groff"),  # man pages
}
FOR_BENCH: Packages = {
    **FOR_LINT,
    "qemu-system-x86": _program("qemu-system-x86_64"),
    "qemu-system-common": _program("qemu-storage-daemon"),
}
# What the bench of vhost-user compares with is compiled here, where it runs for its figures.
FOR_PEERS: Packages = {"gcc": _program("gcc"), "libc6-dev": Path("/usr/include/stdio.h").exists}
FOR_QEMU: Packages = {**FOR_BENCH, "qemu-system-arm": _program("qemu-system-aarch64")}
FOR_VM: Packages = {
    **FOR_BENCH,
    "busybox-static": _static_busybox,  # the initramfs
    "kmod": _program("depmod"),  # on this machine; and modprobe in the guest, which has this machine's programs
    "pciutils": _program("lspci"),  # from here on: in the guest alone
    "iproute2": _program("vdpa"),
}

FOR_FLEET: Packages = {**FOR_VM, "openssh-client": _program("ssh")}  # its server is unpacked, for the guests alone
FOR_UEFI: Packages = {"clang": _program("clang"), "lld": _program("lld-link")}


def for_arch(arch: Arch) -> Packages:
    """What a lab VM of ``arch`` needs beside FOR_VM."""
    return {"qemu-system-arm": _program(arch.qemu)} if arch is AARCH64 else {}


_INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends")


def missing_packages(wanted: Packages) -> str:
    """The command that installs what is missing of ``wanted``; empty if nothing is."""
    missing = [name for name, present in wanted.items() if not present()]
    return " ".join([*_INSTALL, *missing]) if missing else ""


def packages(wanted: Packages) -> None:
    """Install what is missing of ``wanted`` as root; LabError with the one command otherwise."""
    missing = [name for name, present in wanted.items() if not present()]
    if not missing:
        return
    install = [*_INSTALL, *missing]
    if os.geteuid() != 0:
        raise LabError(f"missing on this machine; run this and try again:\n\n    sudo {' '.join(install)}\n")
    print(f"lab: installing {' '.join(missing)}", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with cache.lock("apt"):
        for command in (["apt-get", "-qq", "update"], [*install[:2], "-qq", *install[2:]]):
            done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=1800)
            if done.returncode:
                raise LabError(f"{' '.join(command)}: exit {done.returncode}")
    still = [name for name in missing if not wanted[name]()]
    if still:
        raise LabError(f"installed, but still not found: {' '.join(still)}")


def venv(interpreter: Interpreter | None = None) -> Path:
    """The virtual environment of this checkout: uvirtio (editable), with all that tests and linting need.

    Another one is made when pyproject.toml, the checkout's path or the Python changes. Inside an active
    environment that has uvirtio, it is that one. ``interpreter``: one of its own for that Python, without linting.
    """
    active = os.environ.get("VIRTUAL_ENV")
    if interpreter is None and active and (Path(active) / "bin/uvirtio").exists():
        return Path(active)
    key = hashlib.sha256()
    parts = [(CHECKOUT / "pyproject.toml").read_bytes(), bytes(CHECKOUT), sys.version.encode()]
    if interpreter is not None:
        parts[2:] = [bytes(interpreter.path), interpreter.build.encode()]
    for part in parts:
        key.update(len(part).to_bytes(8, "big") + part)
    path = cache.root() / "venv" / key.hexdigest()[:16]
    stamp = path / ".complete"  # not a rename: an environment can't be moved
    if not stamp.exists():
        path.parent.mkdir(exist_ok=True)
        with cache.lock(f"venv-{path.name}"):
            if not stamp.exists():
                _build_venv(path, interpreter)
                stamp.touch()
        _forget_stale(path.parent)
    os.utime(stamp)
    compile_package(path / "bin/python")
    return path


def compile_package(python: Path) -> None:
    """Have the checkout's byte code written, for this interpreter.

    Or every VM compiles the package again, on an emulated CPU, into an overlay that is then thrown away. Where the
    checkout can't be written, it has to.
    """
    _compile(python, CHECKOUT / "uvirtio", 120)


def _compile(python: Path, folder: Path, seconds: float) -> None:
    """Write the byte code of all below ``folder``, on every CPU. What cannot be compiled is met where it runs."""
    command = [str(python), "-m", "compileall", "-qq", "-j", "0", str(folder)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)


def _build_venv(path: Path, interpreter: Interpreter | None) -> None:
    print(f"lab: making the virtual environment {path}", flush=True)
    shutil.rmtree(path, ignore_errors=True)
    _do([PYTHON if interpreter is None else str(interpreter.path), "-m", "venv", str(path)])
    pip = [str(path / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-qq"]
    # Of a package whose newest release has no wheel for this interpreter, one before it that has. pip would
    # compile them one after the other, on one CPU.
    install = [*pip, "install", "--retries", "5", "--prefer-binary", "--no-compile", "--editable"]
    if interpreter is None:
        _do([*install, f"{CHECKOUT}[test,lint,input,docs,tui]"])
        _compile(path / "bin/python", path / "lib", 300)
        return
    _do([*install, f"{CHECKOUT}[test,tui]"])
    # The one part that is no pure Python; its wheels come later than an interpreter does.
    done = subprocess.run(
        [*install, f"{CHECKOUT}[input]"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        print(f"lab: Python {interpreter} goes without the extra 'input': {last}", flush=True)


def extra(python: Path, name: str, library: str) -> None:
    """Put an extra of the package into an environment, where the library that it is about is missing."""
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    if subprocess.run([str(python), "-c", probe], stdin=subprocess.DEVNULL, timeout=60).returncode:
        print(f"lab: installing the extra {name!r}", file=sys.stderr, flush=True)
        _do([str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install", f"{CHECKOUT}[{name}]"])


def _do(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=1200)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: exit {done.returncode}")


def _forget_stale(folder: Path) -> None:
    """Remove environments that were not used for a fortnight."""
    for stamp in cache.stale(folder.glob("*/.complete")):
        shutil.rmtree(stamp.parent, ignore_errors=True)
