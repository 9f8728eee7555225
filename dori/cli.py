"""`dori …`: the study without a notebook. Mistakes cost one line on stderr and exit code 2."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dori.errors import DoriError

app = typer.Typer(name="dori", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

ModelOption = Annotated[
    str, typer.Option(help="testbed, twin, a diffusers directory, a .safetensors file or a Hub id")
]
BenchmarkOption = Annotated[
    str, typer.Option(help="CSV of id,prompt,image[,kind][,split]; testbed or regular")
]
PresetOption = Annotated[str, typer.Option(help="smoke, quick, full or paper: prompts, seeds and steps")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]


@app.callback()
def _dori() -> None:
    """Measure, localise, attack and erase memorized images in text-to-image diffusion models."""


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="run directory; a second run computes only what is missing")],
    model: ModelOption = "testbed",
    benchmark: BenchmarkOption = "testbed",
    *,
    preset: PresetOption = "paper",
    device: DeviceOption = "auto",
    descriptor: Annotated[
        str, typer.Option(help="bundled, or the path of an SSCD TorchScript file")
    ] = "bundled",
    seed: Annotated[int, typer.Option(help="seed of the run's noise")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="images per prompt [preset]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="DDIM steps [preset, else the model's]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="guidance scale [the model's]; 1: no guidance")
    ] = None,
) -> None:
    """Draw images for every prompt, score them against the training images, write results and summary."""
    from dori.benchmark import (
        load_benchmark,
    )  # torch and diffusers load with the first command that needs them
    from dori.experiments.evaluate import evaluate as run
    from dori.study import find_preset, open_study

    prompts = find_preset(preset).pick(load_benchmark(benchmark))
    study = open_study(
        model=model,
        benchmark=benchmark,
        preset=preset,
        seed=seed,
        device=device,
        run_dir=out,
        descriptor=descriptor,
    )
    summary = run(study, prompts, study.sampling(seeds=seeds, guidance_scale=guidance, steps=steps))
    console.print(summary_table(summary))
    console.print(f"{out / 'summary.json'}, {study.store.computed} records computed in this run")


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


def summary_table(summary: dict) -> Table:
    """The figures of summary.json for a terminal."""
    title = (
        f"{summary['model']}, {summary['descriptor']} > {summary['threshold']:.2f}, {summary['seeds']} seeds"
    )
    table = Table("kind", "n", "MR [95 %]", "MR over images", "best score", title=title, show_edge=False)
    for kind, found in summary["by_kind"].items():
        mr = found["mr"]
        interval = f"{mr['value']:.3f} [{mr['low']:.3f}, {mr['high']:.3f}]"
        best = f"{found['best_score_median']:.2f} ± {found['best_score_mad']:.2f}"
        table.add_row(kind, str(mr["n"]), interval, f"{found['mr_mean']['value']:.3f}", best)
    return table


def _add_testbed() -> None:
    """`dori testbed …` comes with the testbed's own module."""
    if find_spec("dori.testbed.cli") is None:  # the package without the testbed's sources
        return
    app.add_typer(import_module("dori.testbed.cli").app, name="testbed")


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for anything the user can mend, 130 for an interruption."""
    try:
        _add_testbed()
        code = app(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except DoriError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a directory without permission
        return _fail(f"{error.strerror or error} ({error.filename or 'while writing'})")
    except typer.TyperException as error:
        return _fail(" ".join(error.format_message().split()) + " (see --help)")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("dori: interrupted; the same command goes on from here", err=True)
        return 130


def _fail(line: str) -> int:
    typer.echo(f"dori: {line}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
