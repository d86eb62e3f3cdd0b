"""The fixture ``virtio_vm``: how it finds the lab, what it says without one, and a lab that fails.

The lab here is a program that speaks as tools/vm does and runs commands on this machine. The lab itself is booted
by tests/plugin (tools/test --all).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.unit.test_pytest_plugin import CHECKOUT, kept, run

PLAYED = """\
#!{python}
import json, pathlib, subprocess, sys
here = pathlib.Path(__file__).parent
(here / "argv.json").write_text(json.dumps(sys.argv[1:]))
(here / "out").mkdir(exist_ok=True)
(here / "console").write_text("Linux version 6.1\\n")
def tell(**message):
    print(json.dumps(message), flush=True)
mode = (here / "mode").read_text()
if mode == "missing":
    tell(missing="the kernel is not here", remedy="once: tools/vm run -- true")
    sys.exit(4)
if mode == "broken":
    sys.exit("tools/vm: the VM did not boot")
addresses = {{"dev0": "0000:01:00.0", "mine": "0000:02:00.0"}}
tell(ready=dict(kernel="6.1.0-9", addresses=addresses, out=str(here / "out"), console=str(here / "console")))
for line in sys.stdin:
    asked = json.loads(line)
    if mode == "dies":
        sys.exit("tools/vm: the VM ended")
    try:
        done = subprocess.run(asked["run"], capture_output=True, text=True, timeout=asked["timeout"],
                              env={{"UVIRTIO_LAB_OUT": str(here / "out"), "PATH": "/usr/bin:/bin"}})
        tell(code=done.returncode, stdout=done.stdout, stderr=done.stderr)
    except subprocess.TimeoutExpired as late:
        tell(code=None, stdout=(late.stdout or b"").decode(), stderr="")
        break
(here / "ended").touch()
"""

BOOTED = 'def test_it(virtio_vm):\n    virtio_vm("virtio-rng-pci")\n'


def played(folder: Path, mode: str) -> Path:
    """A checkout with a lab that behaves so."""
    program = folder / "tools/vm"
    program.parent.mkdir(parents=True)
    program.write_text(PLAYED.format(python=sys.executable))
    program.chmod(0o755)
    (program.parent / "mode").write_text(mode)
    return program.parent


# --- where it is, and what is missing ---------------------------------------------------------------------------


def test_without_a_lab_the_test_is_skipped_and_says_what_names_one(tmp_path: Path) -> None:
    done = run(tmp_path, BOOTED, "--uvirtio-lab", "nowhere")
    assert "1 skipped" in done.stdout
    assert "nowhere has no tools/vm" in done.stdout and "--uvirtio-lab DIR" in done.stdout
    done = run(tmp_path, BOOTED, "--uvirtio-lab", "nowhere", "--uvirtio-require-qemu")
    assert "1 failed" in done.stdout and "skipped" not in done.stdout


def test_what_the_lab_misses_is_the_reason(tmp_path: Path) -> None:
    played(tmp_path / "lab", "missing")
    done = run(tmp_path, BOOTED, "-o", "uvirtio_lab=lab")
    assert "1 skipped" in done.stdout
    assert "virtio_vm: the kernel is not here (once: tools/vm run -- true)" in done.stdout
    done = run(tmp_path, BOOTED, "-o", "uvirtio_lab=lab", "--uvirtio-lab", "nowhere")
    assert "nowhere has no tools/vm" in done.stdout, "the option is nearer than the configuration"


def test_the_lab_of_the_checkout_fetches_nothing_for_a_test(tmp_path: Path) -> None:
    done = run(tmp_path, BOOTED, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "1 skipped" in done.stdout, done.stdout
    packages, kernel = "as root: apt-get install", f"once: {CHECKOUT}/tools/vm run --kernel 6.1 -- true"
    assert packages in done.stdout or kernel in done.stdout
    assert list((tmp_path / "cache").rglob("*")) in ([], [tmp_path / "cache/uvirtio"])


# --- what a test sees of it -------------------------------------------------------------------------------------

TESTS = """
import pathlib, subprocess
from uvirtio.errors import Misuse, QemuFailed

def test_run(virtio_vm, tmp_path):
    vm = virtio_vm("virtio-rng-pci,packed=on", "virtio-blk-pci,id=mine", kernel="6.12", memory="512M")
    assert (vm.address(0), vm.address(1), vm.address("mine")) == ("0000:01:00.0", "0000:02:00.0", "0000:02:00.0")
    done = vm.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\\n", "err\\n")
    with pytest.raises(subprocess.CalledProcessError):
        vm.run(["false"], check=True)
    source = tmp_path / "of the VM"
    source.mkdir()
    (source / "file").write_text("text")
    assert vm.copy_out(source / "file") == tmp_path / "file" and (tmp_path / "file").read_text() == "text"
    assert (vm.copy_out(source, tmp_path / "to") / "file").read_text() == "text"
    with pytest.raises(uvirtio.OperationFailed):
        vm.copy_out("/nowhere/at all")
    for wrong in ("ls -l", [], ["a\\0b"], [1]):
        with pytest.raises(Misuse):
            vm.run(wrong)
    with pytest.raises(Misuse):
        vm.address(2)

def test_late(virtio_vm):
    vm = virtio_vm()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        vm.run(["sh", "-c", "echo before; exec sleep 60"], timeout=0.3)
    assert caught.value.output == "before\\n"
    with pytest.raises(QemuFailed, match="has ended"):
        vm.run(["true"])

def test_failing(virtio_vm):
    assert virtio_vm().run(["echo", "seen"]).stdout == "other"
"""


def test_commands_run_files_come_out_and_a_failed_test_keeps_what_was_said(tmp_path: Path) -> None:
    lab = played(tmp_path / "lab", "")
    done = run(tmp_path, TESTS, "--uvirtio-lab", "lab", "--uvirtio-artifacts", "out", "-k", "run or late")
    assert "2 passed" in done.stdout, done.stdout
    assert (lab / "ended").exists()
    done = run(tmp_path, TESTS, "--uvirtio-lab", "lab", "--uvirtio-artifacts", "out", "-k", "failing")
    assert "1 failed" in done.stdout, done.stdout
    told = kept(tmp_path / "out")["test_it.py-test_failing/vm.txt"]
    assert "$ echo seen\nseen\n" in told and "exit 0" in told and "Linux version 6.1" in told


def test_the_lab_is_told_the_devices_the_kernel_and_this_environment(tmp_path: Path) -> None:
    lab = played(tmp_path / "lab", "")
    assert "1 passed" in run(tmp_path, TESTS, "--uvirtio-lab", "lab", "-k", "test_run").stdout
    words = json.loads((lab / "argv.json").read_text())
    assert words[0] == "serve" and {"--kernel=6.12", "--iommu=intel", "--memory=512M"} < set(words)
    assert [word for word in words if word.startswith("--device=")] == [
        "--device=virtio-rng-pci,packed=on,id=dev0", "--device=virtio-blk-pci,id=mine",
    ]  # fmt: skip
    assert f"--libraries={CHECKOUT}" in words
    assert (f"--venv={sys.prefix}" in words) is (sys.prefix not in ("/usr", "/usr/local"))


@pytest.mark.parametrize(("mode", "told"), [("broken", "the VM did not boot"), ("dies", "the VM ended"), ("", "")])
def test_a_lab_that_ends_fails_the_test_with_its_last_words(tmp_path: Path, mode: str, told: str) -> None:
    lab = played(tmp_path / "lab", mode)
    test = "def test_it(virtio_vm):\n    virtio_vm().run(['true'])\n"
    if mode:
        done = run(tmp_path, test, "--uvirtio-lab", "lab")
        assert "1 failed" in done.stdout and "QemuFailed" in done.stdout and f"tools/vm: {told}" in done.stdout
        return
    # The other way round: a test process that is killed closes nothing, and the lab ends.
    done = run(tmp_path, test + "    import os\n    os.kill(os.getpid(), 9)\n", "--uvirtio-lab", "lab")
    assert done.returncode == -9
    deadline = time.monotonic() + 30
    while not (lab / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
