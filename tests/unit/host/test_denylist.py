"""The deny list: what it denies, what it spares, and that a list that cannot be read denies everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uvirtio.errors import Denied
from uvirtio.host import denylist
from uvirtio.host.roots import Roots


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots.under(tmp_path)


def deny(roots: Roots, text: str | bytes) -> None:
    path = roots.etc / "uvirtio" / "deny"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def denied(roots: Roots, *names: str) -> bool:
    try:
        denylist.check(names, roots)
    except Denied as error:
        assert error.exit_code == 3 and error.seen and error.expected and error.remedy
        return True
    return False


def test_no_list_denies_nothing(roots: Roots):
    assert denylist.patterns(roots) == []
    assert not denied(roots, "0000:00:03.0")


def test_an_empty_list_or_one_of_comments_denies_nothing(roots: Roots):
    for text in ("", "\n\n", "# *\n   # 0000:00:03.0\n", "   \n\t\n"):
        deny(roots, text)
        assert not denied(roots, "0000:00:03.0")


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("0000:00:03.0", "0000:00:03.0", True),
        ("0000:00:03.0", "0000:00:03.1", False),
        ("  0000:00:03.0  # the disk", "0000:00:03.0", True),
        ("0000:00:03.0#the disk", "0000:00:03.0", True),
        ("0000:00:*", "0000:00:1f.7", True),
        ("0000:00:*", "0000:01:00.0", False),
        ("0000:00:0[0-3].?", "0000:00:02.5", True),
        ("0000:00:0[0-3].?", "0000:00:04.5", False),
        ("mmio:0xfeb0*", "mmio:0xfeb02e00", True),
        ("/dev/vhost-vdpa-*", "/dev/vhost-vdpa-0", True),
        ("qemu:*", "qemu:virtio-rng-pci", True),
        ("**", "qemu:virtio-rng-pci", True),
        ("\x00", "0000:00:03.0", False),
    ],
)
def test_a_line_denies_what_it_matches(roots: Roots, line: str, name: str, expected: bool):
    deny(roots, f"# first\n\n{line}\r\n")
    assert denied(roots, name) is expected


def test_a_lone_star_denies_every_real_device_and_spares_qemu(roots: Roots):
    deny(roots, "*\n")
    for name in ("0000:00:03.0", "mmio:0xfeb02e00", "/dev/vhost-vdpa-0", "LNRO0005:07", "virtio3"):
        assert denied(roots, name)
    assert not denied(roots, "qemu:virtio-balloon-pci")


def test_any_of_a_devices_names_is_enough(roots: Roots):
    deny(roots, "03:00.0\n")
    assert denied(roots, "0000:03:00.0", "03:00.0")
    deny(roots, "0000:03:00.0\n")
    assert denied(roots, "0000:03:00.0", "03:00.0")
    deny(roots, "*\n")
    assert denied(roots, "qemu:x", "0000:03:00.0")


def test_the_message_names_the_line_and_the_file(roots: Roots):
    deny(roots, "0000:00:0[0-9].*\n")
    with pytest.raises(Denied) as caught:
        denylist.check(["0000:00:03.0"], roots)
    assert "0000:00:03.0" in caught.value.message
    assert "0000:00:0[0-9].*" in caught.value.seen and str(roots.etc) in caught.value.seen


def test_a_list_that_cannot_be_read_denies_everything(roots: Roots):
    # A directory in its place: unreadable for root too.
    (roots.etc / "uvirtio" / "deny").mkdir(parents=True)
    for name in ("0000:00:03.0", "qemu:virtio-rng-pci"):
        assert denied(roots, name)


def test_no_permission_denies_everything(roots: Roots, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    deny(roots, b"# nothing is denied\n")
    monkeypatch.setattr(denylist, "_text", refuse)
    with pytest.raises(Denied) as caught:
        denylist.check(["0000:00:03.0"], roots)
    assert caught.value.seen == "Permission denied" and "chmod" in (caught.value.remedy or "")


@pytest.mark.unprivileged
def test_a_list_with_mode_0_denies_everything(roots: Roots):
    deny(roots, b"# nothing is denied\n")
    assert not denied(roots, "0000:00:03.0")
    (roots.etc / "uvirtio" / "deny").chmod(0)
    assert denied(roots, "0000:00:03.0")


def test_bytes_that_are_no_text_hide_no_line(roots: Roots):
    deny(roots, b"\xff\xfe\x00\n0000:00:03.0\n")
    assert denied(roots, "0000:00:03.0")


def test_a_file_in_the_place_of_the_directory_is_no_list(roots: Roots):
    roots.etc.mkdir(parents=True)
    (roots.etc / "uvirtio").write_text("*")
    assert not denied(roots, "0000:00:03.0")


def test_a_link_that_leads_nowhere_denies_everything(roots: Roots):
    path = roots.etc / "uvirtio" / "deny"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("not-there")
    with pytest.raises(Denied):
        denylist.check(["0000:00:03.0"], roots)


@pytest.mark.parametrize(
    "line",
    ["0000:00:1F.2", "00:1f.2", "00:1F.*", "0:1f.2", "0:0:1F.2", "0:1?.2", "PCI@0000:00:1f.2", "pci/0000:00:1F.*"],
)
def test_neither_case_nor_the_short_form_opens_a_way_round(roots: Roots, line: str):
    path = roots.etc / "uvirtio" / "deny"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert denylist.denying(["0000:00:1f.2"], roots) == line
    assert denylist.denying(["0000:10:1f.2"], Roots.under(roots.etc.parent)) is None


@pytest.mark.parametrize("line", ["3:00.0", "3:0.0", "0:3:0.0"])
def test_a_short_form_means_one_function(roots: Roots, line: str):
    deny(roots, line + "\n")
    assert denied(roots, "0000:03:00.0") and denied(roots, "3:00.0")
    for other in ("0000:30:00.0", "0000:13:00.0", "0003:00:00.0", "0000:03:00.1"):
        assert not denied(roots, other)


@pytest.mark.parametrize("line", ["mmio:0xFEB02E00", "mmio:0x00feb02e00", "MMIO:0xfeb02e0?"])
def test_a_window_by_any_spelling(roots: Roots, line: str):
    deny(roots, line + "\n")
    assert denied(roots, "mmio:0xfeb02e00") and not denied(roots, "mmio:0xfeb02c00")


def test_lines_that_deny_nothing_are_known(roots: Roots):
    deny(roots, "balloon\ntoaster\neth0\n/dev/vdz\n03:00.9\n0000:03:00.0\nvirtio3\n0000:0?:*\nvdpa:x\nqemu:x\n")
    assert denylist.without_effect(roots) == ["balloon", "toaster", "eth0", "/dev/vdz", "03:00.9"]


def test_a_byte_order_mark_hides_no_line(roots: Roots):
    deny(roots, b"\xef\xbb\xbf0000:00:03.0\n")
    assert denied(roots, "0000:00:03.0")


def test_a_pipe_is_no_list_and_denies_everything(roots: Roots):
    path = roots.etc / "uvirtio" / "deny"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert denied(roots, "0000:00:03.0")
