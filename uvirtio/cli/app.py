"""The command ``uvirtio``: its verbs, and what becomes of a command line before one of them runs."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import NoReturn

from uvirtio.cli import command, output, plain
from uvirtio.cli.command import BROKEN_PIPE, FLAGS, VALUED, Command, Invocation, perform
from uvirtio.cli.deferred import Typer, Verb
from uvirtio.errors import UsageError, UvirtioError

_GROUPS = ("balloon", "rng", "input", "mem", "blk", "scsi", "net")

_VERBS = {
    "list": "list",
    "inspect": "inspect",
    "doctor": "doctor",
    "plan": "bind",
    "bind": "bind",
    "restore": "bind",
    "journal": "bind",
    "diag": "diag",
    "reset": "diag",
    "conform": "conform",
    "features": "features",
    "watch": "watch",
    "top": "top",
    "dump": "dump",
    "diff": "dump",
    "report": "report",
    "explain": "explain",
    "replay": "replay",
    "balloon": "balloon",
    "rng": "rng",
    "input": "input",
    "mem": "mem",
    "blk": "blk",
    "scsi": "scsi",
    "net": "net",
}
"""The module of each verb. Only the verb's module is loaded."""


def make_tree(verb: str = "") -> Typer:
    """The verbs of the command.

    Args:
        verb: Only those of this verb's module; all of them where that is no verb.
    """
    tree = Typer()
    for module in [_VERBS[verb]] if verb in _VERBS else dict.fromkeys(_VERBS.values()):
        import_module(f"uvirtio.cli.verbs.{module}").register(tree)
    return tree


def run(argv: list[str]) -> int:
    """Run one command; no exception leaves it.

    Args:
        argv: The arguments, which may hold anything.

    Returns:
        The exit code.
    """
    output.prepare()
    try:
        return _run(argv)
    finally:
        output.settle()


def _run(argv: list[str]) -> int:
    outer = Command(_command_of(argv), json=_wants_json(argv), verbose="-v" in argv or "--verbose" in argv)
    try:
        code = invoke(Invocation(tuple(_verb_first(argv) or ["--help"])))
    except KeyboardInterrupt:
        return 130
    except UvirtioError as error:  # before OSError: some are OSErrors, too
        return perform(outer, partial(_raise, error))
    except OSError as error:  # from stdout, where typer writes the help
        return perform(outer, partial(_raise, output.OutputFailed(error)))
    except SystemExit as leaving:  # typer's own reaction to `--help | head`
        if isinstance(leaving.__context__, BrokenPipeError):
            return BROKEN_PIPE
        return leaving.code if isinstance(leaving.code, int) else 0
    except BaseException as error:  # noqa: BLE001  # reported as perform reports every error
        return perform(outer, partial(_raise, error))
    return code if argv else UsageError.exit_code


def _raise(error: BaseException) -> NoReturn:
    raise error


def invoke(invocation: Invocation) -> int:
    """Run one command: its words as they stand where they are plain, and otherwise as typer reads them.

    Args:
        invocation: The command; its words are not empty.

    Returns:
        The exit code.

    Raises:
        UsageError: The words have a mistake.
    """
    words = [*invocation.words]
    verb = next((word for word in words if not word.startswith("-")), "")
    tree = make_tree(verb) if verb in _VERBS else None
    if tree is not None and (found := _find(tree, words)) is not None:
        one, rest = found
        given = plain.read(one, rest)
        if given is not None:
            return command.run(one, given, invocation)
    from uvirtio.cli import parser

    app = parser.make_summary(_VERBS) if tree is None else parser.make_app(tree, options=words[0] != verb)
    return parser.run(app, invocation)


def _find(tree: Typer, words: list[str]) -> tuple[Verb, list[str]] | None:
    """The verb that the words begin with, and the words behind it."""
    group = tree.groups.get(words[0])
    at = 0 if group is None else 1
    one = (group or tree).verbs.get(words[at]) if len(words) > at else None
    return None if one is None else (one, words[at + 1 :])


def _wants_json(argv: list[str]) -> bool:
    words = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in words or "--jsonl" in words


def _command_of(argv: list[str]) -> str:
    """The command that was most likely meant, for the member ``command`` of an error's document."""
    words = [word for word in _verb_first(argv) if not word.startswith("-")]
    count = 2 if words and words[0] in _GROUPS else 1
    return " ".join(words[:count])


def _verb_first(argv: list[str]) -> list[str]:
    """Common options before the verb, moved behind it: ``uvirtio --json list`` is ``uvirtio list --json``."""
    rest = list(argv)
    moved: list[str] = []
    verbs: list[str] = []
    while rest:
        word = rest[0]
        if word in VALUED:
            moved += rest[:2]
            del rest[:2]
        elif word in FLAGS or (word.startswith("--") and word.partition("=")[0] in VALUED):
            moved.append(rest.pop(0))
        elif word.startswith("-") or (verbs and verbs[0] not in _GROUPS) or len(verbs) == 2:
            break
        else:
            verbs.append(rest.pop(0))
    return [*verbs, *moved, *rest] if verbs else rest
