"""Shell completion: what may stand where, on a made-up tree, and in real bash, zsh and fish."""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from tests.support.polling import readable
from uvirtio.binding import journal, plan
from uvirtio.cli import main
from uvirtio.cli.app import _VERBS
from uvirtio.cli.completion import install, table
from uvirtio.cli.completion.answer import answer, split_line
from uvirtio.cli.completion.candidates import complete
from uvirtio.errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[3]
LIMIT = 60.0


def build(top: Path) -> FakeSys:
    fake = FakeSys(top)
    fake.pci("0000:00:02.0", "rng", group=3)
    fake.pci("0000:00:03.0", "blk", group=4)
    fake.pci("0000:00:04.0", "balloon", driver="vfio-pci", group=5)
    fake.pci("0001:00:02.0", "blk", group=6)
    fake.pci("0000:00:1f.0", None, pci_id=(0x8086, 0x2918), driver=None)
    fake.vdpa("vduse0")
    fake.mmio("LNRO0005:00", "input")
    return fake


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tree")).top


@pytest.fixture
def values(tree: Path) -> Callable[[str], list[str]]:
    """The candidates for the last word of a line, with the made-up machine behind it."""

    def found(line: str) -> list[str]:
        kind, candidates = complete(["--root", str(tree), *split_line(line)])
        assert kind == "words"
        return [value for value, _ in candidates]

    return found


# --- what may stand where -------------------------------------------------------------------------------------


def test_every_verb_has_its_place(values: Callable[[str], list[str]]) -> None:
    assert set(values("")) == set(_VERBS)
    assert values("ba") == ["balloon"]
    assert values("balloon ") == ["status", "inflate", "follow", "stats", "report"]
    assert values("-v --timeout 3 mem unplug") == ["unplug", "unplug-all"]
    assert values("nonsense ") == values("balloon nonsense ") == []


def test_options_are_those_of_the_verb(values: Callable[[str], list[str]]) -> None:
    assert "--flr" in values("reset -") and "--flr" not in values("diag -")
    assert "--timeout" in values("diag x --") and "--timeout" not in values("list --")
    assert "--json" not in values("list --json --") and values("list -- --") == []
    assert {"--version", "--show-completion", "--json"} <= set(values("-"))
    assert "--root" not in values("list -")
    assert values("bind --force mounted --fo") == ["--force"]  # it may be given again
    assert values("diag x --ring ") == ["auto", "split", "packed"]
    assert values("diag x --ring=p") == ["--ring=packed"]
    assert values("diag x --timeout ") == []


def test_addresses_come_from_sysfs(values: Callable[[str], list[str]]) -> None:
    pci = ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0", "0001:00:02.0"]
    assert values("plan ") == ["/dev/vhost-vdpa-0", *pci, "LNRO0005:00"]
    assert values("inspect ") == [*values("plan "), "vhost-user:"]
    assert values("inspect 0000:") == pci[:3]
    assert values("diag ") == [*values("plan "), "qemu:", "scripted:", "vhost-user:"]
    assert values("balloon status 0") == ["0000:00:04.0"]  # the others are of another type
    assert values("input led ") == [
        "/dev/vhost-vdpa-0",
        "LNRO0005:00",
        "qemu:",
        "scripted:",
        "vhost-user:",
    ]  # a vDPA device may be of any type
    assert values("bind 0000:00:02.0 0000:00:") == pci[1:3]  # not twice
    assert values("restore 0") == ["0000:00:04.0"]  # what a driver of the kernel has needs no restore
    assert values("inspect 0000:00:02.0 ") == []


def test_what_may_be_forgotten(tmp_path: Path) -> None:
    """The devices of the journal, whatever has them now and whether they are there."""
    fake = build(tmp_path)

    def values(line: str) -> list[str]:
        return [value for value, _ in complete(["--root", str(fake.top), *split_line(line)])[1]]

    assert values("restore --forget ") == []
    records = [
        journal.DeviceEntry(name, "pci", name, "vfio-pci", "virtio-pci", None, type="rng")
        for name in ("0000:00:02.0", "0000:0f:00.0")
    ]
    journal.store(journal.new(records, fake.roots), fake.roots)
    assert values("restore --forget ") == ["0000:00:02.0", "0000:0f:00.0"]
    assert values("restore --forget 0000:00:02.0 0000:0") == ["0000:0f:00.0"]
    assert "--forget" in values("restore --f")


def test_other_names_where_no_address_fits(values: Callable[[str], list[str]]) -> None:
    assert values("bind 00:0") == ["00:02.0", "00:03.0", "00:04.0"]
    assert values("bind vdpa:") == ["vdpa:vduse0"]
    assert values("plan virtio") == ["virtio0", "virtio1", "virtio2", "virtio3"]
    assert values("bind virtio") == []  # it takes addresses alone
    assert values("inspect r") == ["rng"]
    assert values("inspect bl") == []  # there are two


def test_names_of_the_kernel_where_no_address_fits(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    disk = fake.pci("0000:00:03.0", "blk", group=7)
    fake.child(disk, "virtio0/block/vda", "block")
    fake.child(disk, "virtio0/block/vda/vda1", "block", {"partition": "1"})
    fake.child(fake.pci("0000:00:04.0", "net", group=8), "virtio1/net/eth0", "net")
    keyboard = fake.pci("0000:00:05.0", "input", group=9)
    fake.child(keyboard, "virtio2/input/input3", "input")
    fake.child(keyboard, "virtio2/input/input3/event3", "input")
    loop = fake.sys / "devices/virtual/net/lo"
    loop.mkdir(parents=True)
    fake.link(fake.sys / "class/net/lo", loop)

    def values(line: str) -> dict[str, str]:
        return dict(complete(["--root", str(tmp_path), *split_line(line)])[1])

    assert values("bind v") == {"vda": "0000:00:03.0, blk, virtio-pci"}
    assert list(values("plan et")) == ["eth0"] and list(values("plan ev")) == ["event3"]
    assert list(values("plan /dev/v")) == ["/dev/vda"]
    assert list(values("plan /dev/")) == ["/dev/vda", "/dev/input/event3"]
    assert values("plan vda1") == values("bind input") == values("plan lo") == {}
    assert list(values("blk read vd")) == ["vda"] and values("balloon status v") == {}


def test_qemu_one_step_at_a_time(values: Callable[[str], list[str]]) -> None:
    assert values("balloon stats qe") == ["qemu:"]
    assert values("balloon stats qemu:v") == ["qemu:virtio-balloon-pci", "qemu:virt/"]
    assert values("rng read qemu:microvm/") == ["qemu:microvm/virtio-rng-device"]
    assert values("rng read qemu:riscv64/") == [f"qemu:riscv64/virtio-rng-{end}" for end in ("pci", "device")]
    assert values("rng read qemu:loong") == ["qemu:loongarch64/"]
    assert values("mem status qemu:virt/") == ["qemu:virt/virtio-mem-pci"]
    assert values("mem status qemu:microvm/") == values("rng read qemu:nonsense/") == []
    assert values("diag qemu:q35,ram=1G,i") == ["qemu:q35,ram=1G,iommu="]
    assert values("diag qemu:q35,ram=1G/virtio-k") == ["qemu:q35,ram=1G/virtio-keyboard-pci"]
    assert values("inspect qemu:") == []


def test_words_of_other_kinds(values: Callable[[str], list[str]]) -> None:
    assert values("list ball") == ["balloon"]
    assert values("features mem") == ["memory-balloon", "mem"]
    assert values("input led x LED_CAP") == ["LED_CAPSL"] and values("input led x cap") == ["capsl"]
    assert values("input led x capsl o") == ["on", "off"]
    assert values("diag x --backend vfio-") == ["vfio-group", "vfio-cdev"]
    assert values("bind x --force mou") == ["mounted"]
    assert values("bind x --driver v") == ["vfio-pci", "vhost_vdpa"]
    assert values("balloon inflate x 1M --force ") == ["free-memory"]
    assert values("bind x --owner roo") == ["root"]
    assert values("--show-completion ") == ["bash", "zsh", "fish"]


def test_what_explain_knows(values: Callable[[str], list[str]]) -> None:
    assert values("explain UV-DEV-CONF") == ["UV-DEV-CONFIG-UNSTABLE", "UV-DEV-CONFIG"]
    assert values("explain queue-k") == ["queue-kept"]


def test_both_sides_of_diff_are_devices(values: Callable[[str], list[str]]) -> None:
    first = values("diff 0000:")
    assert first and set(values(f"diff {first[0]} 0000:")) == set(first) - {first[0]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("rng read x 1 -o ", "files"),
        ("blk write x 0 --in=", "files"),
        ("input record x ", "files"),
        ("balloon stats x --cgroup ", "dirs"),
    ],
)
def test_files_are_the_shells(line: str, kind: str) -> None:
    assert complete(split_line(line)) == (kind, [])


def test_names_that_a_shell_would_have_to_quote_are_left_out(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    fake.vdpa("$(reboot)", driver=None)
    fake.vdpa("good-1.2", driver=None, index=1)
    _, found = complete(["inspect", "--root", str(tmp_path), "vdpa:"])
    assert [value for value, _ in found] == ["vdpa:good-1.2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a ", ["a", ""]),
        ("a  b\tc", ["a", "b", "c"]),
        ("a 'b c", ["a", "b c"]),
        ("a \"b\\\"c\\d", ["a", 'b"c\\d']),
        ("a b\\ c", ["a", "b c"]),
        ("a '' ", ["a", "", ""]),
        ("a \\", ["a", "\\"]),
        ("a 0000:00:0", ["a", "0000:00:0"]),
    ],
)  # fmt: skip
def test_words_of_a_line(line: str, words: list[str]) -> None:
    assert split_line(line) == words


_WORDS = st.one_of(
    st.sampled_from(
        [*table.VERBS, *table.COMMON, *table.OPENING, "--", "-", "--ring=", "qemu:", "qemu:pc,x=/", ""]
    ),
    st.text(max_size=8),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(_WORDS, min_size=1, max_size=5))
def test_whatever_is_typed_the_candidates_begin_with_it(words: list[str], tree: Path) -> None:
    _, found = complete(["--root", str(tree), *words])
    assert all(value.startswith(words[-1]) and value.isprintable() and "\t" not in what for value, what in found)


# --- the process ----------------------------------------------------------------------------------------------


def ask(mode: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uvirtio", *words],
        env={**os.environ, "_UVIRTIO_COMPLETE": mode},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_the_process_answers_in_lines(tree: Path) -> None:
    done = ask("words", "inspect", "--root", str(tree), "0000:00:02")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "words\t0000:00:02\n0000:00:02.0\trng, virtio-pci\n"
    assert ask("line", f"uvirtio inspect --root {tree} '0000:00:02").stdout == done.stdout


@pytest.mark.parametrize("mode", ["complete_bash", "source_zsh", "", "1"])
def test_a_question_of_another_version_is_not_answered(mode: str) -> None:
    # typer's own scripts ask so; what they would make of our lines is anybody's guess.
    done = ask(mode, "ba")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_an_error_says_nothing_on_the_users_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from uvirtio.cli.completion import candidates

    def failing(words: list[str]) -> None:
        raise ValueError(words)

    monkeypatch.setattr(candidates, "complete", failing)
    assert answer("words", ["list", ""]) == 1
    assert capfd.readouterr() == ("", "")


def test_an_answer_loads_what_it_needs_and_no_more(tree: Path) -> None:
    script = (
        "import sys; from uvirtio.cli import main; main(); "
        "print(*sorted(sys.modules), file=sys.stderr)"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, "diag", "--root", str(tree), "0000:00:02"],
        env={**os.environ, "_UVIRTIO_COMPLETE": "words"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    loaded = set(done.stderr.split())
    assert "0000:00:02.0" in done.stdout and "uvirtio.binding.discover" in loaded
    heavy = (
        "typer",
        "click",
        "rich",
        "pydantic",
        "pyudev",
        "ctypes",
        "json",
        "uvirtio.cli.app",
        "uvirtio.cli.verbs",
    )
    heavy += ("uvirtio.device", "uvirtio.drivers", "uvirtio.backends", "uvirtio.diag", "uvirtio.binding.rules")
    assert not {name for name in loaded if name in heavy or name.startswith(tuple(f"{one}." for one in heavy))}


# --- what is generated ----------------------------------------------------------------------------------------


def test_the_table_and_the_man_pages_are_those_of_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tools/gen-cli"), "--check"], capture_output=True, text=True, timeout=LIMIT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "run tools/gen-cli"


def test_the_rules_are_those_that_force_takes(tree: Path) -> None:
    from uvirtio.binding.discover import find
    from uvirtio.host.roots import Roots

    roots = Roots.under(tree)
    with pytest.raises(UsageError) as caught:
        plan.plan(find("0000:00:02.0", roots), roots, None, False, ["no such rule"])
    assert sorted(table.RULES) == caught.value.expected.split(", ")


# --- scripts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", install.SHELLS)
def test_show_prints_that_shells_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-completion", shell]) == 0
    out = capsys.readouterr().out
    assert f"for {shell}" in out
    assert out == install.script(shell)


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
@pytest.mark.parametrize("shell", ["tcsh", "", "../bash"])
def test_an_unknown_shell_is_an_error(option: str, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option, shell]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "expected: bash, zsh, fish" in err


@pytest.mark.parametrize(
    ("shell", "variable", "place"),
    [
        ("bash", "HOME", ".local/share/bash-completion/completions/uvirtio"),
        ("bash", "XDG_DATA_HOME", "bash-completion/completions/uvirtio"),
        ("bash", "BASH_COMPLETION_USER_DIR", "completions/uvirtio"),
        ("zsh", "HOME", ".local/share/zsh/site-functions/_uvirtio"),
        ("zsh", "XDG_DATA_HOME", "zsh/site-functions/_uvirtio"),
        ("fish", "HOME", ".config/fish/completions/uvirtio.fish"),
        ("fish", "XDG_CONFIG_HOME", "fish/completions/uvirtio.fish"),
    ],
)
def test_install_writes_one_file_and_says_which(
    shell: str,
    variable: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, str(tmp_path / "home"))
    assert main(["--install-completion", shell]) == 0
    out = capsys.readouterr().out
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert written == [tmp_path / "home" / place]
    assert written[0].read_text() == install.script(shell)
    assert f"wrote {written[0]}\n" in out and f"rm {written[0]}" in out
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    (tmp_path / "home").write_text("no directory")
    assert main(["--install-completion", shell]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_home_directory_it_is_told_where_the_script_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service's user has none; and a relative path of a variable is to be ignored (XDG Base Directory)."""
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "here")
    for home in (None, "here"):
        monkeypatch.setattr(Path, "home", classmethod(lambda _, home=home: _home(home)))
        assert main(["--install-completion", "bash"]) == 1
        told = capsys.readouterr().err
        assert told.startswith("uvirtio: UV-OPERATION: this user has no home") and "--show-completion bash" in told
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("BASH_COMPLETION_USER_DIR", f"{tmp_path}/a b:/elsewhere")
    assert main(["--install-completion", "bash"]) == 0
    assert [*tmp_path.rglob("uvirtio")] and f"rm '{tmp_path}/a b/completions/uvirtio'" in capsys.readouterr().out


def _home(text: str | None) -> Path:
    if text is None:
        raise RuntimeError("Could not determine home directory.")
    return Path(text)


# --- real shells ----------------------------------------------------------------------------------------------

# What is typed, \t for TAB, and the words that the command is started with.
CASES = {
    "verb": ("ins\t 0000:00:02.0", "inspect 0000:00:02.0"),
    "address": ("inspect 0000:00:02\t", "inspect 0000:00:02.0"),
    "right-after-a-colon": ("inspect 0001:\t", "inspect 0001:00:02.0"),
    "in-two-steps": ("inspect 0000:\t3\t", "inspect 0000:00:03.0"),
    "short": ("bind 00:03\t", "bind 00:03.0"),
    "two-devices": ("bind 0000:00:02.0 0000:00:04\t", "bind 0000:00:02.0 0000:00:04.0"),
    "of-its-type": ("balloon status 0\t", "balloon status 0000:00:04.0"),
    "in-quotes": ("inspect '0000:00:03\t", "inspect 0000:00:03.0"),
    "in-double-quotes": ('inspect "0001:\t', "inspect 0001:00:02.0"),
    "node": ("inspect /dev/vh\t", "inspect /dev/vhost-vdpa-0"),
    "vdpa": ("inspect vdpa:\t", "inspect vdpa:vduse0"),
    "type-as-address": ("plan rn\t", "plan rng"),
    "qemu": ("diag qe\tvirtio-r\t", "diag qemu:virtio-rng-pci"),
    "qemu-machine": ("diag qemu:pc\tvirtio-ta\t", "diag qemu:pc/virtio-tablet-pci"),
    "qemu-key": ("diag qemu:q35,ra\t1G/virtio-me\t", "diag qemu:q35,ram=1G/virtio-mem-pci"),
    "option": ("diag x --inter\t polling", "diag x --interrupts polling"),
    "interrupts": ("diag x --interrupts msix-s\t", "diag x --interrupts msix-shared"),
    "after-equals-sign": ("diag x --backend=vfio-c\t", "diag x --backend=vfio-cdev"),
    "ring": ("diag x --ring pa\t", "diag x --ring packed"),
    "rule": ("bind x --force mou\t", "bind x --force mounted"),
    "type": ("list ballo\t", "list balloon"),
    "led": ("input led x caps\t on", "input led x capsl on"),
    "file": ("rng read x 1 -o some-f\t", "rng read x 1 -o some-file"),
    "directory": ("balloon stats x --cgroup some-d\t", "balloon stats x --cgroup some-directory/"),
    "nothing": ("inspect 0000:00:1f\t", "inspect 0000:00:1f"),  # not a virtio device
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """A directory with a ``uvirtio`` that answers shells, and notes its words when it is started for good."""
    made = tmp_path_factory.mktemp("home")
    (made / "bin").mkdir()
    program = made / "bin/uvirtio"
    answer_or_say = (
        f'[ -n "$_UVIRTIO_COMPLETE" ] && exec {sys.executable} -m uvirtio "$@"\necho "$*" >>{made}/said\n'
    )
    program.write_text(f"#!/bin/sh\n{answer_or_say}")
    program.chmod(0o755)
    (made / "said").touch()
    (made / "some-file").touch()
    (made / "some-directory").mkdir()
    (made / "tree").symlink_to(tree)
    for shell in install.SHELLS.values():
        shutil.copy(Path(install.__file__).parent / shell.script, made)
    return made


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "TERM": "vt100",
        "LC_ALL": "C.UTF-8",
    }


class Session:
    """An interactive shell behind a terminal."""

    def __init__(self, home: Path, *argv: str) -> None:
        self._said = home / "said"
        self.shown = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvpe(argv[0], argv, environment(home))
        self._until(lambda: b"READY" in self.shown)

    def type(self, text: str) -> str:
        """Type a command line and wait for the words that it comes down to."""
        before = len(self._told())
        os.write(self.terminal, f"uvirtio --root tree {text}\r".encode())
        self._until(lambda: len(self._told()) > before)
        return self._told()[-1].removeprefix("--root tree ")

    def _told(self) -> list[str]:
        return self._said.read_text().splitlines()

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not done():
            assert time.monotonic() < deadline, self.shown[-2000:].decode(errors="replace")
            if readable(self.terminal, 0.02):
                self.shown += os.read(self.terminal, 4096)

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


def shell_or_skip(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def bash(home: Path) -> Iterator[Session]:
    shell_or_skip("bash")
    rc = home / "bashrc"
    rc.write_text("PS1=READY\nbind 'set bell-style none'\nsource uvirtio.bash\n")
    session = Session(home, "bash", "--noprofile", "--rcfile", str(rc), "-i")
    yield session
    session.close()


@pytest.fixture(scope="module")
def zsh(home: Path) -> Iterator[Session]:
    shell_or_skip("zsh")
    (home / ".zshrc").write_text(
        f"PROMPT=READY\nfpath=({home} $fpath)\nautoload -Uz compinit\ncompinit -u -D\nunsetopt beep\n"
    )
    session = Session(home, "zsh", "--no-globalrcs", "-i")
    yield session
    session.close()


@pytest.mark.parametrize(("typed", "expected"), CASES.values(), ids=CASES)
def test_in_bash(bash: Session, typed: str, expected: str) -> None:
    assert bash.type(typed) == expected


@pytest.mark.parametrize(("typed", "expected"), CASES.values(), ids=CASES)
def test_in_zsh(zsh: Session, typed: str, expected: str) -> None:
    assert zsh.type(typed) == expected.rstrip("/")  # zsh takes the slash back when the line ends there


def test_sourced_in_zsh(home: Path) -> None:
    shell_or_skip("zsh")
    done = subprocess.run(
        ["zsh", "-f", "-c", "autoload -Uz compinit; compinit -u -D; source _uvirtio; print $_comps[uvirtio]"],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stdout == "_uvirtio\n"


@pytest.mark.parametrize(("typed", "expected"), CASES.values(), ids=CASES)
def test_in_fish(home: Path, typed: str, expected: str) -> None:
    """``complete -C`` is fish's own way to ask what TAB would offer; each TAB is asked in turn."""
    shell_or_skip("fish")
    line = "uvirtio --root tree "
    for piece in typed.split("\t")[:-1] if "\t" in typed else []:
        line += piece
        done = subprocess.run(
            ["fish", "--no-config", "-c", "source uvirtio.fish; complete -C $argv[1]", line],
            cwd=home,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.stderr == ""
        offered = [one.split("\t")[0] for one in done.stdout.splitlines()]
        *before, _ = line.replace("'", "").replace('"', "").split(" ")
        if offered:
            line = " ".join([*before, os.path.commonprefix(offered)])  # noqa: RUF071  # of words, as a shell has it
    line += typed.split("\t")[-1]
    assert line.removeprefix("uvirtio --root tree ") == expected


def test_a_vhost_user_device_is_completed_by_parts(values: Callable[[str], list[str]], tmp_path: Path) -> None:
    assert values("blk info vhost-user:") == ["vhost-user:qsd/", "vhost-user:blk:"]
    assert values("rng read vhost-user:") == ["vhost-user:rng:"]
    assert values("balloon status vhost") == []
    assert "vhost-user:qsd,queues=" in values("diag vhost-user:qsd,q")
    (tmp_path / "image").touch()
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        for start, ends in ((f"vhost-user:blk:{tmp_path}/", "socket"), (f"vhost-user:qsd/{tmp_path}/", "image")):
            assert sorted(values(f"diag {start}")) == sorted([f"{start}folder/", f"{start}{ends}"])
    binary = f"vhost-user:qsd,binary={tmp_path}/"
    assert sorted(values(f"diag {binary}")) == [f"{binary}folder/", f"{binary}image"]
    assert "vhost-user:qsd,binary=/nothing/qsd,queues=" in values("diag vhost-user:qsd,binary=/nothing/qsd,q")
    assert f"{binary}image/{tmp_path}/folder/" in values(f"diag {binary}image/{tmp_path}/f")
    assert values("diag vhost-user:blk:/nonesuch/") == []
    assert values("diag vhost-user:fs,") == ["vhost-user:fs,tag=", "vhost-user:fs,exec="]
    assert values("inspect vhost-user:net,m") == ["vhost-user:net,mac="]


def test_a_scripted_device_is_completed_by_parts(values: Callable[[str], list[str]]) -> None:
    assert values("diag scripted:rn") == ["scripted:rng"]
    assert values("blk info scripted:") == ["scripted:blk"]
    assert "scripted:blk,silent" in values("diag scripted:blk,sil")
    assert "scripted:blk,silent,used-len=" in values("diag scripted:blk,silent,used-l")
    assert values("diag scripted:nonesuch,") == []
