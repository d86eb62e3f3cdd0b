"""The statistics of a cgroup (v2): what counts as a limit, and what is said of a directory that is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.unit.drivers.test_balloon_whole import EVENTS, MIB, Machine
from uvirtio.drivers.balloon import Collector
from uvirtio.errors import NotSupported, OperationFailed, PermissionLack, UsageError
from uvirtio.spec.balloon import Stat


class Tree:
    """A machine with 4 GiB, and the root of its cgroup2 file system."""

    def __init__(self, path: Path) -> None:
        machine = path / "machine"
        machine.mkdir()
        self.machine = Machine(machine)
        (self.machine.roots.proc / "vmstat").write_text(EVENTS)
        self.root = path / "cgroup2"
        self.root.mkdir()
        (self.root / "cgroup.controllers").write_text("cpu memory\n")

    def add(
        self,
        name: str,
        *,
        current: int,
        maximum: str = "max",
        high: str = "max",
        stat: str = "",
        oom_kill: int = 0,
    ) -> Path:
        """A cgroup below the root; ``current`` in MiB, the limits as in its files."""
        path = self.root / name
        path.mkdir()
        files = {
            "cgroup.controllers": "memory\n",
            "cgroup.type": "domain\n",
            "memory.current": f"{current * MIB}\n",
            "memory.max": f"{maximum}\n",
            "memory.high": f"{high}\n",
            "memory.stat": f"anon 1\n{stat}",
            "memory.events": f"low 0\noom 9\noom_kill {oom_kill}\n",
        }
        for file, text in files.items():
            (path / file).write_text(text)
        return path

    def memory(self, path: Path) -> tuple[int, int, int]:
        """MEMTOT, MEMFREE and AVAIL, in MiB."""
        found = Collector(self.machine.roots, path)()
        return found[Stat.MEMTOT] // MIB, found[Stat.MEMFREE] // MIB, found[Stat.AVAIL] // MIB


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


MACHINE = (4096, 512, 1024)
SIXTY = str(60 * MIB)
HUNDRED = str(100 * MIB)


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_what_is_counted_for_a_cgroup_is_in_the_unit_that_linux_sends(tree: Tree, page_size: int):
    stat = (
        "file 40960\ninactive_file 4096\npgfault 9\npgmajfault 8\npswpin 2\npswpout 3\npgscan 50\n"
        "pgscan_kswapd 4\npgscan_direct 5\npgsteal 60\npgsteal_kswapd 6\npgsteal_direct 7\n"
    )
    found = Collector(tree.machine.roots, tree.add("a", current=1, stat=stat, oom_kill=2), page_size=page_size)()
    assert found == {
        Stat.SWAP_IN: 2 * page_size,
        Stat.SWAP_OUT: 3 * page_size,
        Stat.MAJFLT: 8,
        Stat.MINFLT: 9,
        Stat.MEMFREE: 512 * MIB,
        Stat.MEMTOT: 4096 * MIB,
        Stat.AVAIL: 1024 * MIB,
        Stat.CACHES: 40960,
        Stat.HTLB_PGALLOC: 6,
        Stat.HTLB_PGFAIL: 7,
        Stat.OOM_KILL: 2,
        Stat.ALLOC_STALL: 9,
        Stat.ASYNC_SCAN: 4 * page_size,
        Stat.DIRECT_SCAN: 5 * page_size,
        Stat.ASYNC_RECLAIM: 6 * page_size,
        Stat.DIRECT_RECLAIM: 7 * page_size,
    }


def test_an_older_kernel_counts_no_swap_for_a_cgroup(tree: Tree):
    found = Collector(tree.machine.roots, tree.add("a", current=1), page_size=4096)()
    assert (found[Stat.SWAP_IN], found[Stat.SWAP_OUT]) == (4096, 8192), "the machine's"


@pytest.mark.parametrize(
    ("maximum", "high", "memory"),
    [
        ("max", "max", MACHINE),
        (HUNDRED, "max", (100, 60, 61)),
        ("max", HUNDRED, (100, 60, 61)),
        (HUNDRED, SIXTY, (60, 20, 21)),
        (SIXTY, HUNDRED, (60, 20, 21)),
        (str(20 * MIB), "max", (20, 0, 0)),
        (str(1 << 50), "max", MACHINE),
    ],
)
def test_the_lower_of_two_limits_holds(tree: Tree, maximum: str, high: str, memory: tuple[int, int, int]):
    path = tree.add("a", current=40, maximum=maximum, high=high, stat=f"inactive_file {MIB}\n")
    assert tree.memory(path) == memory


@pytest.mark.parametrize(
    ("above", "own", "memory"),
    [
        # (memory.max, memory.current) of a/b/c's ancestors and of itself
        ([("max", 90), ("max", 80)], ("max", 10), MACHINE),
        ([(HUNDRED, 90), ("max", 80)], ("max", 10), (100, 10, 10)),
        ([("max", 90), (HUNDRED, 80)], ("max", 10), (100, 20, 20)),
        # The lowest limit is its own, and least is free at an ancestor, whose other children count too.
        ([(HUNDRED, 95), ("max", 80)], (SIXTY, 10), (60, 5, 5)),
        ([(HUNDRED, 20), ("max", 20)], (SIXTY, 10), (60, 50, 50)),
        ([(SIXTY, 20), (HUNDRED, 20)], ("max", 20), (60, 40, 40)),
    ],
)
def test_an_ancestors_limit_holds_for_all_below_it(
    tree: Tree, above: list[tuple[str, int]], own: tuple[str, int], memory: tuple[int, int, int]
):
    names = ["a", "a/b", "a/b/c"]
    for name, (maximum, current) in zip(names, [*above, own], strict=True):
        path = tree.add(name, current=current, maximum=maximum)
    assert tree.memory(path) == memory


def test_a_link_to_a_cgroup_has_the_ancestors_of_the_cgroup(tree: Tree, tmp_path: Path):
    tree.add("a", current=40, maximum=HUNDRED)
    link = tmp_path / "link"
    link.symlink_to(tree.add("a/b", current=1))
    assert tree.memory(link) == (100, 60, 60)


def test_the_roots_memory_is_the_machines(tree: Tree):
    assert Collector(tree.machine.roots, tree.root)() == Collector(tree.machine.roots)()


def test_the_top_of_a_container_has_limits_and_nothing_above(tree: Tree, tmp_path: Path):
    path = tree.add("a", current=40, maximum=HUNDRED)
    path.rename(tmp_path / "top")
    assert tree.memory(tmp_path / "top") == (100, 60, 60)


# --- what is no cgroup of version 2 -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "file", "directory", "version 1", "below a file"])
def test_what_is_no_cgroup_is_an_error_and_not_the_machine(tree: Tree, tmp_path: Path, what: str):
    path = tmp_path / "named"
    if what == "below a file":
        path.write_text("")
        path /= "below"
    elif what == "file":
        path.write_text("")
    elif what != "nothing":
        path.mkdir()
    if what == "version 1":
        for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "cgroup.procs"):
            (path / name).write_text("1\n")
    with pytest.raises(UsageError, match="no cgroup") as caught:
        Collector(tree.machine.roots, path)()
    assert caught.value.seen and "cgroup2" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("having", "remedy"),
    [
        (["", "a", "a/b"], "as root: echo +memory > {0}/a/b/cgroup.subtree_control"),
        (
            ["", "a"],
            "as root: echo +memory > {0}/a/cgroup.subtree_control"
            " && echo +memory > {0}/a/b/cgroup.subtree_control",
        ),
        ([], "version 1 has the memory controller here, or none has: boot with cgroup_no_v1=memory"),
    ],
)
def test_a_cgroup_without_the_memory_controller_is_told_what_is_missing(
    tree: Tree, having: list[str], remedy: str
):
    for name in ("a", "a/b", "a/b/c"):
        path = tree.add(name, current=1)
    for name in ("memory.stat", "memory.events", "memory.max", "memory.high", "memory.current"):
        (path / name).unlink()
    for name in ("", "a", "a/b", "a/b/c"):
        (tree.root / name / "cgroup.controllers").write_text("cpu memory pids" if name in having else "cpu pids")
    with pytest.raises(NotSupported, match="does not count memory") as caught:
        Collector(tree.machine.roots, path)()
    assert caught.value.remedy == remedy.format(tree.root)


@pytest.mark.parametrize("name", ["memory.stat", "memory.events", "memory.max", "memory.high", "memory.current"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENODEV, errno.EIO])
def test_a_file_that_cannot_be_read_is_an_error(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, name: str, number: int
):
    path = tree.add("a", current=1, maximum=HUNDRED)
    real = Path.read_text

    def read_text(self: Path, *args: str, **kwargs: str) -> str:
        if self == path / name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **kwargs)

    opened = os.open

    def unwaiting(file: str, *args: int, **kwargs: int) -> int:
        if file == str(path / name):
            raise OSError(number, os.strerror(number), file)
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "open", unwaiting)
    kind = PermissionLack if number == errno.EACCES else OperationFailed
    with pytest.raises(kind, match=name) as caught:
        Collector(tree.machine.roots, path)()
    assert caught.value.seen == os.strerror(number)


@pytest.mark.parametrize("name", ["memory.max", "memory.high", "memory.current"])
def test_a_limit_that_is_no_number_is_an_error(tree: Tree, name: str):
    path = tree.add("a", current=1, maximum=HUNDRED)
    (path / name).write_text("many\n")
    with pytest.raises(OperationFailed, match=name):
        Collector(tree.machine.roots, path)()


def test_a_limit_without_what_is_used_of_it_is_an_error(tree: Tree):
    path = tree.add("a", current=1, maximum=HUNDRED)
    (path / "memory.current").unlink()
    with pytest.raises(OperationFailed, match=r"memory\.current") as caught:
        Collector(tree.machine.roots, path)()
    assert caught.value.seen == os.strerror(errno.ENOENT)


def test_tags_that_are_newer_than_the_standard_can_be_left_out(tree) -> None:
    whole = Collector(tree.machine.roots)()
    standard = Collector(tree.machine.roots, standard=True)()
    assert max(whole) > Stat.HTLB_PGFAIL
    assert standard == {tag: value for tag, value in whole.items() if tag <= Stat.HTLB_PGFAIL}
