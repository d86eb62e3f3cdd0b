"""One family of errors: codes are unique, exit codes are the contract's, and all carry the same five things."""

from __future__ import annotations

import ast
import builtins
import copy
import importlib
import inspect
import json
import pickle
import pkgutil
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvirtio
from uvirtio import errors
from uvirtio.errors import UvirtioError


def family(base: type[UvirtioError] = UvirtioError) -> list[type[UvirtioError]]:
    return [base, *(found for child in base.__subclasses__() for found in family(child))]


EVERY = sorted({found for found in family() if found.__module__ == errors.__name__}, key=lambda kind: kind.code)

# The exit code of each branch of the family; all others are 1.
BRANCHES = {
    errors.UsageError: ("UV-USAGE", 2),
    errors.Refused: ("UV-REFUSED", 3),
    errors.EnvironmentLack: ("UV-ENV", 4),
    errors.DeviceAbsent: ("UV-NODEV", 5),
    errors.DeviceFailure: ("UV-DEV", 1),
}


def test_every_class_can_be_imported_from_the_package():
    assert sorted(errors.__all__) == sorted(kind.__name__ for kind in EVERY)
    assert set(errors.__all__) < set(uvirtio.__all__) and "errors" in uvirtio.__all__
    for kind in EVERY:
        assert getattr(uvirtio, kind.__name__) is kind


# These are the command's: no library call raises them.
COMMAND_ONLY = {"Bug", "Interrupted"}


def test_no_error_is_made_elsewhere():
    for module in pkgutil.walk_packages(uvirtio.__path__, "uvirtio."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    elsewhere = {kind for kind in family() if kind.__module__.split(".")[0] == "uvirtio"} - set(EVERY)
    assert {kind.__name__ for kind in elsewhere} == COMMAND_ONLY


def test_every_class_has_a_code_of_its_own():
    codes = [kind.code for kind in EVERY]
    assert len(codes) == len(set(codes))
    for kind in EVERY:
        assert "code" in vars(kind), f"{kind.__name__} has its parent's code"


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_codes_and_exit_codes_follow_the_branch(kind: type[UvirtioError]):
    for branch, (prefix, exit_code) in BRANCHES.items():
        if issubclass(kind, branch):
            assert kind.code == prefix or kind.code.startswith(prefix + "-")
            assert kind.exit_code == exit_code
            return
    assert kind.exit_code == 1
    assert not any(kind.code.startswith(prefix + "-") for prefix, _ in BRANCHES.values())


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_class_says_what_it_means(kind: type[UvirtioError]):
    assert kind.__doc__ and kind.__doc__.strip()


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_an_error_carries_its_five_things(kind: type[UvirtioError]):
    error = kind("it went wrong", seen=3, expected="4", remedy="add one")
    assert str(error) == "it went wrong"
    document = error.as_dict()
    assert document == {
        "code": kind.code,
        "message": "it went wrong",
        "seen": 3,
        "expected": "4",
        "remedy": "add one",
    }
    assert json.loads(json.dumps(document)) == document
    bare = kind("it went wrong")
    assert (bare.seen, bare.expected, bare.remedy) == (None, None, None)


NOTES = ["  seen:     3", "  expected: 4", "  remedy:   add one"]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_traceback_shows_what_was_seen_what_was_expected_and_the_remedy(kind: type[UvirtioError]):
    error = kind("it went wrong", seen=3, expected="4", remedy="add one")
    assert error.__notes__ == NOTES
    head, *rest = "".join(traceback.format_exception_only(error)).splitlines()
    assert head == f"{kind.__module__}.{kind.__name__}: it went wrong"
    assert rest == NOTES
    assert not hasattr(kind("it went wrong"), "__notes__")
    # What is falsy was seen all the same; only None says nothing.
    assert kind("it went wrong", seen=0).__notes__ == ["  seen:     0"]


def _raised_again(error: UvirtioError) -> UvirtioError:
    for _ in range(2):
        try:
            raise error
        except UvirtioError as caught:
            error = caught
    return error


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "way",
    [
        copy.copy,
        copy.deepcopy,
        _raised_again,
        *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_an_error_stays_whole_when_it_is_copied_pickled_or_raised_again(kind: type[UvirtioError], way):
    error = kind("it went wrong", seen=3, expected="4", remedy="add one")
    error.add_note("and a note of the caller's")
    again = way(error)
    assert type(again) is kind
    assert str(again) == "it went wrong" and again.args == ("it went wrong",)
    assert again.as_dict() == error.as_dict()
    assert again.__notes__ == [*NOTES, "and a note of the caller's"]


def test_a_refusal_of_a_memory_device_keeps_its_count_when_it_is_pickled():
    error = errors.MemBusy("not now", seen="BUSY", done=7)
    assert pickle.loads(pickle.dumps(error)).done == 7


def test_the_exit_codes_are_those_of_the_contract():
    assert {kind.exit_code for kind in EVERY} == {1, 2, 3, 4, 5}


# Python's own classes, and the errors that are also one of these. All others derive from Exception alone.
BUILT_IN = {
    TimeoutError: {errors.DeviceTimeout, errors.ResetTimeout, errors.Blocked, errors.NetStalled},
    PermissionError: {errors.PermissionLack, errors.PagemapHidden, errors.Denied},
    FileNotFoundError: {errors.NoSuchDevice},
    ValueError: {kind for kind in EVERY if issubclass(kind, errors.UsageError)},
}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_an_error_is_also_python_s_own_where_there_is_one(kind: type[UvirtioError]):
    for built_in, kinds in BUILT_IN.items():
        assert issubclass(kind, built_in) == (kind in kinds), built_in.__name__
    error = kind("it went wrong", seen=3)
    assert isinstance(error, OSError) == any(
        kind in kinds for built_in, kinds in BUILT_IN.items() if issubclass(built_in, OSError)
    )
    if isinstance(error, OSError):
        assert (error.errno, error.strerror, error.filename) == (None, None, None)


# Calls inside a handler for one of Python's classes, from which no error of ours comes that is of that class.
INNOCENT = frozenset({
    "write_whole",  # only the kernel's own
    "BarInfo",  # a record
    "numbers",  # reads a file of /proc: OSError alone, as do the next ones of host/
    "meminfo",
    "proc.meminfo",
    "meminfo(self.roots).get",
    "process.mount_namespace",
    "sysfs.read",
    "unescape",
    "forks.undisturbed",  # of modules warnings and signal
    "wake_lock.take",
    "wake_lock.drop",
    "query",  # ioctls: OSError, or OperationFailed
    "self._iova.take",  # its ValueError is meant
    "self._kernel.ioctl",
    "self._kernel.write",
    "self._lines.take",  # one read(2)
    "self._device.__init__",  # evdev's, and the standard library's, from here on
    "self._device.close",
    "self._poll.close",
    "self._process.stdin.write",
    "UdevEvents",  # pyudev's errors
    "ids.type_name",
    "self._socket.bind",
    "self._socket.setsockopt",
    "self._monitor.poll",  # libudev's
    "self._socket.recvfrom",
    "self._socket.recv",
    "self._socket.recv_into",
    "self._socket.sendall",
    "self._socket.sendmsg",
    "self._socket.recvmsg",
    "self._ours.send",
    "self._ours.recvmsg",
    "self._mapping.madvise",
    "self._directory.rmdir",
    "self._socket.settimeout",
    "self._socket.shutdown",
    "self._tries.pop",
    "self.ops.writer.own",
})  # fmt: skip


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.expr | None) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} if node is not None else set()


def _guarded(tree: ast.Module, caught: set[str]) -> Iterator[ast.stmt]:
    """The statements inside a handler for one of ``caught`` that does not let our own errors through first."""
    for node in ast.walk(tree):
        kinds: list[set[str]] = []
        if isinstance(node, ast.Try):
            kinds = [_names(handler.type) for handler in node.handlers]
        elif isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            kinds = [_names(call) for call in calls if ast.unparse(call.func).endswith("suppress")]
        else:
            continue
        ours = set(errors.__all__)
        first = next((names for names in kinds if names & (caught | ours)), set())
        if first and not first & ours:
            yield from node.body


def _doubtful(tree: ast.Module, caught: set[str]) -> Iterator[tuple[int, str]]:
    """Calls there of what the file imports from this package and of what its objects hold, and raises of ours."""
    imported = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "uvirtio"
        for name in node.names
    }
    for statement in _guarded(tree, caught):
        for node in ast.walk(statement):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call):
                continue
            callee, root = ast.unparse(call.func), _root(call.func)
            ours = root in imported and not callee.startswith("vfio_")  # a structure for an ioctl
            held = root == "self" and (callee.count(".") > 1 or isinstance(node, ast.Raise))
            if (ours or held) and callee not in INNOCENT:
                yield call.lineno, callee


def test_no_handler_of_python_s_own_classes_takes_an_error_of_ours_for_it():
    """``except OSError`` around a call that can raise DeviceTimeout would swallow it, or give it a wrong name.

    Where such a call may raise one of ours, put ``except UvirtioError: raise`` before the handler, or the call
    outside of it; where it cannot, add it to INNOCENT.
    """
    caught = {built_in.__name__ for built_in in BUILT_IN} | {"OSError", "IOError", "EnvironmentError"}
    sources = {path: path.read_text(encoding="utf-8") for path in Path(uvirtio.__file__).parent.rglob("*.py")}
    named = {path: text for path, text in sources.items() if any(name in text for name in caught)}
    assert named
    assert not [
        f"{path}:{line}: {callee}"
        for path, text in sorted(named.items())
        for line, callee in _doubtful(ast.parse(text), caught)
    ]


@pytest.mark.parametrize(
    ("body", "doubtful"),
    [
        ("try:\n  read(1)\nexcept OSError:\n  pass", True),
        ("try:\n  read(1)\nexcept (KeyError, ValueError):\n  pass", True),
        ("try:\n  self.device.check()\nexcept KeyError:\n  pass\nexcept TimeoutError:\n  pass", True),
        ("try:\n  raise self._hidden()\nexcept OSError:\n  pass", True),
        ("with suppress(ValueError):\n  read(1)", True),
        ("try:\n  read(1)\nexcept UvirtioError:\n  raise\nexcept OSError:\n  pass", False),
        ("try:\n  read(1)\nexcept KeyError:\n  pass", False),
        ("try:\n  os.read(1)\nexcept OSError:\n  read(1)", False),
    ],
)
def test_such_a_handler_would_be_found(body: str, doubtful: bool):
    tree = ast.parse(f"from uvirtio.x import read\n{body}")
    assert bool(list(_doubtful(tree, {"OSError", "ValueError", "TimeoutError"}))) == doubtful


# Where a file raises one of Python's own classes: its own handler takes it, or the caller's, as is said there.
RAISED = {
    "backends/guardian_process.py": {"ValueError"},  # a program of its own
    "binding/journal.py": {"ValueError"},
    "binding/owner.py": {"ValueError"},
    "binding/vdpa_netlink.py": {"OSError", "ValueError"},
    "evidence/checker.py": {"ValueError"},  # caught around the parser that it stops
    "report/documents.py": {"ValueError"},  # the same
    "host/writer.py": {"OSError"},  # the kernel's answer to a write
    "typed.py": {"TypeError"},  # as collections.namedtuple does
    "virtqueue/slots.py": {"AssertionError"},  # no caller gets there
}


LANGUAGE = {"AttributeError", "NotImplementedError"}
"""What ``__getattr__`` and a method without a body have to raise."""


def test_a_misuse_raises_an_error_of_ours():
    package = Path(uvirtio.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        known = RAISED.get(str(path.relative_to(package)), set()) | LANGUAGE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = _root(node.exc)
                if isinstance(getattr(builtins, name, None), type) and name not in known:
                    found.append(f"{path}:{node.lineno}: {name}")
    assert not found


# --- docs/errors.md -----------------------------------------------------------------------------------------

PAGE = (Path(uvirtio.__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| (`[^|]*) \| ([^|]*)(?: \|.*)?\|$", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")

CLASSES = (
    uvirtio.Device,
    uvirtio.Balloon,
    uvirtio.Blk,
    uvirtio.Input,
    uvirtio.Mem,
    uvirtio.Net,
    uvirtio.Rng,
    uvirtio.Scsi,
    uvirtio.qemu.Machine,
)
"""What has a row for each of its public methods."""


def calls_of_the_page() -> dict[str, set[str]]:
    """Each call in the tables of docs/errors.md, with the errors that it adds."""
    part = PAGE[PAGE.index("## By call") : PAGE.index("## Every class")]
    return {
        call: {name for name in _SPAN.findall(adds) if name in errors.__all__}
        for calls, adds in _ROW.findall(part)
        for call in _SPAN.findall(calls)
    }


def found(call: str) -> object:
    """What the page means by ``Blk.read``, ``qemu.Machine`` or ``blk.burst.Burst.post``."""
    for home in ("uvirtio", "uvirtio.drivers"):
        try:
            return pkgutil.resolve_name(f"{home}.{call}")
        except (AttributeError, ImportError):
            pass
    raise LookupError(call)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_the_page_has_every_class_as_it_is(kind: type[UvirtioError]):
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    row = f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_code} | {bases} | "
    assert row in PAGE[PAGE.index("## Every class") :]


def test_the_page_has_no_class_and_no_code_that_is_not_there():
    part = PAGE[PAGE.index("## Every class") :]
    assert re.findall(r"^\| `(\w+)`", part, re.MULTILINE) == errors_in_order()
    known = {kind.code for kind in family() if kind.__module__.startswith("uvirtio.")} | {
        "UV-BUG",
        "UV-INTERRUPTED",
    }
    assert set(re.findall(r"`(UV-[A-Z-]+)`", PAGE)) <= known


def errors_in_order() -> list[str]:
    tree = ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_the_page_has_a_row_for_every_call():
    calls = calls_of_the_page()
    wanted = {"open", "list", "find", "bind", "restore", "bound", "check_denied"}
    for made in CLASSES:
        name = "qemu.Machine" if made is uvirtio.qemu.Machine else made.__name__
        wanted |= set() if made is uvirtio.Device else {name}
        wanted |= {
            f"{name}.{method}"
            for method, _ in inspect.getmembers(made, inspect.isfunction)
            if not method.startswith("_")
        }
    assert wanted - set(calls) == set()
    for call in calls:
        assert found(call) is not None


def test_the_page_says_what_the_docstrings_say():
    """An error that a docstring names after ``Raises`` is in the call's row, or among those of every call."""
    begin, end = PAGE.index("## By call"), PAGE.index("### Opening")
    common = set(_SPAN.findall(PAGE[begin:end]))
    starting = set(_SPAN.findall(PAGE[PAGE.index("### Starting") : PAGE.index("### balloon")]))
    missing = []
    for call, adds in calls_of_the_page().items():
        thing = found(call)
        text = inspect.getdoc(thing.__init__ if isinstance(thing, type) else thing) or ""
        named = set(re.findall(r"\b[A-Z]\w+", text[text.find("Raises") :])) if "Raises" in text else set()
        known = adds | common | (starting if isinstance(thing, type) or call == "Device.start" else set())
        # Those that share a table share what stands above it.
        part = PAGE[: PAGE.index(f"`{call}`", begin)].rpartition("\n### ")[2].partition("\n|")[0]
        missing += [f"{call}: {name}" for name in named & set(errors.__all__) - known - set(_SPAN.findall(part))]
    assert not missing


def test_python_s_own_names_are_not_taken():
    assert not [kind.__name__ for kind in EVERY if hasattr(builtins, kind.__name__)]


# --- messages that name a device -----------------------------------------------------------------------------

LONG = "scripted:rng,refuse-with=EVENT_IDX,vectors=0,no-intx,reset-reads=3,features=0x130000000"


@pytest.mark.parametrize("text", [LONG, f"{LONG!r} is wrong", f"before: {LONG}: timed out ({LONG})", f"a {LONG}."])
def test_a_message_does_not_repeat_a_long_address_whole(text: str):
    short = "scripted:rng,refuse-with=EVENT_IDX,vecto...ures=0x130000000"
    error = errors.DeviceTimeout(text, seen=LONG, remedy=f"uvirtio reset {LONG}")
    assert error.message == str(error) == text.replace(LONG, short)
    assert (error.seen, error.remedy) == (LONG, f"uvirtio reset {LONG}"), "what is copied stays whole"


@pytest.mark.parametrize(
    "text",
    [
        "0000:00:04.0 is gone",
        LONG[:64],
        "the file /" + "a" * 100 + " cannot be read",
        "one  word, then  two: " + "x" * 100,
        "qemu: is a prefix, and " + "y " * 40,
    ],
)
def test_other_messages_are_as_they_were_written(text: str):
    assert errors.QemuFailed(text).message == text


def test_the_cause_of_a_diagnosis_has_no_address_in_it():
    from uvirtio.diag import diagnose

    address = LONG.replace("refuse-with=EVENT_IDX", "at-most=0,generation-bumps=0,used-flags=0")
    report = diagnose(address, timeout=0.1)
    assert report.cause is not None and report.cause.text.startswith("the device "), report.cause
