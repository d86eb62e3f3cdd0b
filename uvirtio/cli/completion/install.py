"""The completion scripts, and the directories where shells look for those of a user."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from uvirtio.errors import OperationFailed, UsageError
from uvirtio.host.whole import write_whole


class _Shell(NamedTuple):
    script: str
    """The file beside this one."""
    variables: tuple[tuple[str, str], ...]
    """Environment variables that name a directory, and the path below it; the first that is set counts."""
    home: str
    """The directory below the home directory, if none of the variables is set."""
    name: str
    loads: str
    """When a shell reads the file."""


SHELLS = {
    "bash": _Shell(
        "uvirtio.bash",
        (("BASH_COMPLETION_USER_DIR", "completions"), ("XDG_DATA_HOME", "bash-completion/completions")),
        ".local/share/bash-completion/completions",
        "uvirtio",
        "new shells load it if the package bash-completion is installed and active; without it, add to ~/.bashrc: "
        "source {path}",
    ),
    "zsh": _Shell(
        "_uvirtio",
        (("XDG_DATA_HOME", "zsh/site-functions"),),
        ".local/share/zsh/site-functions",
        "_uvirtio",
        "new shells load it if its directory is in fpath; if it is not, add to ~/.zshrc, before compinit: "
        "fpath=({directory} $fpath)",
    ),
    "fish": _Shell(
        "uvirtio.fish",
        (("XDG_CONFIG_HOME", "fish/completions"),),
        ".config/fish/completions",
        "uvirtio.fish",
        "new shells load it",
    ),
}


def script(shell: str) -> str:
    """The completion script of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.

    Raises:
        UsageError: There is no script for it.
    """
    return (Path(__file__).parent / _known(shell).script).read_text(encoding="utf-8")


def install(shell: str) -> list[str]:
    """Write the completion script to where the shell looks for it, and change nothing else.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.

    Returns:
        Lines that say what was done.

    Raises:
        UsageError: There is no script for it.
        OperationFailed: The file cannot be written.
    """
    known, text = _known(shell), script(shell)
    path = _directory(known, shell) / known.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(str(path), text.encode(), 0o666)
    except OSError as error:
        raise OperationFailed(
            f"{path} cannot be written",
            seen=error.strerror,
            expected="a directory that this user may write",
            remedy=_elsewhere(shell),
        ) from error
    return [
        f"wrote {path}",
        known.loads.format(path=shlex.quote(str(path)), directory=shlex.quote(str(path.parent))),
        f"to remove it: rm {shlex.quote(str(path))}",
    ]


def _known(shell: str) -> _Shell:
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for {shell!r}", seen=shell, expected=", ".join(SHELLS))
    return SHELLS[shell]


def _directory(shell: _Shell, name: str) -> Path:
    for variable, below in shell.variables:
        base = os.environ.get(variable, "").split(":")[0]  # bash-completion 2.12 takes a list
        if os.path.isabs(base):  # noqa: PTH117  # others are to be ignored (XDG Base Directory Specification)
            return Path(base) / below
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise OperationFailed(
            "this user has no home directory to put the script in",
            seen=f"HOME={os.environ.get('HOME', '')}",
            expected="HOME, or an entry of the user database",
            remedy=_elsewhere(name),
        )
    return home / shell.home


def _elsewhere(name: str) -> str:
    return f"uvirtio --show-completion {name} prints the script, to put it elsewhere"
