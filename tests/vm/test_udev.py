"""The udev rules under a real systemd-udevd, on functions that really change hands.

Nobody runs udev in the lab. Its package lies unpacked in $UVIRTIO_UDEV; it is started here, with our rules and
its own 50-udev-default.rules, and goes with all that it wrote. The guest's root is the host's, whose own rules
(of packages such as driverctl, or the administrator's) are covered while it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
OURS = HERE.parents[2] / "udev-rules"
PCI = Path("/sys/bus/pci")
LINKS = Path("/dev/uvirtio")
GROUPS = Path("/etc/group")
DENY = Path("/etc/uvirtio/deny")
GID = 4321
MEMBER, STRANGER = 1234, 1235
PATIENCE = 60.0
"""Seconds: a deadline for udev, on an emulated CPU."""


FOLDERS = tuple(Path(top, "udev") for top in ("/etc", "/usr/lib", "/usr/local/lib", "/lib"))
"""Where udev looks for rules, helpers and its database, beside /run."""


class Udev:
    """A systemd-udevd that knows of no rules but those that are installed here.

    The folders of rules are empty from the beginning; ``stop`` brings back what was in them.
    """

    def __init__(self, package: Path, folder: Path) -> None:
        self._admin = next(
            path for path in (package / "bin/udevadm", package / "usr/bin/udevadm") if path.exists()
        )
        self.rules = Path("/etc/udev/rules.d")
        self._stock = next(package.glob("**/rules.d/50-udev-default.rules"))
        self._libexec = Path("/usr/lib/udev")
        self._program = folder / "systemd-udevd"  # the same program, by its other name
        self._program.symlink_to(self._admin)
        self._log = folder / "log"
        self._covered: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        for place in dict.fromkeys(one.resolve() for one in FOLDERS):
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", place], check=True)
            self._covered.append(place)

    def start(self) -> None:
        for folder in (self._libexec, self.rules):
            folder.mkdir(exist_ok=True)
        self._install(OURS / "uvirtio-node-safe", self._libexec, 0o755)
        self._install(OURS / "70-uvirtio.rules", self.rules, 0o644)
        self._install(self._stock, self.rules, 0o644)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "--resolve-names=early"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while subprocess.run([self._admin, "control", "--ping", "--timeout=5"], capture_output=True).returncode:
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        while self._covered:
            subprocess.run(["umount", "--lazy", self._covered[-1]], check=True)
            self._covered.pop()
        shutil.rmtree("/run/udev", ignore_errors=True)
        shutil.rmtree("/run/uvirtio/translated", ignore_errors=True)
        shutil.rmtree(LINKS, ignore_errors=True)

    def _install(self, source: Path, folder: Path, mode: int) -> None:
        target = folder / source.name
        shutil.copyfile(source, target)
        target.chmod(mode)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def compile_hwdb(self) -> None:
        """Make the hardware database of what lies in hwdb.d."""
        subprocess.run([self._admin, "hwdb", "--update"], check=True, capture_output=True)

    def reload(self) -> None:
        """Read the rules again."""
        subprocess.run([self._admin, "control", "--reload", f"--timeout={PATIENCE:g}"], check=True)

    def settle(self) -> None:
        subprocess.run([self._admin, "settle", f"--timeout={PATIENCE:g}"], check=True)

    def trigger(self, *arguments: str) -> None:
        subprocess.run([self._admin, "trigger", *arguments], check=True)
        self.settle()

    def properties(self, path: Path) -> dict[str, str]:
        done = subprocess.run(
            [self._admin, "info", "--query=property", f"--path={path.resolve()}"],
            check=True,
            capture_output=True,
            text=True,
        )
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        return {key: value for key, _, value in pairs if key.startswith("UVIRTIO") or key == "CURRENT_TAGS"}


@pytest.fixture(scope="module")
def hosts_rules() -> Iterator[None]:
    """A rule of the host's, in each place where it may have some; whatever it does is seen in properties."""
    made = []
    for place in dict.fromkeys(one.resolve() for one in FOLDERS):
        (place / "rules.d").mkdir(parents=True, exist_ok=True)
        made.append(place / "rules.d" / "05-of-the-host.rules")
        made[-1].write_text('ENV{UVIRTIO_OF_THE_HOST}="yes", TAG+="of_the_host"\n')
    yield
    for path in made:
        path.unlink()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, hosts_rules: None) -> Iterator[Udev]:
    package = os.environ.get("UVIRTIO_UDEV")
    if not package:
        pytest.skip("UVIRTIO_UDEV does not name an unpacked udev (python -m lab.udev makes one)")
    for module in ("vfio-pci", "uio_pci_generic"):
        subprocess.run(["modprobe", module], check=True)
    udev = Udev(Path(package), tmp_path_factory.mktemp("udev"))
    groups = GROUPS.read_text()
    try:
        udev.start()
        udev.trigger("--action=add", "--subsystem-match=virtio")  # as when the machine starts
        yield udev
        print(udev.log())
    finally:
        udev.stop()
        GROUPS.write_text(groups)


@pytest.fixture
def udev(running: Udev) -> Iterator[Udev]:
    """udevd, where the administrator has made the group; the host may have one of its own."""
    before = GROUPS.read_text()
    others = [line for line in before.splitlines(keepends=True) if not line.startswith("uvirtio:")]
    GROUPS.write_text(f"{''.join(others)}uvirtio:x:{GID}:\n")
    yield running
    GROUPS.write_text(before)


@pytest.fixture
def take(udev: Udev, lab_devices: dict[str, str]) -> Iterator[Take]:
    taker = Take(udev, lab_devices)
    yield taker
    taker.give_back()


class Take:
    """Binds functions to other drivers, and gives them back."""

    def __init__(self, udev: Udev, devices: dict[str, str]) -> None:
        self._udev = udev
        self._devices = devices
        self._taken: list[str] = []

    def __call__(self, name: str, driver: str = "vfio-pci") -> tuple[str, Path]:
        """The address, and the node that the function now has."""
        if name not in self._devices:
            pytest.skip(f"this machine has no {name}")
        address = self._devices[name]
        self._taken.append(address)
        self._bind(address, driver)
        device = PCI / "devices" / address
        if driver == "vfio-pci":
            return address, Path("/dev/vfio", (device / "iommu_group").resolve().name)
        return address, Path("/dev", next((device / "uio").iterdir()).name)

    def give_back(self) -> None:
        while self._taken:
            self._bind(self._taken.pop(), "")

    def _bind(self, address: str, driver: str) -> None:
        device = PCI / "devices" / address
        (device / "driver_override").write_text(f"{driver}\n")
        (device / "driver" / "unbind").write_text(address)
        (PCI / "drivers_probe").write_text(address)
        assert (device / "driver").resolve().name == (driver or "virtio-pci")
        self._udev.settle()


def access(node: Path) -> tuple[int, int, str]:
    status = node.stat()
    return status.st_uid, status.st_gid, oct(status.st_mode & 0o7777)


KERNELS = (0, 0, "0o600")
OPEN = (0, GID, "0o660")


def group_properties(udev: Udev, node: Path) -> dict[str, str]:
    return udev.properties(Path("/sys/class/vfio", node.name))


def may_open(node: Path, user: int, group: int) -> bool:
    """Whether an ordinary user can open the node; opening it again fails only for want of permission."""
    code = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))"
    command = ["/usr/bin/python3", "-S", "-c", code, str(node)]
    done = subprocess.run(command, user=user, group=group, extra_groups=[], capture_output=True, text=True)
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_function_that_the_iommu_holds_is_the_groups(udev, take):
    address, node = take("rng-iova")
    assert access(node) == OPEN
    assert may_open(node, MEMBER, GID)
    assert not may_open(node, STRANGER, STRANGER)
    assert (LINKS / address).readlink() == Path(f"../vfio/{node.name}")
    assert group_properties(udev, node) == {
        "UVIRTIO_LINKS": f"uvirtio/{address}",
        "UVIRTIO_ACCESS": "uvirtio",
        "UVIRTIO_WHY": f"the IOMMU holds every function of group {node.name}",
        "CURRENT_TAGS": ":uvirtio:",
    }


def test_a_taken_function_has_a_tag_and_properties_until_it_is_given_back(udev, take):
    address, node = take("rng-iova")
    assert udev.properties(PCI / "devices" / address) == {
        "UVIRTIO_TYPE": "rng",
        "UVIRTIO_ADDRESS": address,
        "UVIRTIO_GROUP": node.name,
        "CURRENT_TAGS": ":uvirtio:",
    }
    take.give_back()
    assert udev.properties(PCI / "devices" / address) == {}
    assert not (LINKS / address).is_symlink()
    assert not node.exists()


@pytest.mark.parametrize(
    ("name", "why"), [("rng", "was not seen to negotiate ACCESS_PLATFORM"), ("balloon", "is a balloon")]
)
def test_a_node_that_reaches_all_of_memory_stays_roots(udev, take, name, why):
    address, node = take(name)
    assert access(node) == KERNELS
    assert not may_open(node, MEMBER, GID)
    assert (LINKS / address).readlink() == Path(f"../vfio/{node.name}")
    properties = group_properties(udev, node)
    assert properties["UVIRTIO_ACCESS"] == "no"
    assert f"{address} {why}" in properties["UVIRTIO_WHY"]


def test_a_device_that_nobody_saw_with_its_driver_stays_roots(udev, take, lab_devices):
    (Path("/run/uvirtio/translated") / lab_devices["rng-iova"]).unlink()
    _, node = take("rng-iova")
    assert access(node) == KERNELS


def test_what_the_driver_negotiated_is_seen_when_it_binds(udev, take, lab_devices):
    """Not only when udev starts: the kernel's own event tells of it."""
    note = Path("/run/uvirtio/translated") / lab_devices["rng-iova"]
    take("rng-iova")
    note.unlink()
    take.give_back()
    udev.settle()
    assert note.exists()
    assert access(take("rng-iova")[1]) == OPEN


def test_without_the_group_nothing_is_opened(udev, take):
    GROUPS.write_text(GROUPS.read_text().replace(f"uvirtio:x:{GID}:\n", ""))
    address, node = take("rng-iova")
    assert access(node) == KERNELS
    assert (LINKS / address).is_symlink()
    assert "no local group" in group_properties(udev, node)["UVIRTIO_WHY"]


def test_a_node_that_the_administrator_gave_to_somebody_is_left_alone(udev, take):
    GROUPS.write_text(GROUPS.read_text().replace(f"uvirtio:x:{GID}:\n", ""))
    _, node = take("rng-iova")
    os.chown(node, MEMBER, 0)
    GROUPS.write_text(f"{GROUPS.read_text()}uvirtio:x:{GID}:\n")
    udev.trigger("--subsystem-match=vfio")
    assert access(node) == (MEMBER, 0, "0o600")
    assert group_properties(udev, node)["UVIRTIO_ACCESS"] == "administrator"


def test_access_that_was_given_is_taken_back_when_it_is_no_longer_safe(udev, take):
    address, node = take("rng-iova")
    assert access(node) == OPEN
    udev.trigger("--subsystem-match=vfio")
    assert access(node) == OPEN, "looked at again, and nothing has changed"
    DENY.parent.mkdir(exist_ok=True)
    DENY.write_text(f"{address}\n")
    try:
        udev.trigger("--subsystem-match=vfio")
        assert access(node) == KERNELS
        assert "deny list" in group_properties(udev, node)["UVIRTIO_WHY"]
    finally:
        DENY.unlink()


def test_access_that_somebody_else_gave_is_not_taken_back(udev, take):
    _, node = take("rng")
    os.chown(node, 0, GID)
    node.chmod(0o660)
    udev.trigger("--subsystem-match=vfio")
    assert access(node) == OPEN
    assert group_properties(udev, node)["UVIRTIO_ACCESS"] == "no"


def test_a_uio_node_has_a_name_and_never_a_group(udev, take):
    address, node = take("rng-iova", "uio_pci_generic")
    assert access(node)[1] == 0
    assert not may_open(node, MEMBER, GID)
    assert (LINKS / f"{address}.uio").readlink() == Path(f"../{node.name}")
    assert udev.properties(PCI / "devices" / address)["UVIRTIO_TYPE"] == "rng"
    take.give_back()
    assert not (LINKS / f"{address}.uio").is_symlink()


def test_a_function_that_is_removed_takes_its_note_with_it(udev, witness, lab_devices):
    address = lab_devices["rng-iova"]
    note = Path("/run/uvirtio/translated") / address
    assert note.exists()
    (PCI / "devices" / address / "remove").write_text("1")
    try:
        udev.settle()
        assert not note.exists()
    finally:
        (PCI / "rescan").write_text("1")
        udev.settle()
    assert (PCI / "devices" / address / "driver").resolve().name == "virtio-pci"
    assert note.exists()


def test_udev_finds_nothing_wrong_with_the_rules(udev):
    lines = [line for line in udev.log().splitlines() if "uvirtio" in line]
    assert lines == []
