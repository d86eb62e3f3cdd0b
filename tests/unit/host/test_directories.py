"""What lies below a directory of sysfs, and what above: both with an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.host import sysfs


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def made(top: Path, *names: str) -> Path:
    for name in names:
        (top / name).mkdir(parents=True)
    return top


def test_links_and_files_are_no_directories(tmp_path: Path) -> None:
    top = made(tmp_path / "top", "b/c", "a")
    (top / "link").symlink_to(top / "b")
    (top / "file").touch()
    unread: list[Path] = []
    assert sysfs.below(top, unread) == [top, top / "a", top / "b", top / "b/c"] == sysfs.below(top)
    assert unread == []


@pytest.mark.parametrize(("deepest", "unseen"), [("a/b", None), ("a/b/c", "a/b/c"), ("a/b/c/d", "a/b/c")])
def test_depth_has_a_limit_and_what_is_beyond_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deepest: str, unseen: str | None
) -> None:
    monkeypatch.setattr(sysfs, "DEPTH_MAX", 2)
    made(tmp_path, deepest)
    unread: list[Path] = []
    found = [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    assert sysfs.below(tmp_path, unread) == found == sysfs.below(tmp_path)
    assert unread == ([] if unseen is None else [tmp_path / unseen])


@pytest.mark.parametrize(("most", "unseen"), [(4, None), (3, "c"), (1, "a")])
def test_number_has_a_limit_and_what_is_beyond_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, unseen: str | None
) -> None:
    monkeypatch.setattr(sysfs, "DIRECTORIES_MAX", most)
    every = [tmp_path, *(made(tmp_path, name) / name for name in "abc")]
    unread: list[Path] = []
    assert sysfs.below(tmp_path, unread) == every[:most] == sysfs.below(tmp_path)
    assert unread == ([] if unseen is None else [tmp_path / unseen])


def test_what_has_gone_is_no_obstacle_and_what_cannot_be_listed_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unread: list[Path] = []
    assert sysfs.below(tmp_path / "gone", unread) == [tmp_path / "gone"] and unread == []
    assert sysfs.below(tmp_path / "file", unread) == [tmp_path / "file"] == unread
    assert sysfs.below(tmp_path / "file") == [tmp_path / "file"]


def test_what_a_device_stands_on_ends_at_the_first_function(fake: FakeSys) -> None:
    """A sub-function, on a function that has its name alone, on a bridge: the bridge is left out."""
    bridge = fake.sys / "devices/pci0000:00/0000:00:1c.0"
    vdpa = bridge / "0000:01:00.0/mlx5_core.sf.2/plain/vdpa0"
    vdpa.mkdir(parents=True)
    for place in (bridge, vdpa.parents[1], vdpa):
        (place / "subsystem").symlink_to(fake.sys)
    assert sysfs.above(vdpa) == [vdpa.parents[1], vdpa.parents[2]]
    assert sysfs.function_below(vdpa) == vdpa.parents[2]
    alone = fake.sys / "devices/virtual/vduse/vdpa1"
    alone.mkdir(parents=True)
    assert sysfs.above(alone) == [] and sysfs.function_below(alone) is None
