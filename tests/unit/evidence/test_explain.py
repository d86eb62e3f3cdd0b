"""uvirtio explain: every code, cause and step has a page, what a page names exists, and words are decoded."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvirtio
from uvirtio import errors
from uvirtio.cli import main
from uvirtio.cli.completion.table import GROUPS, TOP, VERBS
from uvirtio.diag import Beside, causes
from uvirtio.diag.bringup import steps_of
from uvirtio.diag.probes import talk
from uvirtio.errors import UsageError, UvirtioError
from uvirtio.evidence import explain
from uvirtio.spec import features as f
from uvirtio.spec.status import Status

PACKAGE = Path(uvirtio.__file__).parent
DOCS = PACKAGE.parent / "docs"


def family(base: type[UvirtioError] = UvirtioError) -> list[type[UvirtioError]]:
    return [base, *(found for child in base.__subclasses__() for found in family(child))]


CODES = {kind.code for kind in family() if kind.__module__ == errors.__name__}
COMMAND_ONLY = {"UV-BUG", "UV-INTERRUPTED"}


# --- nothing is without a page ---


def test_every_error_code_has_a_page_and_no_page_is_of_another() -> None:
    assert set(explain.pages()["error"]) == CODES | COMMAND_ONLY
    told = set(re.findall(r"`(UV-[A-Z-]+[A-Z])`", (DOCS / "errors.md").read_text()))
    assert told == set(explain.pages()["error"])


@pytest.mark.parametrize("code", sorted(CODES | COMMAND_ONLY))
def test_a_page_says_what_it_is_and_what_to_do(code: str) -> None:
    (page,) = explain.explain(code)
    assert (page.kind, page.name) == ("error", code)
    assert page.means and page.causes and page.next
    assert page.exit_code in range(1, 6)


STEPS_ALL = steps_of(Beside(None))


def test_the_names_of_classes_lead_to_the_same_pages() -> None:
    for kind in family():
        if kind.__module__ == errors.__name__:
            assert explain.explain(kind.__name__) == explain.explain(kind.code.lower())


def literals(path: Path) -> set[str]:
    """The ids of causes that a file of diag makes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        place = {"Cause": 0, "PathResult": 2, "warn": 1}.get(name)
        if place is not None and len(node.args) > place:
            for part in ast.walk(node.args[place]):
                if (
                    isinstance(part, ast.Constant)
                    and isinstance(part.value, str)
                    and re.fullmatch("[a-z-]+", part.value)
                ):
                    found.add(part.value)
    return found


def test_every_cause_of_diag_has_a_page_and_no_page_is_of_another() -> None:

    made = {found for path in (PACKAGE / "diag").rglob("*.py") for found in literals(path)}
    made |= {ident for ident, _ in causes._QUEUE_CAUSES.values()} | set(causes._RING_CAUSES)
    made |= set(causes._BACK_END_CAUSES) | set(talk.CAUSES)
    made |= {ident for ident, _, _ in causes.STALLS.values()} | {
        "data-path",
        "io-error",
        "used-len",
        "ring",
        "queue",
    }
    assert set(explain.pages()["cause"]) == made


def test_what_diag_has_said_of_faults_has_a_page() -> None:
    """A cause without an id of its own has that of its error's code."""
    for row in re.findall(r"^\| `scripted:.*$", (DOCS / "diag-causes.md").read_text(), re.MULTILINE):
        name = row.split("|")[4].strip().strip("`")
        if name != "-":
            assert explain.explain(name)


def test_every_step_of_diag_has_a_page_with_its_section() -> None:
    assert {name: page["section"] for name, page in explain.pages()["step"].items()} == STEPS_ALL


def test_every_feature_bit_has_a_meaning() -> None:
    given_ = explain.pages()["feature"]
    every = {name: {bit.name for bit in family_} for name, (family_, _) in f.DEVICE_BITS.items()}
    every["net"] |= {"GUEST_RSC4", "GUEST_RSC6"}
    every["every"] = {bit.name for bit in f.Reserved}
    assert {name: set(bits) for name, bits in given_.items()} == every


# --- what a page names exists ---

COMMAND = re.compile(r"\buvirtio ([a-z][a-z-]*(?: [a-z][a-z-]*)?)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FLAGS = {flag for _, _, options in VERBS.values() for flag in options} | set(TOP)
THEIRS = {"--memlock"}


@pytest.mark.parametrize("page", explain.everything(), ids=lambda page: f"{page.kind} {page.name}")
def test_commands_and_options_in_a_page_exist(page: explain.Page) -> None:
    for text in (*page.causes, *page.next):
        assert set(FLAG.findall(text)) <= FLAGS | THEIRS, text
        for words in COMMAND.findall(text):
            first, _, second = words.partition(" ")
            assert first in VERBS or (first in GROUPS and f"{first} {second}" in VERBS), text
            verb = VERBS.get(words) or VERBS[first]
            for flag in FLAG.findall(text.partition(words)[2]):
                assert flag in verb[2], f"{words} has no {flag}"
        for code in re.findall(r"UV-[A-Z-]+[A-Z]", text):
            assert code in CODES


# --- words and bytes ---


def test_a_status_byte() -> None:
    (page,) = explain.explain("0x0b")
    assert [name for name, _ in page.parts] == ["ACKNOWLEDGE", "DRIVER", "FEATURES_OK"]
    assert "DRIVER_OK comes next" in page.means
    assert "cannot recover" in explain.explain("0x4f")[0].means and explain.explain("0x4f")[0].next
    assert "Reset" in explain.explain("0")[0].means
    assert "do not answer" in explain.explain("255")[0].means
    assert ("0x20", "not defined") in explain.explain("0x27")[0].parts


def test_each_bit_of_the_status_is_explained() -> None:
    for bit in Status:
        (page,) = explain.explain(hex(bit))
        assert page.parts[0][0] == bit.name and page.parts[0][1] != "not defined"


def test_a_feature_word() -> None:
    (page,) = explain.explain("net", "0x100400001")
    assert [name for name, _ in page.parts] == ["CSUM (0)", "MQ (22)", "VERSION_1 (32)"]
    assert page.causes == ("MQ needs CTRL_VQ, which is not set (2.2.1)",)
    (page,) = explain.explain("balloon", "0x40")
    assert "HINT_WAIT_ON_ACK" in page.parts[0][1]
    (page,) = explain.explain("0x130000000")  # without a type: the bits of every device
    assert len(page.parts) == 3 and page.next


def test_a_feature_bit_by_name() -> None:
    (page,) = explain.explain("event_idx")
    assert (page.kind, page.section) == ("feature", "6") and "Bit 29" in page.means
    assert {page.means.partition(":")[0] for page in explain.explain("MQ")} == {
        "Bit 22 of virtio-net",
        "Bit 12 of virtio-blk",
    }
    assert explain.explain("VIRTIO_NET_F_MTU") == explain.explain("mtu")
    (page,) = explain.explain("blk", "MQ")
    assert page.means.startswith("Bit 12 of virtio-blk")


@given(st.text(max_size=40), st.one_of(st.just(""), st.text(max_size=40)))
def test_any_word_has_pages_or_is_refused(word: str, second: str) -> None:
    try:
        found = explain.explain(word, second)
    except UsageError:
        return
    assert found and json.dumps([page.as_dict() for page in found])


# --- the command ---


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "queue-untaken"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("queue-untaken: cause that diag names, virtio 1.4, 2.7.13, 4.1.5.2\n")
    assert "  likely: " in out and "  try: " in out
    assert main(["explain", "UV-ENV-QEMU", "--json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [page["name"] for page in made["pages"]] == ["UV-ENV-QEMU"]
    assert main(["explain", "--all", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)["pages"]
    assert len(every) == len(CODES | COMMAND_ONLY) + len(explain.pages()["cause"]) + len(STEPS_ALL)


@pytest.mark.parametrize(
    "argv", [[], ["nothing like it"], ["queue-kpt"], ["net", "x"], ["x", "1"], ["y", "--all"]]
)
def test_what_cannot_be_explained(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *argv]) == 2
    assert "uvirtio: UV-USAGE: " in capsys.readouterr().err


def test_a_near_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "queue-kpt"])
    assert "queue-kept" in capsys.readouterr().err


def test_list_loads_nothing_of_this() -> None:
    """The verbs that were there before load what they loaded before."""
    code = (
        "import sys; from uvirtio.cli import main; main(['list', '--root', '/nonexistent']); "
        "print(sorted(name for name in sys.modules if 'evidence' in name or name in ('tomllib', 'html.parser')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
