"""The Python code of README and docs/ works as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs_blocks import CHECKOUT, blocks, files, script, shell
from tests.qemu.test_cli import start, uvirtio  # noqa: F401  # fixtures
from tests.support import forked
from uvirtio.diag import STEPS

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page)]


def environment() -> dict[str, str]:
    """Our plugin is named where it is wanted: an older uvirtio may be installed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder that it is in."""
    return forked.program(program, list(arguments), program.parent, environment(), timeout=180)


@pytest.mark.parametrize("page", [page for page in WITH_CODE if script(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """In their order, in one process: a later block may use what an earlier one has imported."""
    program = tmp_path / f"{page.name}.py"
    program.write_text(script(page))
    done = run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in WITH_CODE if files(page)], ids=lambda page: page.stem)
def test_the_files_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """Tests are collected and pass; other files run by themselves."""
    made = files(page)
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    tests = sum(len(re.findall(r"^def test_", text, re.MULTILINE)) for text in made.values())
    if tests:
        words = ["-q", "-p", "uvirtio.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
        done = forked.pytest(words, tmp_path, environment(), timeout=180)
        assert done.returncode == 0, done.stdout
        ended = re.findall(r"(\d+) (?:passed|skipped)", done.stdout)  # skipped: wants a newer QEMU
        assert sum(map(int, ended)) >= tests
    for name, text in made.items():
        if "__main__" in text:
            done = run(tmp_path / name)
            assert done.returncode == 0, done.stderr


HOW_TO = re.findall(r"^(uvirtio .*?)(?: {2,}#.*)?$", "".join(shell(CHECKOUT / "docs/howto.md")), re.MULTILINE)


@pytest.fixture(scope="module")
def folder_of_how_to(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: a command may read what an earlier one wrote."""
    folder = tmp_path_factory.mktemp("howto")
    (folder / "first.bin").write_bytes(bytes(4096))
    return folder


@pytest.mark.parametrize("command", HOW_TO)
def test_a_command_of_the_how_to_page_ends_well(
    command: str,
    folder_of_how_to: Path,
    monkeypatch: pytest.MonkeyPatch,
    uvirtio: Callable[..., tuple[int, str, str]],  # noqa: F811
) -> None:
    monkeypatch.chdir(folder_of_how_to)
    code, _, err = uvirtio(*shlex.split(command)[1:])
    # doctor says with 4 that this machine lacks something, which in a test it does.
    assert code in ((0, 4) if command == "uvirtio doctor" else (0,)), err


SHOWN = sorted(
    {
        command
        for page in PAGES
        for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        for command in re.findall(r"^\$ (uvirtio [^\n|>]*scripted:[^\n|>]*)$", block, re.MULTILINE)
    }
)
"""Commands of sessions; those on scripted devices give the same everywhere."""


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_that_a_page_shows_is_one(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uvirtio: Callable[..., tuple[int, str, str]],  # noqa: F811
) -> None:
    """It may show what fails, but no wrong use of the command."""
    monkeypatch.chdir(tmp_path)
    code, _, err = uvirtio(*shlex.split(command)[1:])
    assert code in (0, 1), err


def test_pages_show_commands_on_scripted_devices() -> None:
    assert len(SHOWN) > 5


def test_the_tutorial_counts_the_steps_of_a_diagnosis() -> None:
    assert len(STEPS) == 16
    assert "Sixteen steps" in (CHECKOUT / "docs/tutorial.md").read_text()


def test_the_how_to_page_has_commands() -> None:
    assert len(HOW_TO) > 20


def test_pages_with_code_that_is_not_run_say_why() -> None:
    for page in WITH_CODE:
        for block in blocks(page):
            assert block.reason is None or len(block.reason) > 10


def test_the_five_tests_of_the_testing_page_are_there() -> None:
    names = re.findall(r"^def (test_\w+)", files(CHECKOUT / "docs/testing.md")["test_devices.py"], re.MULTILINE)
    assert names[:5] == ["test_rng", "test_balloon", "test_input", "test_blk", "test_hot_unplug"]
