"""Lab VMs that are reached over ssh on loopback, and the playbook of examples/fleet over all of them.

sshd is dropbear, unpacked below the cache and never installed; its keys and the client's are made for each run and
go with it. QEMU's user network forwards a port of 127.0.0.1, which it chooses itself, to each guest; the guest can
reach nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lab import CHECKOUT, LabError, cache, debian, process, unpacked
from lab.demo_host import Host
from lab.kernels import Kernel
from lab.vm import Config, Vm

ANSIBLE = "ansible-core~=2.19.0"
"""The engine of the example. It is no part of the tests' environment: of all the tests, one wants it."""

_BOOT_SECONDS = 240.0
_PLAY_SECONDS = 1500.0
_SSH_PACKAGES = ("dropbear-bin", "libtomcrypt1", "libtommath1")


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the fleet."""

    name: str
    iommu: str = "intel"
    before: str = ""
    """Shell text that its root runs when it has booted; $bb is busybox."""


MACHINES = (
    Machine("east"),
    # Its disk is in use, so bind must not take it.
    Machine("south", before="$bb mkswap /dev/vda >/dev/null && $bb swapon /dev/vda\n"),
    # What vfio-pci needs is not there.
    Machine("west", iommu="none"),
)
"""Three machines with the same devices, two of which are not as the first is."""

DEVICES = ("rng", "disk", "nic")
"""The ids of the devices that the playbook tries to take; by the last one it is connected."""


@dataclass(frozen=True, slots=True)
class Times:
    """What a run took, in seconds."""

    boots: float
    play: float

    def __str__(self) -> str:
        return f"{self.boots:.0f} s for the boots, {self.play:.0f} s for the playbook"


def ansible() -> Path:
    """The folder of ansible's programs: an environment of its own below the cache, made on first use."""
    where = cache.root() / "ansible" / re.sub(r"\W+", "-", ANSIBLE)
    stamp = where / ".complete"
    with cache.lock("ansible"):
        if not stamp.exists():
            print(f"lab: making an environment with {ANSIBLE} (once; 60 MB, kept in {where})", flush=True)
            shutil.rmtree(where, ignore_errors=True)
            process.run(["/usr/bin/python3", "-m", "venv", str(where)])
            pip = [str(where / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
            process.run([*pip, "--prefer-binary", ANSIBLE])
            stamp.touch()
    return where / "bin"


def ssh_server(*, accept_expired: bool = False) -> Path:
    """The folder with dropbear and its libraries; downloaded on first use."""
    suite = debian.machine_suite()

    def build(work: Path) -> None:
        print(f"lab: fetching dropbear of {suite} (once; 1 MB, kept in {cache.root()})", flush=True)
        with debian.updated_apt(suite, work, accept_expired=accept_expired) as apt:
            apt.extract(list(_SSH_PACKAGES), work)

    return cache.build_once(cache.root() / "dropbear" / suite, build)


class Fleet:
    """The machines, started one after the other; a context manager, so that nothing of them is left."""

    def __init__(
        self, kernel: Kernel, venv: Path, *, machines: tuple[Machine, ...] = MACHINES, accept_expired: bool = False
    ) -> None:
        self._kernel, self._venv = kernel, venv
        self._machines = machines
        self._dropbear = ssh_server(accept_expired=accept_expired)
        self._stack = ExitStack()
        self._vms: dict[str, Vm] = {}
        self._ports: dict[str, int] = {}
        self._addresses: dict[str, list[str]] = {}
        self._boots = 0.0

    def __enter__(self) -> Fleet:
        try:
            begin = time.monotonic()
            self._start()
            self._boots = time.monotonic() - begin
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        # Below the cache, which every guest sees; sockets, whose paths must be short, in /tmp.
        self._keys = Path(self._stack.enter_context(_folder(cache.root(), ".fleet-")))
        self._short = Path(self._stack.enter_context(_folder(Path("/tmp"), "uvf-")))
        process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f", str(self._keys / "id")])
        libraries = {**os.environ, "LD_LIBRARY_PATH": str(self._dropbear / unpacked.LIBRARIES)}
        keygen = self._dropbear / "usr/bin/dropbearkey"
        said = process.run([str(keygen), "-t", "ed25519", "-f", str(self._keys / "host")], env=libraries)
        match = re.search(r"^(ssh-ed25519 \S+)", said, re.MULTILINE)
        if match is None:
            raise LabError(f"dropbearkey shows no public key: {said!r}")
        for machine in self._machines:
            self._boot(machine)
        # One after the other: on two cores, three that boot at once take longer in all.
        known = "".join(f"[127.0.0.1]:{port} {match[1]}\n" for port in self._ports.values())
        (self._keys / "known_hosts").write_text(known)

    def _boot(self, machine: Machine) -> None:
        begin = time.monotonic()
        key = (self._keys / "id.pub").read_text().strip()
        before = (
            "$bb ip addr add 10.0.2.15/24 dev eth0\n$bb ip link set eth0 up\n"
            "$bb ip route add default via 10.0.2.2\n"
            f"$bb hostname {machine.name}\n"
            # Not this machine's shell, which reads its root's .bashrc for each command that comes by ssh.
            "$bb sed -i 's,^\\(root:.*:\\)[^:]*$,\\1/bin/sh,' /etc/passwd\n"
            "$bb mkdir -p -m 700 /root/.ssh\n$bb chmod 700 /root /root/.ssh\n"
            f"echo {shlex.quote(key)} >/root/.ssh/authorized_keys\n$bb chmod 600 /root/.ssh/authorized_keys\n"
            f"{machine.before}"
        )
        server = [str(self._dropbear / "usr/sbin/dropbear"), "-F", "-E", "-s", "-r", str(self._keys / "host")]
        vm = Vm(
            Config(
                kernel=self._kernel,
                command=["env", f"LD_LIBRARY_PATH={self._dropbear / unpacked.LIBRARIES}", *server],
                iommu=machine.iommu,
                memory="512M",
                devices=[
                    "virtio-rng-pci,id=rng,iommu_platform=on",
                    "virtio-blk-pci,id=disk,iommu_platform=on",
                    "virtio-net-pci,id=nic,netdev=ssh",
                ],
                qemu_arguments=["-netdev", "user,id=ssh,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22"],
                qmp=self._short / machine.name,
                venv=self._venv,
                before=before,
            )
        )
        self._stack.enter_context(vm)
        self._vms[machine.name] = vm
        with vm.monitor() as qemu:
            told = str(qemu.execute("human-monitor-command", {"command-line": "info usernet"}))
        match = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+10\.0\.2\.15\s+22\b", told)
        if match is None:
            raise LabError(f"QEMU forwards no port to {machine.name}:\n{told}")
        self._ports[machine.name] = int(match[1])
        self._await_ssh(machine.name, time.monotonic() + _BOOT_SECONDS)
        with vm.monitor() as qemu:
            addresses = Host.do_addresses(qemu)
        self._addresses[machine.name] = [addresses[name] for name in DEVICES]
        print(f"lab: {machine.name} answers ssh after {time.monotonic() - begin:.0f} s", flush=True)

    def _await_ssh(self, name: str, deadline: float) -> None:
        """Wait for the server's first line. QEMU takes a connection before the guest does, and drops it then."""
        while True:
            self._vms[name].check()
            try:
                with socket.create_connection(("127.0.0.1", self._ports[name]), timeout=5) as line:
                    if line.recv(8).startswith(b"SSH-"):
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise LabError(f"{name} does not answer ssh within {_BOOT_SECONDS:g} s\n{self._vms[name].said()}")
            time.sleep(0.5)

    def play(self, results: Path) -> Times:
        """Run the playbook over the machines; records and page go to ``results``.

        LabError if it fails, or if the kernel of a guest complained.
        """
        begin = time.monotonic()
        inventory = self._keys / "inventory.json"
        inventory.write_text(json.dumps(self._inventory()))
        ssh = {
            "UserKnownHostsFile": self._keys / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "IdentityFile": self._keys / "id",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ControlMaster": "auto",  # on an emulated CPU the keys of a session take a second
            "ControlPersist": "600",
            "ControlPath": self._short / "%C",
        }
        programs = ansible()
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(self._keys),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(self._keys / "ansible"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORKS": str(len(self._machines)),
            "ANSIBLE_STRATEGY": "free",  # a machine that has less to do leaves its core to the others
            "ANSIBLE_TIMEOUT": "120",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_ARGS": " ".join(["-F none", *(f"-o {key}={value}" for key, value in ssh.items())]),
        }
        settings = {"uvirtio_results": str(results), "uvirtio_timeout": 60}
        command = [str(programs / "ansible-playbook"), "-i", str(inventory)]
        command += [str(CHECKOUT / "examples/fleet/fleet.yml"), "-e", json.dumps(settings)]
        sys.stdout.flush()
        child = process.start(command, cwd=self._keys, stdin=subprocess.DEVNULL, env=environment)
        try:
            code = child.wait(_PLAY_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"the playbook did not end within {_PLAY_SECONDS:g} s", 1) from None
        finally:
            process.kill(child)
        complaints = [line for vm in self._vms.values() for line in vm.alarms() + vm.faults()]
        if complaints:
            raise LabError("the kernel of a guest complained:\n" + "\n".join(complaints[:10]), 1)
        if code:
            raise LabError(f"ansible-playbook: exit {code}", 1)
        return Times(self._boots, time.monotonic() - begin)

    def _inventory(self) -> dict[str, object]:
        command = [str(self._venv / "bin/uvirtio")]
        hosts = {
            name: {
                "ansible_host": "127.0.0.1",
                "ansible_port": port,
                "uvirtio_devices": self._addresses[name],
            }
            for name, port in self._ports.items()
        }
        shared = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "uvirtio_command": command,
        }
        local = {
            "ansible_connection": "local",  # which only a localhost that no inventory names has by itself
            "ansible_python_interpreter": "/usr/bin/python3",
            "uvirtio_command": command,
        }
        return {
            "virtio": {"hosts": hosts, "vars": shared},
            "ungrouped": {"hosts": {"localhost": local}},
        }


@contextmanager
def _folder(where: Path, prefix: str) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix=prefix, dir=where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
