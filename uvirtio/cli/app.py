"""The command ``uvirtio``: its verbs, and the parsing before one of them runs."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from uvirtio.cli import conversion, output
from uvirtio.cli.command import BROKEN_PIPE, FLAGS, VALUED, Command, Invocation, perform
from uvirtio.errors import UsageError, UvirtioError

_GROUPS = ("balloon", "rng", "input", "mem", "blk", "scsi", "net")

# BadParameter < UsageError < ClickException: typer does not export the last two.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


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
"""The module of each verb. Typer takes milliseconds for each option, so only the verb's module is loaded."""


def make_app(verb: str = "", *, options: bool = True) -> typer.Typer:
    """The typer application.

    Args:
        verb: Register only this verb's module; all of them where that is no verb.
        options: With the options of uvirtio itself, which stand before the verb.
    """
    app = _bare_app(options)
    modules = [_VERBS[verb]] if verb in _VERBS else dict.fromkeys(_VERBS.values())
    for module in modules:
        import_module(f"uvirtio.cli.verbs.{module}").register(app)
    return app


def make_summary() -> typer.Typer:
    """The application for a command line without a known verb, such as ``uvirtio --help``.

    Its verbs have names and first sentences, from the table of shell completion, and cannot be run. Making their
    options, too, takes longer than all the rest.
    """
    from uvirtio.cli.completion import table

    app = _bare_app(options=True)
    for verb in _VERBS:
        text = table.GROUPS[verb] if verb in table.GROUPS else table.VERBS[verb][0]
        app.command(verb, help=f"{text}.")(_no_verb)
    return app


def _no_verb() -> NoReturn:
    raise UsageError("the verb comes first", remedy="see: uvirtio --help")


def _bare_app(options: bool) -> typer.Typer:
    app = typer.Typer(
        name="uvirtio",
        help="Drive virtio devices from user space. DEV is an address: 0000:03:00.0, or qemu:virtio-rng-pci.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        cls=conversion.Group,
        add_completion=False,  # cli/completion answers without importing typer, and completes addresses
        # Importing rich takes a tenth of a second, so it is used only on a terminal, which shows its frames.
        rich_markup_mode="rich" if output.coloured() else None,
    )
    app.callback()(_before if options else _plainly)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from uvirtio import __version__

        output.line(f"uvirtio {__version__}")
        raise typer.Exit


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        from uvirtio.cli.completion.install import script

        output.write(script(shell))
        raise typer.Exit


def _install_completion(shell: str | None) -> None:
    if shell is not None:
        from uvirtio.cli.completion.install import install

        for text in install(shell):
            output.line(text)
        raise typer.Exit


def _plainly() -> None:
    """Stands in for ``_before`` where a verb comes first: no option of uvirtio itself can follow."""


def _before(
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    show_completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            metavar="SHELL",
            callback=_show_completion,
            is_eager=True,
            help="Print the completion script of bash, zsh or fish.",
        ),
    ] = None,
    install_completion: Annotated[
        str | None,
        typer.Option(
            "--install-completion",
            metavar="SHELL",
            callback=_install_completion,
            is_eager=True,
            help="Write that script to where SHELL looks for it, and say where.",
        ),
    ] = None,
) -> None:
    """Drive virtio devices from user space. DEV is an address: 0000:03:00.0, or qemu:virtio-rng-pci."""


def run(argv: list[str], *, own_process: bool = False) -> int:
    """Run one command; no exception leaves it.

    Args:
        argv: The arguments, which may hold anything.
        own_process: The process runs nothing but this command.

    Returns:
        The exit code.
    """
    output.prepare()
    try:
        return _run(argv, own_process)
    finally:
        output.settle()


def _run(argv: list[str], own_process: bool) -> int:
    outer = Command(_command_of(argv), json=_wants_json(argv), verbose="-v" in argv or "--verbose" in argv)
    help_only = not argv
    try:
        words = _verb_first(argv) or ["--help"]
        verb = next((word for word in words if not word.startswith("-")), "")
        app = make_app(verb, options=words[0] != verb) if verb in _VERBS else make_summary()
        invocation = Invocation(tuple(words), own_process=own_process)
        code = app(words, prog_name="uvirtio", standalone_mode=False, obj=invocation)
    except _ClickException as error:
        return perform(outer, partial(_usage, error))
    except (typer.Abort, KeyboardInterrupt):
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
    if help_only:
        return UsageError.exit_code
    return code if isinstance(code, int) else 0


def _raise(error: BaseException) -> NoReturn:
    raise error


def _usage(error: Exception) -> NoReturn:
    """A mistake that the parser of the command line found, as a ``UsageError``."""
    path = getattr(getattr(error, "ctx", None), "command_path", None) or "uvirtio"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    raise UsageError(
        message.strip().rstrip(".") or "this command line is not understood",
        remedy=f"see: {path} --help",
    )


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
