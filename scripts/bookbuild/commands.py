"""The reference of the command line, from the same declarations as `--help`."""

from __future__ import annotations

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from dori import cli


def commands_part() -> str:
    """Every command of `dori` with its options, as Markdown."""
    cli.add_testbed()
    command = get_command(cli.app)
    context = typer.Context(command, info_name="dori")
    return get_docs_for_click(obj=command, ctx=context, name="dori")
