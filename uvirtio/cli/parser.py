"""The command line as typer reads it: words that are not plain, mistakes, help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

import typer

from uvirtio.cli import command, conversion, deferred, output
from uvirtio.cli.command import Invocation
from uvirtio.errors import UsageError

# BadParameter < UsageError < ClickException: typer does not export the last two.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


def make_app(tree: deferred.Typer, *, options: bool = True) -> typer.Typer:
    """The typer application.

    Args:
        tree: Its verbs.
        options: With the options of uvirtio itself, which stand before the verb.
    """
    app = _bare_app(options)
    _add_verbs(app, tree)
    for name, group in tree.groups.items():
        made = typer.Typer(help=group.help, cls=conversion.Group)
        _add_verbs(made, group)
        app.add_typer(made, name=name)
    return app


def make_summary(texts: Mapping[str, str]) -> typer.Typer:
    """The application for a command line without a known verb, such as ``uvirtio --help``.

    Its verbs have names and first sentences, and cannot be run. Making their options, too, takes longer than all
    the rest.

    Args:
        texts: The first sentence of the help of each verb, and of each group.
    """
    app = _bare_app(options=True)
    for verb, text in texts.items():
        app.command(verb, help=f"{text}.")(_no_verb)
    return app


def run(app: typer.Typer, invocation: Invocation) -> int:
    """Run the command that the words say.

    Args:
        app: The application.
        invocation: The command line.

    Returns:
        The exit code.

    Raises:
        UsageError: The words have a mistake.
    """
    try:
        code = app([*invocation.words], prog_name="uvirtio", standalone_mode=False, obj=invocation)
    except _ClickException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", None) or "uvirtio"
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        raise UsageError(
            message.strip().rstrip(".") or "this command line is not understood",
            remedy=f"see: {path} --help",
        ) from None
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _add_verbs(app: typer.Typer, group: deferred.Typer) -> None:
    for name, one in group.verbs.items():
        app.command(name, cls=conversion.Command)(_function(one))


def _function(one: deferred.Verb) -> Callable[..., int]:
    """A function with the parameters of a verb, as typer looks at them, that runs it."""

    def run(**given: Any) -> int:
        invocation = given.pop("context").obj or Invocation()
        return command.run(one, given, invocation)

    def parameter(name: str, annotation: Any, default: Any = deferred.REQUIRED) -> inspect.Parameter:
        default = inspect.Parameter.empty if default is deferred.REQUIRED else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    parameters = []
    for name, each in {**one.own(), **one.common}.items():
        told = getattr(typer, each.told.kind)(*each.told.names, **each.told.more)
        parameters.append(parameter(name, Annotated[each.kind, told], each.default))
    # typer passes the context to what is annotated so; its obj is what the application was called with.
    parameters.append(parameter("context", typer.Context))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer looks at
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = one.body.__doc__
    run.__name__ = one.body.__name__
    return run


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
