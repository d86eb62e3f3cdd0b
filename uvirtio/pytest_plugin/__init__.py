"""The pytest plugin: devices, machines and scripted devices as fixtures, closed at the end of each test.

    def test_rng(virtio_device):
        with uvirtio.Rng(virtio_device("virtio-rng-pci")) as rng:
            assert len(rng.read(16)) == 16

pytest loads it where uvirtio is installed; ``-p no:uvirtio`` leaves it out. Of a test that fails, the trace of all
registers, a dump and the state of each device are kept (``--uvirtio-artifacts``). See docs/testing.md.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, Unpack

import pytest

from uvirtio.errors import EnvironmentLack, Misuse, QemuMissing, UvirtioError

if TYPE_CHECKING:
    from uvirtio.device import Device, OpenKeywords, OpenOptions
    from uvirtio.interfaces.backend import Backend
    from uvirtio.pytest_plugin.bench import Bench
    from uvirtio.pytest_plugin.lab import LabVm
    from uvirtio.qemu import Machine
    from uvirtio.scripted import Model, ScriptedCore

T = TypeVar("T")

_BENCH: Final = pytest.StashKey["Bench"]()
_FAILED: Final = pytest.StashKey[bool]()
_FOLDER: Final = pytest.StashKey[Path]()
_NAME_MAX: Final = 120  # of a folder for artefacts; file systems take 255 bytes


class OpenDevice(Protocol):
    """What ``virtio_device`` is."""

    def __call__(
        self, address: str | Backend, *, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
    ) -> Device:
        """Open a device; see the fixture."""


class StartMachine(Protocol):
    """What ``virtio_machine`` is."""

    def __call__(self, *devices: str, machine: str = "q35", **keywords: Any) -> Machine:
        """Start a QEMU; see the fixture."""


class MakeScripted(Protocol):
    """What ``scripted_device`` is."""

    def __call__(self, what: str | Model, *, check: bool = True, **keywords: Any) -> ScriptedCore:
        """Make a scripted device; see the fixture."""


class OpenHostile(Protocol):
    """What ``hostile_device`` is."""

    def __call__(self, case: str, **keywords: Unpack[OpenKeywords]) -> Device:
        """Open a hostile device; see the fixture."""


class BootVm(Protocol):
    """What ``virtio_vm`` is."""

    def __call__(self, *devices: str, **keywords: Any) -> LabVm:
        """Boot a lab VM; see the fixture."""


# --- options and marks ------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("uvirtio", "virtio devices (uvirtio)")
    group.addoption(
        "--uvirtio-artifacts",
        metavar="DIR",
        default=None,
        help="where traces and dumps of failed tests are kept; default: below pytest's temporary directory",
    )
    group.addoption(
        "--uvirtio-require-qemu",
        action="store_true",
        help="a test whose QEMU (or lab, for virtio_vm) is not there fails instead of being skipped",
    )
    group.addoption(
        "--uvirtio-device",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="test whether this device does what virtio 1.4 demands of devices (uvirtio conform); may be repeated",
    )
    where = "a checkout of uvirtio, whose lab the fixture virtio_vm boots; default: the one that uvirtio is in"
    group.addoption("--uvirtio-lab", metavar="DIR", default=None, help=where)
    parser.addini("uvirtio_lab", f"{where}; a relative path begins at the root directory", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Add the marks."""
    for line in (
        "qemu_since(major, minor, machine='q35'): skip the test where the machine's QEMU is older, or missing",
        "needs_qemu(machine='q35'): skip the test where the machine's QEMU is not installed",
    ):
        config.addinivalue_line("markers", line)
    if config.getoption("uvirtio_device") and config.args_source is pytest.Config.ArgsSource.INVOCATION_DIR:
        config.args = []  # only what was asked for: no path was


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the rows of the devices that the command line names."""
    addresses: list[str] = session.config.getoption("uvirtio_device")
    if addresses:
        from uvirtio.pytest_plugin import rows

        for address in dict.fromkeys(addresses):
            items.extend(rows.of(session, address))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the marks leave out, and say what is missing."""
    for mark in item.iter_markers("needs_qemu"):
        _version(item.config, *_bound(mark, _needs_qemu))
    for mark in item.iter_markers("qemu_since"):
        wanted, machine = _bound(mark, _qemu_since)
        program, version = _version(item.config, machine)
        if version[: len(wanted)] < wanted:
            seen = ".".join(map(str, version)) or "of an unknown version"
            pytest.skip(f"needs QEMU {'.'.join(map(str, wanted))} or later: {program} is {seen}")


def _needs_qemu(machine: str = "q35") -> tuple[str]:
    return (machine,)


def _qemu_since(major: int, minor: int = 0, *, machine: str = "q35") -> tuple[tuple[int, int], str]:
    if not isinstance(major, int) or not isinstance(minor, int):
        pytest.fail(f"the mark qemu_since takes two integers, not ({major!r}, {minor!r})", pytrace=False)
    return (major, minor), machine


def _bound(mark: pytest.Mark, function: Callable[..., T]) -> T:
    try:
        return function(*mark.args, **mark.kwargs)
    except TypeError as error:
        return pytest.fail(f"the mark {mark.name} has other arguments: {error}", pytrace=False)


def _version(config: pytest.Config, machine: str) -> tuple[str, tuple[int, ...]]:
    """The path of a machine's QEMU and its version; skips the test where there is none."""
    from uvirtio.backends.qemu.models import MODELS
    from uvirtio.backends.qemu.process import find_binary

    if machine not in MODELS:
        pytest.fail(f"there is no machine {machine!r}; known: {', '.join(MODELS)}", pytrace=False)
    program = _or_skip(config, lambda: find_binary(None, MODELS[machine]))
    return program, _version_of(program)


@functools.cache
def _version_of(program: str) -> tuple[int, ...]:
    from uvirtio.backends.qemu.process import version_of

    return version_of(program)


def _or_skip(config: pytest.Config, make: Callable[[], T], lack: type[EnvironmentLack] = QemuMissing) -> T:
    """What ``make`` returns; the test is skipped where exactly ``lack`` is raised, unless QEMU is required."""
    try:
        return make()
    except EnvironmentLack as error:
        if type(error) is not lack or config.getoption("uvirtio_require_qemu"):
            raise
        missing = f"{error} ({error.remedy})"
    return pytest.skip(missing)


# --- what is kept of a failed test ------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the trace and the dump of a test that failed, while its devices are still as the failure left them."""
    report = yield
    if report.failed and _BENCH in item.stash:
        item.stash[_FAILED] = True
        if item.stash[_BENCH].used:
            item.stash[_BENCH].write(item.stash[_FOLDER])
            report.sections.append(("uvirtio", f"trace, dump and state of the devices: {item.stash[_FOLDER]}"))
    return report


def _folder_name(nodeid: str) -> str:
    """A name for the artefacts of a test, its own also where its parameters hold what no file name may."""
    plain = nodeid.replace("::", "-").replace("/", "-")
    name = re.sub(r"[^\w.,=+\[\]-]", "_", plain, flags=re.ASCII)[:_NAME_MAX]
    if name == plain and name.strip("."):
        return name
    return f"{name}-{hashlib.sha256(nodeid.encode(errors='backslashreplace')).hexdigest()[:8]}"


@pytest.fixture(scope="session")
def _uvirtio_artifacts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("uvirtio_artifacts")
    if given is None:
        return tmp_path_factory.mktemp("uvirtio-artifacts")
    return Path(request.config.invocation_params.dir, given)


@pytest.fixture
def _uvirtio_bench(request: pytest.FixtureRequest, _uvirtio_artifacts: Path) -> Iterator[Bench]:
    from uvirtio.pytest_plugin.bench import Bench, forget

    node = request.node
    node.stash[_FOLDER] = folder = _uvirtio_artifacts / _folder_name(node.nodeid)
    node.stash[_BENCH] = bench = Bench()
    forget(folder)
    yield bench
    try:
        bench.close()
    except (UvirtioError, AssertionError) as error:
        bench.note(f"at the end of the test: {error}")
        if not node.stash.get(_FAILED, False):
            raise  # otherwise the test has said what is wrong
    finally:
        if node.stash.get(_FAILED, False) and bench.used:
            bench.write(folder)


def _whole(address: str) -> str:
    """An address, also of QEMU's -device argument alone. ``virtio-mmio.3`` is a name of the kernel's."""
    if not address.startswith("virtio-") or address.startswith("virtio-mmio."):
        return address
    return f"qemu:microvm/{address}" if address.partition(",")[0].endswith("-device") else f"qemu:{address}"


# --- fixtures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def virtio_device(request: pytest.FixtureRequest, _uvirtio_bench: Bench) -> OpenDevice:
    """virtio_device(ADDRESS, **options): an open uvirtio.Device, closed at the end of the test.

    ADDRESS is one that ``uvirtio.open`` takes, a scripted device or another open function, or QEMU's -device
    argument alone: ``virtio_device("virtio-rng-pci,packed=on", timeout=1)``.
    """

    def open_device(
        address: str | Backend, *, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
    ) -> Device:
        if isinstance(address, str):
            address = _whole(address)
        return _or_skip(request.config, lambda: _uvirtio_bench.open(address, options, keywords))

    return open_device


@pytest.fixture
def virtio_machine(request: pytest.FixtureRequest, _uvirtio_bench: Bench) -> StartMachine:
    """virtio_machine(*DEVICES, machine="q35", **options): a running uvirtio.qemu.Machine, ended after the test.

    DEVICES are QEMU's -device arguments, the options those of ``Machine``. ``machine.open(0)`` opens the first
    device, ``machine.qmp(COMMAND, **arguments)`` asks QEMU.
    """

    def start_machine(*devices: str, machine: str = "q35", **keywords: Any) -> Machine:
        return _or_skip(request.config, lambda: _uvirtio_bench.machine(devices, machine, keywords))

    return start_machine


@pytest.fixture
def virtio_vm(request: pytest.FixtureRequest, _uvirtio_bench: Bench, tmp_path: Path) -> BootVm:
    """virtio_vm(*DEVICES, kernel="6.1", **options): a booted VM with a stock kernel, ended after the test.

    DEVICES are QEMU's -device arguments. ``vm.run(["uvirtio", "diag", vm.address(0)])`` runs a command in it,
    ``vm.copy_out(PATH)`` copies a file of it to ``tmp_path``; the options are those of
    ``uvirtio.pytest_plugin.lab.LabVm``. It needs the lab of a checkout (``--uvirtio-lab``).
    """

    def boot_vm(*devices: str, **keywords: Any) -> LabVm:
        from uvirtio.pytest_plugin.lab import find_lab

        config = request.config
        given = config.getoption("uvirtio_lab"), config.getini("uvirtio_lab")
        where = Path(config.invocation_params.dir, given[0]) if given[0] else None
        if where is None and given[1]:
            where = config.rootpath / given[1]
        return _or_skip(
            config, lambda: _uvirtio_bench.vm(find_lab(where), devices, tmp_path, keywords), EnvironmentLack
        )

    return boot_vm


@pytest.fixture
def scripted_device(_uvirtio_bench: Bench) -> MakeScripted:
    """scripted_device(WHAT): a virtio device made of Python; the test fails if its driver breaks the standard.

    WHAT is the address of one, with or without ``scripted:`` ("rng,used-len=+1"), or a ``uvirtio.scripted.Model``,
    then with the keywords of ``ScriptedDevice``. ``virtio_device`` opens it. ``check=False`` leaves the driver's
    obedience to the test.
    """

    def make(what: str | Model, *, check: bool = True, **keywords: Any) -> ScriptedCore:
        if isinstance(what, str) and keywords:
            raise Misuse(
                "an address has its faults in it",
                seen=f"{what!r}, {', '.join(keywords)}",
                expected="keywords with a Model only",
                remedy=f"write scripted_device({what + ',SWITCH'!r}); docs/scripted.md lists the switches",
            )
        return _uvirtio_bench.scripted(what, check, keywords)

    return make


@pytest.fixture
def hostile_device(_uvirtio_bench: Bench) -> OpenHostile:
    """hostile_device(CASE, **options): an open device with a fault, which answers within 0.2 s or never.

    CASE is the address of a scripted device; ``uvirtio.scripted.hostile_cases(TYPE)`` has one for every fault, for
    ``pytest.mark.parametrize``. Opening it may fail already. The test fails if the driver breaks the standard; how
    the device takes being closed does not matter.
    """

    def open_hostile(case: str, **keywords: Unpack[OpenKeywords]) -> Device:
        from uvirtio.pytest_plugin.bench import HOSTILE_TIMEOUT

        device: Any = _uvirtio_bench.scripted(case, True, {})
        return _uvirtio_bench.open(device, None, {"timeout": HOSTILE_TIMEOUT, **keywords}, hostile=True)

    return open_hostile
