"""oom_score_adj: raised, never lowered, and only where the balloon takes this machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.host.killer import prefer
from uvirtio.host.roots import Roots
from uvirtio.opening import identify
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import ScriptedDevice


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    ("before", "after"), [("0\n", "500\n"), ("-1000\n", "500\n"), ("800\n", "800\n"), ("x", "x")]
)
def test_it_is_raised_and_never_lowered(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "proc/self/oom_score_adj"
    path.parent.mkdir(parents=True)
    path.write_text(before)
    prefer(Roots.under(tmp_path))
    assert path.read_text() == after
    path.unlink()
    prefer(Roots.under(tmp_path))  # as where /proc is hidden
    assert not path.exists()


@pytest.mark.fault(59)
@pytest.mark.parametrize(("address", "after"), [("0000:00:04.0", "500\n"), ("scripted:balloon", "0\n")])
def test_a_balloon_of_this_machine_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, after: str
) -> None:
    path = tmp_path / "proc/self/oom_score_adj"
    path.parent.mkdir(parents=True)
    path.write_text("0\n")
    monkeypatch.setattr(opening, "open", lambda *_, **__: identify("0000:00:04.0", ScriptedDevice(Balloon())))
    words = ["inflate", address, "64K", "--hold", "0", "--force", "free-memory"]
    assert run(["balloon", *words, "--root", str(tmp_path)]) == 0
    assert path.read_text() == after
