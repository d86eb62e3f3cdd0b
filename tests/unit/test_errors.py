"""One family of errors: codes are unique, exit codes are the contract's, and all carry the same five things."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import pytest

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


def test_python_s_own_names_are_not_taken():
    import builtins

    assert not [kind.__name__ for kind in EVERY if hasattr(builtins, kind.__name__)]
