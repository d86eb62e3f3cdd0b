"""What a wheel installs beside the package: man pages, completion, udev rules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipInfo]:
    """The files of a wheel of this checkout, by their names without its version."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    # The backend itself, as every front end calls it: a front end would make an environment, and download.
    build = f"import hatchling.build as b; print(b.build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out / done.stdout.split()[-1]) as wheel:
        return {one.filename.partition(".data/")[2] or one.filename: one for one in wheel.infolist()}


def test_a_wheel_has_what_a_packager_looks_for(names: dict[str, zipfile.ZipInfo]) -> None:
    share = {name.removeprefix("data/share/") for name in names if name.startswith("data/share/")}
    assert {one for one in share if not one.startswith("man/")} == {
        "bash-completion/completions/uvirtio",
        "zsh/site-functions/_uvirtio",
        "fish/vendor_completions.d/uvirtio.fish",
        "uvirtio/udev-rules/50-uvirtio.limits.conf",
        "uvirtio/udev-rules/70-uvirtio.rules",
        "uvirtio/udev-rules/uvirtio-balloon@.service",
        "uvirtio/udev-rules/uvirtio-node-safe",
        "uvirtio/udev-rules/README.md",
    }
    groups = ("", "-balloon", "-blk", "-input", "-mem", "-net", "-rng", "-scsi")
    assert {one for one in share if one.startswith("man/")} == {f"man/man1/uvirtio{one}.1" for one in groups}
    assert names["data/share/uvirtio/udev-rules/uvirtio-node-safe"].external_attr >> 16 & 0o111
    assert {
        "uvirtio/__main__.py",
        "uvirtio/cli/completion/uvirtio.bash",
        "uvirtio/py.typed",
        "uvirtio/evidence/schema.json",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests", "tools", "docs"))]


@pytest.mark.parametrize("page", sorted(path.name for path in (CHECKOUT / "man").iterdir()))
def test_a_man_page_is_sound(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    command = ["groff", "-man", "-Tutf8", "-ww", "-z", str(CHECKOUT / "man" / page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_man_page_shows_what_help_shows() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = str(CHECKOUT / "man/uvirtio-mem.1")
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", page], capture_output=True, text=True, timeout=60
    )
    shown = " ".join(done.stdout.split())
    assert "NAME uvirtio-mem - memory that is plugged and unplugged as the host requests" in shown
    assert "uvirtio mem follow DEV [OPTION]... " in shown
    assert "--for SECONDS Stop after SECONDS." in shown
    assert "--timeout SECONDS" in shown
