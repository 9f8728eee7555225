"""`dori classroom …`: hand out the assignments, and rank the defences that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Assignments for classes: an nbgrader course, and a leaderboard.", no_args_is_help=True
)


@app.command()
def release(
    directory: Annotated[Path, typer.Argument(help="course directory; made, or written anew")],
    seed: Annotated[int, typer.Option(help="of images and noise: another seed, another variant")] = 0,
) -> None:
    """Write an nbgrader course to DIRECTORY: source/ with solutions, release/ for students."""
    from dori.classroom.course import release as write

    for path in write(directory, seed=seed):
        typer.echo(path)


@app.command()
def leaderboard(
    directory: Annotated[Path, typer.Argument(help="course directory with submitted/")],
    seed: Annotated[int, typer.Option(help="of the images and noise the defences are judged by")] = 1,
) -> None:
    """Put every defence handed in for assignment 4 before the held-out attacker. Runs the students' code."""
    from dori.classroom.course import leaderboard as judge

    found, refused = judge(directory, seed=seed)
    table = Table("defence", *found.columns, show_edge=False)
    for name, row in found.iterrows():
        table.add_row(str(name), *map(str, row))
    Console(width=120).print(table)
    for student, reason in refused.items():
        typer.echo(f"{student}: not on the board ({reason})")
