"""Every program of examples/ runs as its docstring says, by itself and to the end."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import forked

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))
RINGS = ("split", "packed")

PRINTED = [
    # program, arguments, what it has to print, line by line
    (
        "balloon.py",
        [],
        ["before: .* 512 MiB", "16384 pages .* 448", "8192 pages .* 480", "after: .* 512 MiB"],
    ),
    ("balloon.py", ["16"], [r"4096 pages .* 496 MiB", r"after: .* 512 MiB"]),
    (
        "balloon_follow.py",
        [],
        ["448 MiB", "reached, 64 MiB", "480 MiB", "reached, 32 MiB", "512 MiB", "reached, 0 MiB", "sees 512 MiB"],
    ),
    ("blk_image.py", [], ["8192 sectors", "1024 reads of 4 KiB: what was written", "the file holds the same"]),
    ("console_driver.py", [], [r"b'HELLO, HOST\\n'"]),
    ("diagnose.py", [], [r"pass +discover", r"pass +data path", r"pass +leave", r"verdict: pass; [1-9]"]),
    ("diagnose.py", ["qemu:virtio-serial-pci"], [r"pass +data path .*21 received", "verdict: pass"]),
    ("hot_unplug.py", [], ["plugged: 16 bytes", "gone: +UV-NODEV-GONE", "QEMU: +running", "10 pages"]),
    ("input_events.py", [], ["Keyboard", "KEY_U KEY_V KEY_I KEY_R KEY_T KEY_I KEY_O", "took the LED: True"]),
    ("input_events.py", ["Q"], ["KEY_Q"]),
    (
        "interrupts_and_rings.py",
        [],
        [rf"{mode} +{ring} +\d+ +50 +\d" for mode in ("msix-per-queue", "intx", "polling") for ring in RINGS],
    ),
    ("interrupts_and_rings.py", ["qemu:virtio-rng-pci"], [r"split +\d+ +50", r"packed +UV-DEV-FEATURE-MISSING"]),
    (
        "machine_qmp.py",
        [],
        ["entropy: virtio-rng, .* used [1-9]", "virtio-balloon, .* used 1$", "RESUME"],
    ),
    ("mem_plug.py", [], ["reached: 256 of 256 MiB", r"0x[0-9a-f]+ holds b'hello'", "back to 0 MiB"]),
    ("rng.py", [], [r"qemu:virtio-rng-pci: rng, msix-per-queue, .*VERSION_1", r"^([0-9a-f]{2} ?){32}$"]),
    ("rng.py", ["qemu:pc/virtio-rng-pci,vectors=0"], [r"rng, intx"]),
    (
        "timeouts.py",
        [],
        ["first read: +64 bytes", "UV-DEV-TIMEOUT", "third read", "broken: True", "another one: 64 bytes"],
    ),
]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.program(CHECKOUT / "examples" / program, list(arguments), CHECKOUT, dict(os.environ))


@pytest.mark.parametrize(("program", "arguments", "printed"), PRINTED, ids=lambda one: str(one)[:40])
def test_an_example_does_what_it_says(program: str, arguments: list[str], printed: list[str]) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = iter(done.stdout.splitlines())
    for wanted in printed:  # in this order
        assert any(re.search(wanted, line) for line in lines), f"no line {wanted!r} in its place:\n{done.stdout}"


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES} == {program for program, _, _ in PRINTED}
    assert len(EXAMPLES) >= 10


def test_the_project_with_tests_passes(tmp_path: Path) -> None:
    """With our plugin and no other: it is found by its entry point only where this uvirtio is installed."""
    project = tmp_path / "project"
    shutil.copytree(CHECKOUT / "examples/pytest_project", project, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = forked.pytest(["-p", "uvirtio.pytest_plugin", "-p", "no:cacheprovider"], project, environment)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30
    assert "skipped" not in done.stdout
    assert "(pytest_project/README.md)" in (CHECKOUT / "examples/README.md").read_text()


def test_an_error_of_an_example_says_what_to_do() -> None:
    done = run("rng.py", "qemu:virtio-blk-pci")
    assert done.returncode == 5
    assert "UV-NODEV-NOT-VIRTIO" in done.stderr
    assert "remedy" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_of_ones_own(tmp_path: Path) -> None:
    image = tmp_path / "an,image"
    image.write_bytes(bytes(1 << 20))
    done = run("blk_image.py", str(image))
    assert done.returncode == 0, done.stderr
    assert "the file holds the same" in done.stdout
    assert image.read_bytes() != bytes(1 << 20)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 65
    told = ast.get_docstring(ast.parse(text))
    assert told is not None
    assert f"python examples/{path.name}" in told
    assert f"({path.name})" in (CHECKOUT / "examples/README.md").read_text()
    assert f"examples/{path.name}\n" in (CHECKOUT / "docs/examples.md").read_text()
