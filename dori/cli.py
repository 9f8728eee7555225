"""`dori …`: the study without a notebook. Mistakes cost one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dori.classroom.cli import app as classroom
from dori.commands import attack, evaluate, locality, mitigate
from dori.errors import DoriError
from dori.terminal import console, warnings_as_lines

app = typer.Typer(name="dori", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(classroom, name="classroom")
MEMORY_FULL = "the GPU's memory is full: --dtype bfloat16 halves the weights, or take a larger GPU"
INTERRUPTED = 130  # as a shell says it


@app.callback()
def _dori() -> None:
    """Measure, localise, attack and erase memorized images in text-to-image diffusion models."""


for command in (evaluate, attack, locality, mitigate):
    app.command()(command)


@app.command()
def benchmark(
    file: Annotated[str, typer.Argument(help="CSV, .jsonl or .parquet; see the guide for columns")],
    out: Annotated[
        Path | None, typer.Option(help="directory for its usable rows, with copies of their images")
    ] = None,
    *,
    again: Annotated[
        bool, typer.Option("--again", help="ask anew for images that were refused before")
    ] = False,
) -> None:
    """Check a benchmark and fetch its images: how many rows can be used, and why others cannot."""
    from dori.benchmark import load_benchmark, readable, write_benchmark
    from dori.terminal import benchmark_table

    found = readable(load_benchmark(file, strict=False, again=again))
    console.print(benchmark_table(found))
    if out is not None:
        console.print(f"{write_benchmark(found, out.expanduser())}", soft_wrap=True, markup=False)


@app.command()
def status(
    run: Annotated[
        Path, typer.Argument(help="the `--out` of an evaluation, an attack, a mitigation or a locality run")
    ],
) -> None:
    """Say how far a run is: items done of items asked for, rows left out, last write, versions, machine."""
    from dori.status import read_status
    from dori.terminal import status_table

    found = read_status(run)
    console.print(status_table(found))
    for name, reason in found.left_out.items():
        console.print(f"left out: {name}: {reason}", soft_wrap=True, markup=False)


@app.command()
def models() -> None:
    """List the models known by name: where they lie, licence, weights in memory, how they are sampled."""
    from dori.terminal import models_table

    console.print(models_table())
    console.print(
        "GB: weights in float32 / in half precision; tuning: float32 with AdamW's state\n"
        "of the denoiser. Activations come on top. Gated: accept the licence on the Hub,\n"
        "then `hf auth login` or HF_TOKEN."
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="a pickled checkpoint: .ckpt, .bin, .pt, .pth")],
    out: Annotated[Path | None, typer.Option(help="file to write", show_default="FILE.safetensors")] = None,
) -> None:
    """Write the tensors of a pickled checkpoint as safetensors; nothing in it is run."""
    from dori.convert import convert as run

    if not source.is_file():
        raise DoriError(f"{source} is not here")
    console.print(f"{run(source, out)}", soft_wrap=True)


@app.command()
def check() -> None:
    """Say what is installed, which device would be used, and whether the bundled testbed is whole."""
    import torch

    from dori.loading import BUNDLED, bundled_path, load_pipeline, resolve_device
    from dori.store import versions

    table = Table("part", "state", show_edge=False)
    for package, version in versions().items():
        table.add_row(package, version or "missing")
    table.add_row("device", f"{resolve_device()}, {torch.get_num_threads()} threads")
    for name in BUNDLED:
        load_pipeline(name)
        table.add_row(name, str(bundled_path(name)))
    console.print(table)


def add_testbed() -> None:
    """`dori testbed …` comes with the testbed's own module; once, however often this is called."""
    if any(group.name == "testbed" for group in app.registered_groups):
        return
    if find_spec("dori.testbed.cli") is None:  # the package without the testbed's sources
        return
    app.add_typer(import_module("dori.testbed.cli").app, name="testbed")


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for anything the user can mend, 130 for an interruption."""
    try:
        add_testbed()
        with warnings_as_lines():
            code = app(args=arguments, standalone_mode=False)
        _leave()
        if code == INTERRUPTED:  # typer catches Ctrl-C itself, and says nothing
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except DoriError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a directory without permission
        return _fail(f"{error.strerror or error} ({error.filename or 'while writing'})")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's: it loads with the commands
            raise
        return _fail(f"{MEMORY_FULL}; what was written before is kept")
    except typer.TyperException as error:
        return _fail(" ".join(error.format_message().split()) + " (see --help)")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("dori: interrupted; the same command goes on from here", err=True)
        return INTERRUPTED


def _leave() -> None:
    """Close the group of processes, where `accelerate launch` made one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from dori import parallel

        parallel.leave()


def _fail(line: str) -> int:
    typer.echo(f"dori: {line}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
