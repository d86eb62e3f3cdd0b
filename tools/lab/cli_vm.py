"""``tools/vm``: run a command, a shell, or what a program asks for, in the lab VM."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from lab import (
    CHECKOUT,
    arches,
    cache,
    debian,
    kernels,
    modules,
    natives,
    process,
    qemus,
    roots,
    serve,
    setup,
    soft_reserve,
)
from lab.vm import Config, Vm


def parser() -> argparse.ArgumentParser:
    """The command line of tools/vm."""
    top = argparse.ArgumentParser(
        prog="tools/vm",
        description="The lab VM: a stock kernel under QEMU, with this checkout and its environment inside.",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="run|shell|serve")
    run = verbs.add_parser("run", help="run COMMAND in a fresh VM; its output and exit code are ours")
    shell = verbs.add_parser("shell", help="a shell in a fresh VM; leave it with exit")
    server = verbs.add_parser(
        "serve", help="a VM that runs what a program asks for, in lines of JSON (the pytest fixture virtio_vm)"
    )
    server.add_argument("--kernel", default=arches.X86_64.kernel, metavar="V", help="6.1 (default), 6.12, a path")
    server.add_argument("--iommu", choices=arches.X86_64.iommus, default="", help="intel (default), none")
    server.add_argument("--venv", type=Path, metavar="DIR", help="the environment whose programs come first")
    server.add_argument("--libraries", type=Path, metavar="DIR", help="stands before it in Python's path")
    server.add_argument("--boot-timeout", type=float, default=240, metavar="S", help="for the start (240)")
    for verb in (run, shell, server):
        verb.add_argument("--memory", default="1G", metavar="M", help="QEMU's -m argument (1G)")
        verb.add_argument(
            "--device",
            action="append",
            default=[],
            metavar="ARG",
            help="a QEMU -device argument; without bus= it gets a root port, and so an IOMMU group, of its own;"
            " an rng, disk, network or memory backend is supplied unless named",
        )
        verb.add_argument("--append", default="", metavar="ARGS", help="more for the kernel's command line")
        verb.add_argument("--qemu", action="append", default=[], metavar="ARG", help="any other argument of QEMU")
    for verb in (run, shell):
        verb.add_argument(
            "--arch",
            choices=list(arches.ALL),
            default=arches.X86_64.name,
            help="aarch64 has a root of its own, which is fetched on first use (27 MB, and 93 MB for a kernel)",
        )
        verb.add_argument(
            "--kernel",
            metavar="V",
            help="6.1 (default), 6.12, newest (Debian sid's), experimental, or an unpacked package; of aarch64:"
            " 6.12 (default), 6.12-16k (pages of 16 KiB) ...",
        )
        verb.add_argument(
            "--machine", default="", metavar="M", help="QEMU's -M argument (q35; virt,gic-version=3)"
        )
        verb.add_argument(
            "--iommu",
            choices=list(dict.fromkeys(one for arch in arches.ALL.values() for one in arch.iommus)),
            default="",
            help="intel on x86, smmuv3 on aarch64",
        )
        verb.add_argument("--cpu", default="", metavar="MODEL", help="QEMU's -cpu argument (max,-erms)")
        verb.add_argument(
            "--acpi", action="store_true", help="aarch64: ACPI tables, by UEFI; without, a device tree"
        )
        verb.add_argument(
            "--soft-reserve",
            metavar="SIZE@ADDR",
            help="aarch64 with --acpi: memory that the kernel finds set apart (Soft Reserved), as 512M@0x80000000,"
            " by a UEFI program in front of it, which is built with clang",
        )
        verb.add_argument(
            "--modules",
            action="append",
            default=[],
            metavar="SET",
            help="modules that Debian does not build, made on first use: vdpa (vp_vdpa, vdpa_sim; 6.12), vfio"
            " (no-IOMMU; in 6.12 iommufd and character devices too)",
        )
        verb.add_argument(
            "--qemu-version",
            default="",
            metavar="V",
            help=f"another QEMU than this machine's: {', '.join(qemus.names())}",
        )
        verb.add_argument("--accept-expired", action="store_true", help=debian.ACCEPT_EXPIRED)
        verb.add_argument("--qmp", type=Path, metavar="PATH", help="a QMP socket for this side")
        verb.add_argument("--user", type=int, metavar="UID", help="who runs COMMAND in the VM (root)")
    run.add_argument("--timeout", type=float, default=300, metavar="S", help="kill the VM after S seconds (300)")
    run.add_argument("--dmesg", action="store_true", help="print the kernel's messages at the end, on stderr")
    run.add_argument("--out", type=Path, metavar="DIR", help="copy what COMMAND left in $UVIRTIO_LAB_OUT to DIR")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="and its arguments")
    return top


def main(arguments: list[str]) -> int:
    """Run tools/vm; the exit code."""
    options = parser().parse_args(arguments)
    if options.verb == "serve":
        return _serve(options)
    command = ["/bin/bash", "-i"] if options.verb == "shell" else options.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        parser().error("no COMMAND; say: tools/vm run -- COMMAND")
    arch = arches.get(options.arch)
    if options.iommu and options.iommu not in arch.iommus:
        parser().error(f"--iommu {options.iommu}: {arch.name} has {', '.join(arch.iommus)}")
    if options.acpi and arch is arches.X86_64:
        parser().error("--acpi is for aarch64")
    if options.soft_reserve and not options.acpi:
        parser().error("--soft-reserve is for --acpi: it needs a firmware's memory map")
    setup.packages(setup.FOR_VM | setup.for_arch(arch))
    venv = setup.venv()
    kernel = kernels.get(options.kernel or arch.kernel, arch, accept_expired=options.accept_expired)
    kernel = modules.add(kernel, tuple(options.modules))
    if options.soft_reserve:
        kernel = soft_reserve.add(kernel, options.soft_reserve)
    config = Config(
        kernel=kernel,
        command=command,
        arch=arch,
        root=roots.get(arch),
        firmware=roots.firmware(arch) if options.acpi else None,
        cpu=options.cpu,
        machine=options.machine,
        iommu=options.iommu,
        memory=options.memory,
        devices=options.device,
        qemu=qemus.get(options.qemu_version, accept_expired=options.accept_expired).program(arch),
        qemu_arguments=options.qemu,
        append=options.append,
        user=options.user,
        qmp=options.qmp.absolute() if options.qmp else None,
        venv=venv,
        libraries=natives.get(arch, venv),
        interactive=options.verb == "shell",
        timeout=float("inf") if options.verb == "shell" else options.timeout,
    )
    with process.signals_raise(), Vm(config) as vm:
        try:
            code = vm.wait()
        finally:
            vm.restore_terminal()
        if options.verb == "shell":
            return code
        if options.dmesg:
            print(vm.dmesg(), file=sys.stderr)
        if options.out is not None:
            shutil.copytree(vm.out, options.out, dirs_exist_ok=True)
        alarms = vm.alarms() + vm.faults()
        if alarms:
            print("lab: the guest's kernel complained (--dmesg shows all):", file=sys.stderr)
            for line in alarms[:10]:
                print(f"  | {line}", file=sys.stderr)
        return code


def _serve(options: argparse.Namespace) -> int:
    """``tools/vm serve``; the exit code."""
    line = serve.Line()
    if missing := _missing(options.kernel):
        line.tell(missing)
        return 4
    kernel = kernels.get(options.kernel)
    if options.venv is not None:
        setup.compile_package(options.venv / "bin/python")
    with process.signals_raise(), tempfile.TemporaryDirectory(prefix="uvs-", dir="/tmp") as folder:
        config = Config(
            kernel=kernel,
            command=serve.COMMAND,
            iommu=options.iommu,
            memory=options.memory,
            devices=options.device,
            qemu_arguments=options.qemu,
            append=options.append,
            qmp=Path(folder, "qmp"),  # a short path, as those of sockets have to be
            venv=options.venv,
            libraries=options.libraries,
        )
        with Vm(config) as vm:
            serve.serve(vm, line, options.boot_timeout)
    return 0


def _missing(kernel: str) -> dict[str, str]:
    """What a VM with this kernel lacks on this machine, and how to get it; empty if nothing."""
    if install := setup.missing_packages(setup.FOR_VM):
        return {"missing": "the lab wants packages that are not installed", "remedy": f"as root: {install}"}
    if kernels.is_here(kernel):
        return {}
    remedy = f"once: {CHECKOUT}/tools/vm run --kernel {kernel} -- true"
    if kernel in kernels.MOVING:
        remedy = "it is another from day to day: name the path of an unpacked one"
    return {"missing": f"the kernel {kernel} is not in {cache.root()}", "remedy": remedy}
