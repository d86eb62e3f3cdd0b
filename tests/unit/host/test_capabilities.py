"""Capabilities are given up for good: real child processes, and what /proc/PID/status says of them."""

from __future__ import annotations

import ast
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.support.c_program import printed
from tests.unit.backends.test_vfio_memory import RANGES
from uvirtio.backends.vfio_memory import VfioDmaSpace
from uvirtio.cli import main
from uvirtio.cli.command import Command
from uvirtio.device import drop_capabilities
from uvirtio.errors import Closed, NotSupported, UsageError
from uvirtio.host import capabilities, process
from uvirtio.host.roots import Roots
from uvirtio.memory.iova import IovaAllocator

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not process.capable(process.CAP_SYS_ADMIN, Roots()), reason="has no capability to give up"
)


def sets(pid: int | str) -> dict[str, str]:
    """The capabilities of a process as the kernel shows them, and no_new_privs."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s+(\w+)$", text, re.MULTILINE))


def word(*names: str) -> str:
    return f"{sum(1 << capabilities.number(name) for name in names):016x}"


@contextmanager
def child(program: str, *argv: str) -> Iterator[Any]:
    """A Python program that prints a line when it is where it is to be looked at; yields it and the line."""
    command = [sys.executable, "-c", program, *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        try:
            yield made, made.stdout.readline()
        finally:
            made.kill()


# --- the kernel's own -----------------------------------------------------------------------------------------


def test_the_names_are_the_kernels(tmp_path: Path) -> None:
    names = [name for name in capabilities.NAMES if name != "CHECKPOINT_RESTORE"]
    lines = [f'printf("{name} %d\\n", CAP_{name});' for name in names]
    numbers = printed(tmp_path, ["capability.h"], [*lines, 'printf("v %u\\n", _LINUX_CAPABILITY_VERSION_3);'])
    assert numbers.pop("v") == [capabilities._VERSION]
    assert numbers == {name: [capabilities.NAMES.index(name)] for name in names}
    for name in ("CAP_SYS_ADMIN", "sys_admin"):
        assert capabilities.number(name) == process.CAP_SYS_ADMIN
    assert capabilities.name(63) == "CAP_63" and capabilities.name(14) == "CAP_IPC_LOCK"
    with pytest.raises(UsageError):
        capabilities.number("CAP_NONE")


DROPPED = """
import subprocess, sys
from uvirtio.host import capabilities
given = capabilities.limit_to(sys.argv[1:])
print(len(given), len(capabilities.held()), capabilities.limit_to(sys.argv[1:]), flush=True)
sys.stdin.readline()
subprocess.run(["grep", "^Cap", "/proc/self/status"], check=True)
"""


@as_root
@pytest.mark.parametrize("keep", [(), ("CAP_IPC_LOCK", "CAP_BLOCK_SUSPEND")])
def test_what_is_given_up_is_gone_for_good(keep: tuple[str, ...]) -> None:
    left, before = word(*keep), sets("self")
    with child(DROPPED, *keep) as (made, said):
        given, has, again = said.split()
        assert (int(has), again) == (len(keep), "frozenset()")
        assert int(given) == int(before["CapPrm"], 16).bit_count() - len(keep)
        seen = sets(made.pid)
        assert seen["NoNewPrivs"] == "1"
        assert (seen["CapEff"], seen["CapPrm"], seen["CapBnd"]) == (left, left, left)
        assert (seen["CapInh"], seen["CapAmb"]) == (word(), word())
        out, _ = made.communicate("\n", timeout=30)
        exec_ = dict(line.split(":\t") for line in out.splitlines())  # of a program that user 0 starts
        assert exec_["CapEff"] == exec_["CapPrm"] == left
        assert made.returncode == 0
    assert sets("self") == before


@as_root
def test_a_fork_gives_up_its_bounding_set_whatever_is_missing_from_it() -> None:
    """To the last one that the kernel has; what is missing already is stepped over."""
    near, far = os.pipe()
    if (made := os.fork()) == 0:
        try:
            capabilities.limit_to([*capabilities.NAMES[1:]])
            capabilities.limit_to(["CAP_IPC_LOCK"])
            os.write(far, sets("self")["CapBnd"].encode())
        finally:
            os._exit(0)
    os.close(far)
    with os.fdopen(near) as pipe:
        assert pipe.read() == word("CAP_IPC_LOCK")
    os.waitpid(made, 0)


def test_who_has_none_gives_none_up() -> None:
    program = f"import os\nif os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n{DROPPED}"
    with child(program, "CAP_SYS_ADMIN") as (made, said):
        assert said == "0 0 frozenset()\n"
        assert sets(made.pid)["CapEff"] == word() and sets(made.pid)["NoNewPrivs"] == "1"


def test_another_thread_would_keep_its_own() -> None:
    before, stop = sets("self"), threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(NotSupported, match="one thread"):
            capabilities.limit_to(())
    finally:
        stop.set()
        thread.join()
    assert sets("self") == before


FILTERED = """
import ctypes, os, struct, sys
from uvirtio.errors import UvirtioError
from uvirtio.host import capabilities, process
libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[2] == "none":
    capabilities.limit_to(())
numbers = {"x86_64": {"capset": 126, "prctl": 157}, "aarch64": {"capset": 91, "prctl": 167}}[os.uname().machine]
refused = [numbers[name] for name in sys.argv[1].split()]
jumps = [(0x15, len(refused) - at - 1, int(at == len(refused) - 1), one) for at, one in enumerate(refused)]
rows = [(0x20, 0, 0, 0), *jumps, (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]  # EPERM for these; others are allowed
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code)))
assert libc.prctl(22, 2, program, 0, 0) == 0, "seccomp"
"""
"""Has a filter of system calls refuse some of them: PR_SET_SECCOMP, <linux/filter.h>."""

LIMITED = f"""{FILTERED}
try:
    capabilities.limit_to(["CAP_IPC_LOCK"])
    print("given up")
except UvirtioError as error:
    print(error.code, error.seen, "|", error.remedy)
"""


@as_root
@pytest.mark.parametrize(
    ("refused", "said", "held"),
    [
        ("capset", "UV-OPERATION capset(2): Operation not permitted; still held: CAP_", None),
        (
            "prctl",
            "UV-OPERATION PR_SET_NO_NEW_PRIVS: Operation not permitted; PR_CAPBSET_DROP: Operation not permitted;"
            " still held: no capability | allow capset and prctl ",
            word("CAP_IPC_LOCK"),
        ),
    ],
)
def test_a_filter_that_refuses_is_told_with_what_is_still_held(refused: str, said: str, held: str | None) -> None:
    before = sets("self")
    with child(f"{LIMITED}print(flush=True)\ninput()", refused, "") as (made, seen):
        assert seen.startswith(said)
        assert made.stdout.readline() == "\n"  # it has gone on
        assert sets(made.pid)["CapPrm"] == (held or before["CapPrm"])


def test_who_has_nothing_to_give_up_asks_no_filter() -> None:
    with child(LIMITED, "capset prctl", "none") as (_, said):
        assert said == "given up\n"


FRAMES = """
import ctypes, mmap, sys
from uvirtio.errors import PagemapHidden
from uvirtio.host import capabilities, pagemap
from uvirtio.host.roots import Roots
page = mmap.mmap(-1, 4096)
page[0] = 1
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
held, late = pagemap.Pagemap(Roots()), pagemap.Pagemap(Roots())
held.hold()
capabilities.limit_to(())
found = [0]
try:
    found = held.pfns(at, 4096)
    late.pfns(at, 4096)
    print("seen")
except PagemapHidden:
    print(found[0])
"""


@as_root
def test_a_pagemap_that_was_opened_before_still_shows_frames() -> None:
    with child(FRAMES) as (_, said):
        assert int(said) > 0


# --- of a device ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "needs"), [(1 << 20, {"CAP_IPC_LOCK"}), (resource.RLIM_INFINITY, set())])
def test_vfio_needs_a_right_for_what_is_beyond_the_limit(limit: int, needs: set[str], monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    space = VfioDmaSpace(object(), IovaAllocator(RANGES), translated=True)  # type: ignore[arg-type]
    assert set(space.rights()) == needs and space._pagemap._fd >= 0
    space.close()


def test_a_device_that_is_not_started_gives_nothing_up() -> None:
    before = sets("self")
    with uvirtio.open("scripted:rng") as device, pytest.raises(Closed):
        drop_capabilities(device)
    assert sets("self") == before


LIBRARY = """
import uvirtio
from uvirtio.device import drop_capabilities
from uvirtio.interfaces.memory import KeepsRights
with uvirtio.open("scripted:balloon") as device, uvirtio.Balloon(device) as balloon:
    type(device.dma).rights = lambda self: {"CAP_IPC_LOCK": "memory is pinned"}
    assert isinstance(device.dma, KeepsRights)
    rights = drop_capabilities(device, keep={"CAP_NET_RAW": "of ours"})
    balloon.inflate(256)
    print(balloon.held, *rights.kept, "CAP_SYS_ADMIN" in rights.dropped, rights, flush=True)
    input()
"""


@as_root
def test_a_program_gives_up_what_its_device_does_not_need() -> None:
    with child(LIBRARY) as (made, said):
        assert said.startswith("256 CAP_NET_RAW CAP_IPC_LOCK True ")
        assert said.endswith("kept CAP_IPC_LOCK: memory is pinned; CAP_NET_RAW: of ours\n")
        assert sets(made.pid)["CapEff"] == word("CAP_IPC_LOCK", "CAP_NET_RAW")


# --- of a command ---------------------------------------------------------------------------------------------

LONG = {
    "balloon inflate": (["scripted:balloon", "1M", "--hold", "0.01"], True),
    "balloon follow": (["scripted:balloon", "--for", "0.01"], True),
    "input events": (["scripted:input", "--for", "0.01"], False),
    "input record": (["scripted:input", "--yes", "--for", "0.01"], False),
    "net receive": (["scripted:net", "--for", "0.01"], False),
    "net capture": (["scripted:net", "-o", "OUT", "--for", "0.01"], False),
    "net bridge": (["scripted:net", "--to", "fd:FD", "--for", "0.01"], False),
    "mem follow": (["scripted:mem", "--root", "ROOT", "--for", "0.01"], False),
}
"""Commands that run for long, and whether they pin memory on their way; the bridge of input is in tests/vm."""

SHORT = {"top", "ping"}
"""Commands whose output is lines, and that give up nothing: a screen has threads, and pings are counted."""


@pytest.mark.parametrize("command", LONG)
def test_a_command_that_runs_for_long_gives_them_up(command: str, tmp_path: Path, monkeypatch) -> None:
    """Once, when its driver is started and before it says that it is at work."""
    given, pins = LONG[command]
    asked: list[tuple[bool, str]] = []
    real = Command.drop_rights

    def drop(cmd: Command, device: Any, *, pins: bool = False, keep: Any = None) -> str:
        told = real(cmd, device, pins=pins, keep=keep)
        asked.append((pins, device.state))
        assert "of the program that runs" in told
        return told

    monkeypatch.setattr(Command, "drop_rights", drop)
    before = sets("self")
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other:
        places = {"OUT": str(tmp_path / "out"), "ROOT": str(tmp_path), "fd:FD": f"fd:{ours.fileno()}"}
        assert main([*command.split(), *(places.get(one, one) for one in given)]) == 0
    assert asked == [(pins, "DRIVER_OK")]
    assert sets("self") == before, "a program's own main() keeps what the program has"


@pytest.mark.parametrize("module", ["balloon", "input", "mem", "net", "top"])
def test_each_command_that_streams_gives_them_up(module: str) -> None:
    source = (Path(uvirtio.__file__).parent / "cli/verbs" / f"{module}.py").read_text()
    streaming = set(re.findall(r"streams=True\)\((\w+)\)", source)) - SHORT
    functions = {
        node.name: ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }
    functions["replay"] = functions.get("_replay", "")
    assert streaming or module == "top"
    assert {name for name in streaming if "cmd.drop_rights(" not in functions[name]} == set()


@as_root
def test_the_process_of_a_command_has_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(30)
        words = [sys.executable, "-m", "uvirtio", "balloon", "follow", "scripted:balloon", "-v"]
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ) as made:
            try:
                ready = heard.recv(4096).decode()
                seen = sets(made.pid)
                made.terminate()
                _, told = made.communicate(timeout=30)
            finally:
                made.kill()
        assert made.returncode == 143
        assert (seen["CapEff"], seen["CapBnd"], seen["NoNewPrivs"]) == (word(), word(), "1")
        (said,) = re.findall(r"^trace: (\d+ capabilities given up, .*)$", told.decode(), re.MULTILINE)
        assert said.endswith("none kept") and said in ready


@as_root
@pytest.mark.parametrize("refused", ["capset", "capset prctl"])
def test_a_command_that_may_not_give_them_up_warns_and_works(refused: str) -> None:
    words = ["balloon", "inflate", "scripted:balloon", "1M", "--hold", "0.01"]
    program = f"{FILTERED}\nfrom uvirtio.cli import main\nsys.argv[1:] = {words}\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, refused, ""], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (warning,) = re.findall(r"^uvirtio: warning: (.*)$", done.stderr, re.MULTILINE)
    assert warning.startswith("not all rights were given up: ") and "capset(2): Operation not permitted" in warning
    assert "CAP_SYS_ADMIN" in warning and "(systemd: SystemCallFilter=capset prctl)" in warning


def test_a_simulated_device_with_threads_of_its_own_keeps_them(monkeypatch, capsys) -> None:
    from uvirtio.host import sysfs

    monkeypatch.setattr(sysfs, "listed", lambda _: ["1", "2"])
    cmd = Command("balloon follow", verbose=True)
    cmd.invocation = type(cmd.invocation)(own_process=True)
    with uvirtio.open("scripted:rng") as device, uvirtio.Rng(device):
        assert cmd.drop_rights(device) == "capabilities kept: 2 threads, of which the others would keep theirs"
    assert "trace: capabilities kept: 2 threads" in capsys.readouterr().err
