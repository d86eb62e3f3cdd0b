"""What every command has: options anywhere, errors as text or JSON, exit codes, signals, no traceback."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio import errors
from uvirtio.cli import main, output
from uvirtio.cli.app import _VERBS, _verb_first
from uvirtio.cli.command import Command, perform
from uvirtio.cli.signals import LEAVING, Guard, Signalled
from uvirtio.errors import UvirtioError

_CODES = {"UV-USAGE": 2, "UV-REFUSED": 3, "UV-ENV": 4, "UV-NODEV": 5}


def every_class(top: type[UvirtioError] = UvirtioError) -> Iterator[type[UvirtioError]]:
    yield top
    for below in top.__subclasses__():
        yield from every_class(below)


OURS = sorted(
    {one for one in every_class() if one.__module__ == errors.__name__} - {errors.Misuse},
    key=lambda one: one.__name__,
)


@pytest.fixture
def outside(tmp_path: Path) -> list[str]:
    """Options that keep a command away from this machine."""
    (tmp_path / "sys").mkdir()
    return ["--root", str(tmp_path)]


def no_json(word: str) -> None:
    """Fail: RFC 8259 knows neither NaN nor Infinity, which Python's reader takes."""
    pytest.fail(f"{word} is not JSON")


def document(text: str) -> dict[str, Any]:
    lines = text.splitlines()
    assert len(lines) == 1
    made = json.loads(lines[0], parse_constant=no_json)
    assert isinstance(made, dict)
    assert made["schema"] == "uvirtio/1"
    return made


# --- errors and exit codes ----------------------------------------------------------------------------------


def raising(error: BaseException) -> Any:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_each_error_has_its_exit_code_and_its_document(
    kind: type[UvirtioError], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = next((code for prefix, code in _CODES.items() if kind.code.startswith(prefix)), 1)
    error = kind("it failed", seen=3, expected={"b", "a"}, remedy="try again")
    assert perform(Command("list", json=True), raising(error)) == expected
    out, err = capsys.readouterr()
    assert err == ""
    made = document(out)
    assert made["command"] == "list"
    assert made["error"] == {
        "code": kind.code,
        "message": "it failed",
        "seen": 3,
        "expected": ["a", "b"],
        "remedy": "try again",
    }


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_each_error_as_text(kind: type[UvirtioError], capsys: pytest.CaptureFixture[str]) -> None:
    perform(Command("list"), raising(kind("it \x1b[31mfailed", seen="a\nb", remedy="try again")))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"uvirtio: {kind.code}: it \\x1b[31mfailed\n  seen:     a\\nb\n  remedy:   try again\n"


def test_all_codes_differ() -> None:
    codes = [kind.code for kind in OURS]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("verbose", [False, True])
def test_the_unexpected_is_a_bug_without_a_traceback(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(Command("list", verbose=verbose), raising(KeyError("what"))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "UV-BUG: unexpected KeyError: 'what'" in err
    assert "report" in err
    assert ("trace: Traceback" in err) is verbose
    assert not err.startswith("Traceback")


def test_a_document_has_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"a": (nan, [1.5, {"b": -inf}]), "c": frozenset({inf})}
    output.document("list", given=given)
    assert document(capsys.readouterr().out)["given"] == {"a": ["nan", [1.5, {"b": "-inf"}]], "c": ["inf"]}


def test_a_misuse_of_the_library_is_a_bug_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(Command("list"), raising(errors.Misuse("outside", seen=9, expected="0 to 7"))) == 1
    assert "UV-BUG: unexpected Misuse: outside" in capsys.readouterr().err


def test_a_bug_in_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(Command("list", json=True), raising(RecursionError("deep"))) == 1
    assert document(capsys.readouterr().out)["error"]["code"] == "UV-BUG"


def test_what_cannot_be_encoded_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.prepare()
    assert perform(Command("list"), raising(errors.BadAddress("bad \udcff\x07"))) == 2
    assert "\\udcff\\x07" in capsys.readouterr().err


# --- usage --------------------------------------------------------------------------------------------------

WRONG = [
    ["nonsense"],
    ["list", "--nonsense"],
    ["balloon"],
    ["balloon", "nonsense"],
    ["balloon", "inflate"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "64X"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "4097"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "0"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "64M", "--hold", "-1"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "64M", "--hold", "soon"],
    ["balloon", "follow", "qemu:virtio-balloon-pci", "--limit", "3.3"],
    ["rng", "read", "qemu:virtio-rng-pci", "-5"],
    ["rng", "read", "qemu:virtio-rng-pci", "5%"],
    ["rng", "read", "qemu:virtio-rng-pci", "5", "--timeout", "nan"],
    ["balloon", "inflate", "qemu:virtio-balloon-pci", "64M", "--hold", "inf"],
    ["rng", "read", "qemu:virtio-rng-pci", "5", "--timeout", "0"],
    ["rng", "read", "qemu:virtio-rng-pci", "5", "--interrupts", "morse"],
    ["rng", "read", "qemu:virtio-rng-pci", "5", "--backend", "nonsense"],
    ["rng", "read", "qemu:no-such-thing", "5"],
    ["rng", "read", "qemu:", "5"],
    ["rng", "read", "no address", "5"],
    ["input", "events", "qemu:pc/virtio-keyboard-pci", "--count", "0"],
    ["features", "nonsense", "0"],
    ["features", "balloon", "-1"],
    ["features", "balloon", "lo:hi"],
    ["features", "balloon", str(1 << 128)],
    ["list", "nonsense"],
    ["inspect", "no address"],
    ["inspect", "qemu:virtio-rng-pci"],
]


@pytest.mark.parametrize("argv", WRONG, ids=" ".join)
def test_wrong_use_is_2_as_text_and_as_json(
    argv: list[str], outside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    has_root = argv != ["nonsense"] and argv[0] in _VERBS and len(argv) > (argv[0] in ("balloon", "rng", "input"))
    root = outside if has_root and argv[:2] != ["balloon", "nonsense"] else []
    assert main([*argv, *root]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("uvirtio: UV-USAGE")
    assert main(["--json", *argv, *root]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    made = document(out)
    assert made["command"].startswith(argv[0])
    assert set(made["error"]) == {"code", "message", "seen", "expected", "remedy"}
    assert made["error"]["code"].startswith("UV-USAGE")


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    for verb in _VERBS:
        assert f" {verb} " in shown


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_each_verb_has_help(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, option]) == 0
    out, err = capsys.readouterr()
    assert f"uvirtio {verb}" in out
    assert err == ""


def test_the_help_of_all_verbs_loads_none_of_them() -> None:
    script = "import sys; from uvirtio.cli.app import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert not [name for name in loaded.split() if name.startswith(("uvirtio.cli.verbs", "uvirtio.binding"))]
    assert "  bind      Bind devices to a user-space driver, all or none." in shown


@pytest.mark.parametrize("argv", [["--", "list"], ["-v", "--", "list"]], ids=" ".join)
def test_a_verb_behind_other_words_is_that_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "nonsense"]) == 2
    assert "'nonsense' is not a type of virtio device" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    import uvirtio

    assert main([option]) == 0
    assert capsys.readouterr().out == f"uvirtio {uvirtio.__version__}\n"


def test_python_m_uvirtio_is_the_command() -> None:
    command = [sys.executable, "-m", "uvirtio", "features", "rng", "0x100000000", "--nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "see: uvirtio features --help" in done.stderr
    done = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "VERSION_1" in done.stdout


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--json", "list"], ["list", "--json"]),
        (["--timeout", "3", "-v", "rng", "--json", "read", "D", "5"], ["rng", "read", "--timeout", "3", "-v", "--json", "D", "5"]),  # noqa: E501
        (["--timeout=3", "diag", "D"], ["diag", "--timeout=3", "D"]),
        (["list", "--json"], ["list", "--json"]),
        (["--version"], ["--version"]),
        (["rng", "--help"], ["rng", "--help"]),
        (["--json"], []),
        (["diag", "D", "--json"], ["diag", "D", "--json"]),
    ],
)  # fmt: skip
def test_options_stand_anywhere(argv: list[str], expected: list[str]) -> None:
    assert _verb_first(argv) == expected


_KNOWN = """read status inflate follow info events --json -v --timeout --unsafe-dma --hold -- - --all --driver -h
virtio0 balloon 0000:00:00.0 mmio:0x1000 vdpa:x /dev/vhost-vdpa-0 64M 25% \x1b[2J [red]""".split()  # noqa: SIM905
_WORDS = st.one_of(st.sampled_from([*_VERBS, *_KNOWN]), st.text(max_size=12))


@pytest.mark.fault(97)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(_WORDS, max_size=6))
def test_garbage_never_gives_a_traceback(
    argv: list[str], outside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # qemu: is left out (it would start one), and the root is an empty tree, whatever else was said.
    argv = [word for word in argv if not word.startswith("qemu:") and word != "--root"]
    code = main([*argv[:1], *outside, *argv[1:]] if argv[:1] and argv[0] in _VERBS else argv)
    out, err = capsys.readouterr()
    assert code in (0, 1, 2, 3, 4, 5)
    assert "Traceback" not in err
    assert "UV-BUG" not in out + err
    if code and argv and not err and argv[0] != "doctor":  # whose verdict is its exit code
        assert "--json" in argv
        assert "error" in document(out)


def test_list_loads_neither_back_ends_nor_drivers_nor_rich(tmp_path: Path) -> None:
    script = (
        "import sys; from uvirtio.cli import main; code = main(['list', '--root', sys.argv[1]]); "
        "print(*sorted(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "uvirtio.binding.discover" in loaded
    heavy = (
        "rich",
        "pydantic",
        "pyudev",
        "ctypes",
        "uvirtio.device",
        "uvirtio.drivers",
        "uvirtio.backends",
        "uvirtio.diag",
    )
    assert not {name for name in loaded if name in heavy or name.startswith(tuple(f"{one}." for one in heavy))}


@pytest.mark.parametrize("argv", [["--help"], ["list", "--help"], ["mem", "plug", "--help"]], ids=" ".join)
def test_help_in_a_pipe_does_without_frames_and_so_without_rich(argv: list[str]) -> None:
    script = (
        "import sys; from uvirtio.cli.app import run; code = run(sys.argv[1:]); "
        "print(code, 'rich' in sys.modules, 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60)
    *_, last = done.stdout.splitlines()
    assert last == "0 False False"
    assert "Usage: uvirtio" in done.stdout and not set("│╭─") & set(done.stdout)


# --- a terminal ---------------------------------------------------------------------------------------------


def on_a_terminal(*argv: str, columns: int = 80, **environment: str) -> list[str]:
    """The lines that a command writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    env |= {"TERM": "xterm", **environment}
    with uvirtio(*argv, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        with open(ours, "rb", closefd=True) as shown:  # noqa: PTH123
            pieces = []
            try:
                while piece := shown.read1(4096):
                    pieces.append(piece)
            except OSError:  # EIO: the other end is closed
                pass
        assert process.wait(timeout=60) == 0
    return b"".join(pieces).decode().replace("\r\n", "\n").splitlines()


def test_a_table_is_as_wide_on_a_terminal_as_in_a_pipe(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    fake.pci("0000:00:04.0", "balloon", transitional=True, driver="vfio-pci", group=5)
    with uvirtio("list", "--root", str(tmp_path), stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=60)
    plain = out.decode().splitlines()
    assert max(map(len, plain)) > 60
    shown = on_a_terminal("list", "--root", str(tmp_path), columns=40)
    assert shown == [f"\x1b[1m{plain[0]}\x1b[0m", *plain[1:]]
    assert on_a_terminal("list", "--root", str(tmp_path), columns=40, NO_COLOR="1") == plain
    assert on_a_terminal("list", "--root", str(tmp_path), columns=40, TERM="dumb") == plain


def test_help_on_a_terminal_has_no_escapes_with_no_color() -> None:
    assert any("\x1b[1m" in line for line in on_a_terminal("list", "--help"))
    assert not any("\x1b" in line for line in on_a_terminal("list", "--help", NO_COLOR="1"))


def test_long_lines_are_wrapped_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "word " * 30 + "0x" + "f" * 60
    Command("diag").paragraph(text, indent=" " * 13)
    assert capsys.readouterr().out == f"{'':13}{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    Command("diag").paragraph(text, indent=" " * 13)
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{'':13}0x" + "f" * 60
    assert len(lines) > 1 and all(len(line) <= 80 and line.startswith(" " * 13 + "word") for line in lines)


# --- nothing reads the output, or takes it      -----------------------------------------------------------------


def uvirtio(*argv: str, **more: Any) -> subprocess.Popen[bytes]:
    # Buffered, as users have it: PYTHONUNBUFFERED hides what fails at the interpreter's last flush.
    more.setdefault("env", {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"})
    return subprocess.Popen([sys.executable, "-m", "uvirtio", *argv], stdin=subprocess.DEVNULL, **more)


WITH_OUTPUT = [
    ["list"],
    ["doctor"],
    ["doctor", "--print", "limits"],
    ["journal"],
    ["features", "net", "0xffffffff"],
    ["features", "net", "1", "--json"],
    ["--help"],
    ["mem", "plug", "--help"],
    ["--version"],
]


def in_the_tree(argv: list[str], outside: list[str]) -> list[str]:
    return [*argv, *outside] if argv[0] in ("list", "doctor", "journal") else argv


@pytest.mark.parametrize("argv", WITH_OUTPUT, ids=" ".join)
def test_a_reader_that_went_away_is_141_and_no_word(argv: list[str], outside: list[str]) -> None:
    here, there = os.pipe()
    os.close(here)
    with uvirtio(*in_the_tree(argv, outside), stdout=there, stderr=subprocess.PIPE) as process:
        os.close(there)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("argv", WITH_OUTPUT, ids=" ".join)
def test_a_full_disk_is_an_error_of_ours(argv: list[str], outside: list[str]) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        uvirtio(*in_the_tree(argv, outside), stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, err = process.communicate(timeout=60)
    lines = err.decode().splitlines()
    assert process.returncode == 1
    assert lines[0] == "uvirtio: UV-OPERATION: the output cannot be written"
    assert lines[1].split(":", 1)[1].strip() == "No space left on device"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["seen", "expected", "remedy"]


@pytest.mark.parametrize("argv", WITH_OUTPUT, ids=" ".join)
def test_a_closed_stdout_is_an_error_of_ours(argv: list[str], outside: list[str]) -> None:
    shell = '"$@" >&-'
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "uvirtio", *in_the_tree(argv, outside)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("uvirtio: UV-OPERATION: the output cannot be written")
    assert "no standard output" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["/dev/full", None], ids=["full", "closed"])
@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_an_error_keeps_its_code_when_nothing_takes_its_words(where: str | None, json: list[str]) -> None:
    # As text it goes to stderr, as a document to stdout, and to stderr where that fails.
    to, other = ("stdout", "stderr") if json else ("stderr", "stdout")
    redirect = f"{'1' if json else '2'}>{where or '&-'}"
    command = ["sh", "-c", f'"$@" {redirect}', "sh", sys.executable, "-m", "uvirtio", "nonsense", *json]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert getattr(done, to) == ""
    assert getattr(done, other).startswith("uvirtio: UV-USAGE: ") is bool(json)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_no_descriptor_of_a_device(closed: int) -> None:
    # A forked process that looks at its descriptors after prepare(): what it opens next is none of 0, 1, 2.
    script = "import os; from uvirtio.cli import output; output.prepare(); os._exit(os.open('/', os.O_RDONLY))"
    command = ["sh", "-c", f'"$@" {closed}>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode > 2


def test_a_command_without_output_needs_no_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        sys.stdout = output._NoStdout(open(os.devnull, "wb"))  # noqa: SIM115, PTH123
        return 0

    before = sys.stdout
    try:
        assert perform(Command("rng read"), body) == 0
    finally:
        sys.stdout = before
    assert capsys.readouterr().err == ""


def test_what_a_file_system_says_only_at_close_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # NFS and FUSE report a write that failed at close(2), and there alone.
    close = os.close

    def failing(number: int) -> None:
        close(number)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(os, "close", failing)
        assert perform(Command("list"), lambda: 0) == 1
        monkeypatch.undo()
    assert os.strerror(errno.EDQUOT) in capsys.readouterr().err


def test_a_recording_that_does_not_fit_is_an_error_of_ours(tmp_path: Path) -> None:
    script = """
import resource, sys
from uvirtio.cli.command import Command, perform
from uvirtio.cli.verbs.input import _sink

def body():
    with _sink(cmd, sys.argv[1]) as write:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # write(2) fails with EFBIG from here on
        write(["E: 0.000000 0001 001e 0001"])

cmd = Command("input record")
sys.exit(perform(cmd, body))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"uvirtio: UV-OPERATION: {tmp_path / 'file'} cannot be written")


# --- signals ------------------------------------------------------------------------------------------------


class Waiter:
    def __init__(self) -> None:
        self.reasons: list[BaseException] = []

    def interrupt(self, reason: BaseException) -> None:
        self.reasons.append(reason)


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number", LEAVING)
def test_a_signal_without_a_device_ends_the_command(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    run = Command("list")

    def body() -> int:
        signal.raise_signal(number)
        return 0

    assert perform(run, body) == 128 + number
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capsys.readouterr().err


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number", LEAVING)
def test_a_signal_goes_to_the_open_device(number: int) -> None:
    waiter, guard = Waiter(), Guard()
    run = Command("balloon inflate", json=True, streaming=True, guard=guard)
    went_on = False

    def body() -> int:
        nonlocal went_on
        guard.watch(waiter)
        signal.raise_signal(number)
        went_on = True
        guard.watch(None)
        return 0

    assert perform(run, body) == 128 + number
    assert went_on
    assert [getattr(reason, "number", None) for reason in waiter.reasons] == [number]


@pytest.mark.usefixtures("signals_as_in_a_terminal")
def test_a_signal_gets_through_to_blocked_output() -> None:
    waiter, guard = Waiter(), Guard()
    with guard.installed():
        guard.watch(waiter)
        with pytest.raises(Signalled), guard.writing():
            signal.raise_signal(signal.SIGTERM)
    assert waiter.reasons == []


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Command("list")

        def body() -> int:
            signal.raise_signal(signal.SIGHUP)
            return 0

        assert perform(run, body) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("signals_as_in_a_terminal")
def test_an_interrupted_document_is_still_one(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    assert perform(Command("diag", json=True), body) == 130
    assert document(capsys.readouterr().out)["error"]["code"] == "UV-INTERRUPTED"


@pytest.mark.usefixtures("signals_as_in_a_terminal")
def test_an_interrupted_stream_just_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    assert perform(Command("input events", json=True, streaming=True), body) == 130
    assert capsys.readouterr().out == ""


def test_no_thread_is_left() -> None:
    assert perform(Command("list"), lambda: 0) == 0
    assert threading.active_count() == 1


def test_ctrl_c_while_the_command_line_is_loaded_is_no_traceback():
    """Loading takes a tenth of a second, and a hand may be faster."""
    code = """
import sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "uvirtio.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from uvirtio.cli import main
sys.exit(main(["list"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
