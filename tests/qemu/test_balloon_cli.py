"""balloon stats, report, and the floor, as commands on QEMU's balloon."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.test_cli import Command, Witness, start, uvirtio, witness  # noqa: F401  # fixtures, by their names

Runs = Callable[..., tuple[int, str, str]]
REPORTS = "qemu:virtio-balloon-pci,free-page-reporting=on"


def test_stats_have_both_names(uvirtio: Runs) -> None:  # noqa: F811
    code, out, err = uvirtio("balloon", "stats", "qemu:virtio-balloon-pci")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["available", "MEMTOT"] in [row[:2] for row in rows]
    assert ["usable", "AVAIL"] in [row[:2] for row in rows]
    assert "guest-stats-polling-interval" in out.splitlines()[-2]
    assert "virsh dommemstat DOMAIN --period" in out.splitlines()[-1]
    code, out, _ = uvirtio("balloon", "stats", "qemu:virtio-balloon-pci", "--json", "--watch", "--for", "1.2")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 3
    for line in lines:
        assert line["requests"] == 0
        assert "guest-stats-polling-interval" in line["remedy"]
        assert {"tag": 5, "name": "MEMTOT", "virsh": "available", "unit": "bytes"}.items() <= next(
            entry for entry in line["statistics"] if entry["tag"] == 5
        ).items()


def test_a_host_that_asks_needs_no_remedy_and_may_want_fewer_tags(
    start: Callable[..., Command],  # noqa: F811
    witness: Callable[[], Witness],  # noqa: F811
    tmp_path: Path,
) -> None:
    address = f"qemu:q35,qmp={tmp_path / 'qmp'}/virtio-balloon-pci,id=b"
    command = start("balloon", "stats", address, "--watch", "--json", "--tags", "standard")
    told = json.loads(command.line())
    assert told["requests"] == 0
    balloon = {"path": "/machine/peripheral/b"}
    qemu = witness()
    qemu.execute("qom-set", **balloon, property="guest-stats-polling-interval", value=1)
    while not told["requests"]:  # QEMU asks within a second; without it start() ends the command
        told = json.loads(command.line())
    assert told["remedy"] is None
    assert max(entry["tag"] for entry in told["statistics"]) <= 9
    assert qemu.execute("qom-get", **balloon, property="guest-stats")["stats"]["stat-total-memory"] > 0


@pytest.mark.parametrize("words", [("status",), ("inflate", "4K", "--hold", "0"), ("follow", "--for", "0.1")])
def test_every_command_that_sends_statistics_takes_tags(uvirtio: Runs, words: tuple[str, ...]) -> None:  # noqa: F811
    verb, *rest = words
    code, _, err = uvirtio("balloon", verb, "qemu:virtio-balloon-pci", *rest, "--tags", "standard")
    assert (code, err) == (0, "")


def test_a_cgroup_that_is_none_is_wrong_use(uvirtio: Runs, tmp_path: Path) -> None:  # noqa: F811
    for directory in (tmp_path, tmp_path / "nothing"):
        code, out, err = uvirtio("balloon", "stats", "qemu:virtio-balloon-pci", "--cgroup", str(directory))
        assert (code, out) == (2, "") and "UV-USAGE" in err and str(directory) in err


def test_a_cgroups_memory_is_what_the_host_is_told(uvirtio: Runs, tmp_path: Path) -> None:  # noqa: F811
    files = {"controllers": "memory", "type": "domain"}
    memory = {
        "max": 64 << 20,
        "high": "max",
        "current": 24 << 20,
        "stat": "pgscan_kswapd 3",
        "events": "oom_kill 1",
    }
    for name, text in {f"cgroup.{name}": text for name, text in files.items()}.items():
        (tmp_path / name).write_text(f"{text}\n")
    for name, value in memory.items():
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    code, out, _ = uvirtio("balloon", "stats", "qemu:virtio-balloon-pci", "--cgroup", str(tmp_path), "--json")
    told = {entry["name"]: (entry["value"], entry["unit"]) for entry in json.loads(out)["statistics"]}
    assert code == 0
    assert (told["MEMTOT"], told["OOM_KILL"]) == ((64 << 20, "bytes"), (1, "events"))
    assert told["MEMFREE"][0] <= 40 << 20
    assert told["ASYNC_SCAN"] == (3 * os.sysconf("SC_PAGE_SIZE"), "bytes")


def test_report_tells_how_much(uvirtio: Runs) -> None:  # noqa: F811
    code, out, err = uvirtio("balloon", "report", REPORTS, "8M", "--hold", "0.1", "--json")
    assert (code, err) == (0, "")
    held, left = (json.loads(line) for line in out.splitlines())
    assert (held["event"], held["reported_bytes"]) == ("holding", 8 << 20)
    assert (left["event"], left["hinted_bytes"]) == ("leaving", 0)


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["report", "qemu:virtio-balloon-pci", "8M"], 4, "PAGE_REPORTING"),
        (["inflate", "qemu:virtio-balloon-pci", "8M", "--floor", "1024T"], 3, "free-memory"),
        (["inflate", "qemu:virtio-balloon-pci", "10G"], 2, "the qemu: guest has only 512 MiB"),
        (["inflate", "qemu:virtio-balloon-pci", "8M", "--force", "all"], 2, "free-memory"),
        (["inflate", "qemu:virtio-balloon-pci", "8M", "--floor", "much"], 2, "UV-USAGE-SIZE"),
    ],
)
def test_wrong_use(uvirtio: Runs, argv: list[str], code: int, word: str) -> None:  # noqa: F811
    found, out, err = uvirtio("balloon", *argv)
    assert (found, out) == (code, "")
    assert word in err


def test_force_names_the_rule(uvirtio: Runs) -> None:  # noqa: F811
    argv = [
        "inflate",
        "qemu:virtio-balloon-pci",
        "8M",
        "--floor",
        "1024T",
        "--force",
        "free-memory",
        "--hold",
        "0",
    ]
    code, _, err = uvirtio("balloon", *argv)
    assert (code, err) == (0, "")


def test_follow_says_why_it_does_not_grow(uvirtio: Runs) -> None:  # noqa: F811
    argv = ["follow", "qemu:virtio-balloon-pci", "--floor", "1024T", "--for", "0.3", "--json"]
    code, out, _ = uvirtio("balloon", *argv)
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["following", "leaving", "done"]
