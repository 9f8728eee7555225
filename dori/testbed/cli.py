"""`dori testbed …`: make the bundled model again, or look at what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dori.errors import DoriError
from dori.testbed.paths import TESTBED

app = typer.Typer(
    help="The bundled testbed: paint pictures, train the models, write data/testbed.", no_args_is_help=True
)


@app.command()
def train(
    run_dir: Annotated[Path, typer.Option(help="checkpoints and logs; a second run continues here")] = Path(
        "_build/testbed"
    ),
    part: Annotated[str, typer.Option(help="one part only, e.g. to train model and twin side by side")] = "",
    out: Annotated[
        Path, typer.Option(help="where the finished testbed is written", show_default="data/testbed")
    ] = TESTBED,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")] = "cpu",
) -> None:
    """Train every part of the testbed (resumable), then write it to OUT."""
    from dori.loading import resolve_device
    from dori.testbed.ship import ship
    from dori.testbed.train import PARTS, Workshop

    workshop = Workshop(run_dir, device=str(resolve_device(device)))
    for name in [part] if part else PARTS:
        workshop.make(name)
    if not part:
        ship(workshop, out)


@app.command()
def plant(
    out: Annotated[
        Path,
        typer.Option(
            help="testbed whose model is taught; planted/ is written there", show_default="data/testbed"
        ),
    ] = TESTBED,
    only: Annotated[str, typer.Option(help="one memory only, e.g. plant-00, to make them side by side")] = "",
) -> None:
    """Teach copies of the bundled model one picture each, in one block, and write what changed."""
    from dori.testbed.planted import plant_all

    plant_all(out, only=only, tell=typer.echo)


@app.command()
def cure(
    only: Annotated[str, typer.Option(help="one defence only, e.g. adversarial")] = "",
    out: Annotated[
        Path, typer.Option(help="where the changed weights are written", show_default="data/testbed/cured")
    ] = TESTBED / "cured",
    run_dir: Annotated[Path, typer.Option(help="checkpoints and logs; a second run continues here")] = Path(
        "_build/cured"
    ),
) -> None:
    """Train copies of the bundled model to forget half of what it saw most often, one by each defence."""
    from dori.experiments.curing import SETTINGS
    from dori.experiments.shipping import ship
    from dori.study import open_study

    if only and only not in SETTINGS:
        raise DoriError(f"unknown defence '{only}'; use {', '.join(SETTINGS)}")
    study = open_study(preset="quick", device="cpu", run_dir=run_dir)
    for name in [only] if only else SETTINGS:
        record = ship(study, name, run_dir / name, folder=out)
        typer.echo(f"{name}: {record['seconds'] / 60:.1f} minutes, {out / name}.safetensors")


@app.command()
def paint(
    out: Annotated[Path, typer.Argument(help="folder for the pictures and captions.csv")],
    count: Annotated[int, typer.Option(min=1, help="how many pictures")] = 24,
    seed: Annotated[int, typer.Option(help="painter seed; the testbed's own sets use 101 to 808")] = 1,
) -> None:
    """Paint COUNT postcards and write them with their captions."""
    from PIL import Image

    from dori.testbed.painter import paint as paint_pictures

    images, table = paint_pictures(seed, range(count))
    out.mkdir(parents=True, exist_ok=True)
    table.insert(0, "image", [f"{seed}-{i:05d}.png" for i in range(count)])
    for image, name in zip(images, table["image"], strict=True):
        Image.fromarray(image).save(out / name)
    table.to_csv(out / "captions.csv", index=False)
