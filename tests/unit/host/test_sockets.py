"""Where sockets with a name are made."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from uvirtio.errors import EnvironmentLack
from uvirtio.host.limits import SOCKET_PATH_MAX
from uvirtio.host.sockets import make_place, remove_place


@pytest.mark.parametrize("spare", [-1, 0, 40])
def test_a_place_takes_a_socket(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a path in the directory of temporary files would be too long for one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        used = len(f"{top}//test-abcdefgh/socket")
        folder = Path(top, "x" * (SOCKET_PATH_MAX - used + spare))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        place = make_place("test-")
        assert place.parent.parent == (folder if spare <= 0 else Path("/tmp"))
        assert place.parent.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
        remove_place(place)
        remove_place(place)
        assert not place.parent.exists() and list(folder.iterdir()) == []


def test_no_place_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(EnvironmentLack, match="no place for a socket") as caught:
        make_place("test-")
    assert "TMPDIR" in str(caught.value.remedy)
