"""The reference of the command line, from the same declarations as `--help`."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from dori import cli

KINDS = {
    "str": "text",
    "list[str]": "text ...",
    "int range": "int",
    "float range": "float",
    "bool": "yes or no",
}


def commands_part() -> str:
    """Every command of `dori` with its options, as Markdown."""
    cli.add_testbed()
    command = get_command(cli.app)
    tell_whole(command)
    context = typer.Context(command, info_name="dori")
    text = get_docs_for_click(obj=command, ctx=context, name="dori")
    for kind, words in KINDS.items():
        text = text.replace(f"<{kind}>`", f"<{words}>`")
    return re.sub(r"\{([a-z_]+)\}", lambda found: found[1].upper(), text)  # as their help calls arguments


def tell_whole(command: Any) -> None:
    """Let lists of commands have the first paragraph of each one's help: it would be cut at 45 characters."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = " ".join((inner.help or "").split("\n\n")[0].split())
        tell_whole(inner)
