"""``uvirtio explain``: what a code, a finding, a status byte or a feature word means. It needs no device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, verb
from uvirtio.errors import UsageError

if TYPE_CHECKING:
    from uvirtio.evidence.explain import Page

_KINDS = {
    "error": "error code",
    "cause": "cause that diag names",
    "step": "step of diag",
    "status": "device status",
    "features": "feature word",
    "feature": "feature bit",
}


def register(app: typer.Typer) -> None:
    """Add ``explain`` to the application."""
    verb(app, "explain")(explain)


def explain(
    cmd: Command,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[WHAT]",
            help="UV-..., a cause or step of diag, a status byte, a feature; or TYPE before WORD.",
        ),
    ] = "",
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="A feature word, or a bit, of TYPE.")] = "",
    every: Annotated[bool, typer.Option("--all", help="List every code, cause and step.")] = False,
) -> None:
    """Explain an error code, a finding of diag, a status byte or a feature word: causes, and what to do next."""
    from uvirtio.evidence import explain as pages

    if every:
        if what:
            raise UsageError("--all lists everything", seen=what, expected="explain --all, or explain WHAT")
        found = pages.everything()
        if cmd.json:
            cmd.document(pages=[page.as_dict() for page in found])
        else:
            cmd.table(("NAME", "IS", "MEANS"), [(page.name, page.kind, page.means) for page in found])
        return
    if not what:
        raise UsageError(
            "explain what?",
            expected=pages.KINDS,
            remedy="uvirtio explain --all lists every name",
        )
    found = pages.explain(what, word)
    if cmd.json:
        cmd.document(pages=[page.as_dict() for page in found])
        return
    for index, page in enumerate(found):
        if index:
            cmd.line()
        _print(cmd, page)


def _print(cmd: Command, page: Page) -> None:
    about = [_KINDS[page.kind]]
    if page.exit_code is not None:
        about.append(f"exit code {page.exit_code}")
    if page.section:
        about.append(f"virtio 1.4, {page.section}" if page.section[0].isdigit() else page.section)
    cmd.line(f"{page.name}: {', '.join(about)}")
    cmd.paragraph(page.means, indent="  ")
    for name, means in page.parts:
        cmd.paragraph(f"{name}: {means}", indent="    ")
    for text in page.causes:
        cmd.paragraph(f"likely: {text}", indent="  ")
    for text in page.next:
        cmd.paragraph(f"try: {text}", indent="  ")
