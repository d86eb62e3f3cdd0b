"""Documents are written as a whole, or not at all: on a full disk what was there stays."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uvirtio.cli.app import run
from uvirtio.cli.completion import install
from uvirtio.errors import OperationFailed
from uvirtio.host.whole import write_whole


@contextmanager
def no_room() -> Iterator[None]:
    """write(2) fails from the 100th byte of a file on, as on a disk that becomes full.

    Of every file, also of pytest's own: nothing else may be done meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.fault(98)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        ["dump", "scripted:rng", "-o"],
        ["report", "scripted:rng", "-o"],
        ["diag", "scripted:rng", "--html"],
        ["diag", "scripted:rng", "--junit"],
        ["conform", "scripted:rng", "--area", "status", "--junit"],
    ],
    ids=" ".join,
)
def test_a_document_that_does_not_fit_leaves_what_was_there(
    words: list[str], there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if there:
        file.write_text("a document")
    with no_room():
        code = run([*words, str(file)])
    assert code == 1
    assert "UV-OPERATION" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a document"] * there


@pytest.mark.fault(98)
def test_a_list_of_verdicts_that_does_not_fit_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of it would be what the next run is compared with."""
    with no_room():
        code = run(["conform", "scripted:rng", "--area", "status", "--expect", str(tmp_path / "list")])
    assert code == 1
    assert "UV-OPERATION" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_completion_that_works_goes_on_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    script = tmp_path / "zsh/site-functions/_uvirtio"
    script.parent.mkdir(parents=True)
    script.write_text("#compdef uvirtio")
    with pytest.raises(OperationFailed), no_room():
        install.install("zsh")
    assert script.read_text() == "#compdef uvirtio" and [*script.parent.iterdir()] == [script]


def test_it_takes_the_place_of_a_file_with_its_rights_and_links(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to("file")
    write_whole(str(link), b"first", 0o600)
    assert link.is_symlink() and file.read_bytes() == b"first" and mode_of(file) == 0o600
    file.chmod(0o644)
    write_whole(str(link), b"second", 0o600)
    assert file.read_bytes() == b"second" and mode_of(file) == 0o600
    file.chmod(0o640)
    write_whole(str(file), b"third", 0o666)
    assert file.read_bytes() == b"third" and mode_of(file) == 0o640
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_what_is_no_file_and_what_has_no_room_beside_it_is_written_in_place(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    write_whole(f"/proc/self/fd/{theirs}", b"through a pipe", 0o600)
    assert os.read(ours, 100) == b"through a pipe"
    os.close(ours)
    os.close(theirs)
    longest = tmp_path / ("x" * 255)  # beside it there is no name
    for text in (b"one", b"two"):
        write_whole(str(longest), text, 0o600)
        assert longest.read_bytes() == text and mode_of(longest) == 0o600
    with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
        write_whole(str(tmp_path), b"", 0o600)


def test_the_standard_output_is_not_replaced(tmp_path: Path) -> None:
    """`(uvirtio dump DEV -o /dev/stdout; ...) > FILE`: the shell has the file open."""
    with (tmp_path / "out").open("wb") as out:
        write_whole(f"/proc/self/fd/{out.fileno()}", b"a document", 0o666)
        assert os.fstat(out.fileno()).st_ino == (tmp_path / "out").stat().st_ino
    assert (tmp_path / "out").read_bytes() == b"a document"


def test_a_file_system_without_rights_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT refuses to take rights of some away; what it shows to whom is the mount's."""

    def refuses(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuses)
    for text in (b"one", b"two"):
        write_whole(str(tmp_path / "file"), text, 0o600)
        assert (tmp_path / "file").read_bytes() == text


@pytest.mark.unprivileged
def test_a_file_that_is_protected_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    file.chmod(0o444)
    with pytest.raises(PermissionError):
        write_whole(str(file), b"other", 0o666)
    assert file.read_bytes() == b"kept" and [*tmp_path.iterdir()] == [file]
