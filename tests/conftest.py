"""What holds for every floor: no real device within reach, nothing left running, no deadlines on examples."""

from __future__ import annotations

import gc
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# In the environment of every process this session starts, so that its QEMUs are found even as orphans.
_MARK = "UVIRTIO_TEST_SESSION"
_GUARDIAN = "guardian_process.py"
_LAST_SECONDS = 15.0
_CHECKOUT = Path(__file__).resolve().parents[1]

_EXPOSED = """\
These tests run as root here, where the real /sys and its devices can be reached. Run them with

    tools/test PATH...

which gives them a private, empty /sys; or as an ordinary user."""


def in_lab() -> bool:
    """Whether this is the lab VM: its init says so, and so does the kernel's command line."""
    if os.environ.get("UVIRTIO_LAB") != "1":
        return False
    return "uvirtio.lab=1" in Path("/proc/cmdline").read_text().split()


def pytest_addoption(parser: pytest.Parser) -> None:
    ours = parser.getgroup("uvirtio")
    ours.addoption(
        "--spec",
        action="append",
        default=[],
        metavar="ID",
        help="only tests that prove this requirement of virtio 1.4 (pytest.mark.spec); may be given again",
    )
    ours.addoption("--sets", type=int, metavar="N", help="each test with the first N sets of its parameters alone")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the options leave out."""
    if os.geteuid() == 0:
        for item in items:
            if item.get_closest_marker("unprivileged"):
                item.add_marker(pytest.mark.skip(reason="root sees everything"))
    wanted = set(config.getoption("spec"))
    if wanted:
        proves = {item: {name for mark in item.iter_markers("spec") for name in mark.args} for item in items}
        _keep(config, items, [item for item in items if wanted & proves[item]])
    if sets := config.getoption("sets"):
        of_each: dict[str, list[pytest.Item]] = {}
        for item in sorted(items, key=_place):
            of_each.setdefault(item.nodeid.partition("[")[0], []).append(item)
        first = {item for sorted_items in of_each.values() for item in sorted_items[:sets]}
        _keep(config, items, [item for item in items if item in first])


def _place(item: pytest.Item) -> tuple[int, ...]:
    """Where a test's parameters stand in their lists, in whatever order the tests are run."""
    callspec = getattr(item, "callspec", None)
    return tuple(callspec.indices.values()) if callspec is not None else ()


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    if gone := set(items) - set(kept):
        config.hook.pytest_deselected(items=list(gone))
        items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    if in_lab():
        return  # no property tests there, and importing hypothesis in an emulated CPU takes seconds
    import hypothesis

    # A database needs a place to write, and is of no use where that place is gone after the run.
    keep = "CI" not in os.environ and os.access(_CHECKOUT, os.W_OK)
    settings = hypothesis.settings(
        deadline=None,  # this machine may be busy; a slow example is no failing one
        print_blob=True,
        # tools/test --quick looks at fewer examples; those that a test asks for itself stay.
        max_examples=int(os.environ.get("UVIRTIO_EXAMPLES", hypothesis.settings.default.max_examples)),
        database=hypothesis.settings.default.database if keep else None,
    )
    hypothesis.settings.register_profile("uvirtio", settings)
    hypothesis.settings.load_profile("uvirtio")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.option.collectonly or in_lab():
        return
    if os.geteuid() == 0 and Path("/sys/bus/pci").exists():
        pytest.exit(_EXPOSED, returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is loaded by now out of collections: it stays to the end, and is far more than a test makes.

    Or each full collection goes through ten thousand tests and their modules, and copies them in a forked child.
    """
    if not session.config.option.collectonly:
        gc.collect()
        gc.freeze()


@pytest.fixture
def signals_as_in_a_terminal() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP have their default effect, also where this run was started to ignore them.

    nohup and a script's ``&`` do that, and what is ignored stays ignored by the commands that a test runs in this
    process. For such tests alone: the run as a whole goes on ignoring them.
    """
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ignored = [number for number in defaults if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, defaults[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """At the end no QEMU and no guardian that this session started is still there."""
    mark = f"{_MARK}={uuid.uuid4()}"
    name, value = mark.split("=")
    os.environ[name] = value
    yield
    del os.environ[name]
    deadline = time.monotonic() + _LAST_SECONDS
    while (left := _marked(mark.encode())) and time.monotonic() < deadline:
        time.sleep(0.1)  # a guardian ends by itself, a moment after its driver
    assert not left, f"processes of this session still run: {left}"


def _marked(mark: bytes) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark not in (entry / "environ").read_bytes():
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (entry / "comm").read_text().startswith("qemu") or _GUARDIAN in command:
                found.append(f"{entry.name}: {command[:200]}")
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found
