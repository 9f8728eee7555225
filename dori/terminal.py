"""What the command line shows, and where: figures of a summary, units of a model, a line for each warning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

if TYPE_CHECKING:  # torch loads with the first command that needs it
    from dori.benchmark import Benchmark
    from dori.mitigation.units import Units
    from dori.status import Status

console = Console()  # of all commands


def evaluation_table(summary: dict) -> Table:
    """The figures of an evaluation's summary.json for a terminal."""
    table = _rates_table(summary, "kind", more=["alignment"] if "clip" in summary else [])
    for kind, found in summary["by_kind"].items():
        aligned = [f"{found['alignment']['value']:.3f}"] if "clip" in summary else []
        table.add_row(kind, *_rates(found), *aligned)
    if "clip" in summary:
        table.caption = f"alignment by {summary['clip']}"
    if found := summary.get("fidelity"):
        figures = f"FID {found['fid']:.2f}, KID x 1000 {found['kid_1000']:.2f}"
        counts = f"{found['n_generated']} images against {found['n_real']}"
        by = f"{figures} by {found['features']}, {counts}"
        table.caption = f"{table.caption}\n{by}" if table.caption else by
    return table


def attack_table(summary: dict) -> Table:
    """The figures of an attack's summary.json; `moved` is the median L2 distance from the start."""
    table = _rates_table(summary, "kind", "steps", more=["moved"])
    for kind, by_steps in summary["by_kind"].items():
        for steps, found in by_steps.items():
            table.add_row(kind, steps, *_rates(found), f"{found['moved_median']:.2f}")
    return table


def locality_table(summary: dict) -> Table:
    """The figures of a run of `dori locality`: 0 where triggers have nothing in common, 1 where all.

    For weights 1 is what the method agrees with itself on one trigger, an estimate; where that is low, the
    index can exceed 1.
    """
    title = f"{summary['model']}, {summary['n']} images"
    table = Table("level", "index [95 %]", "n", title=title, box=SIMPLE_HEAD, pad_edge=False)
    found = {f"triggers from {init} starts": one for init, one in summary["triggers"].items()}
    for name, one in {**found, **summary["levels"]}.items():
        value, low, high = ("?" if one[k] is None else f"{one[k]:.3f}" for k in ("value", "low", "high"))
        table.add_row(name, f"{value} [{low}, {high}]", str(one["n"]))
    return table


def benchmark_table(benchmark: Benchmark) -> Table:
    """Rows of each kind, and how many there are that cannot be used."""
    table = Table("kind", "rows", title=str(benchmark.path), box=SIMPLE_HEAD, pad_edge=False)
    for kind, rows in benchmark.table["kind"].value_counts(sort=False).items():
        table.add_row(kind, str(rows))
    table.add_section()
    table.add_row("left out", str(len(benchmark.skipped)))
    return table


def status_table(status: Status) -> Table:
    """How far a run is, and what it runs on."""
    from dori.status import ago

    about = status.about
    title = " ".join(str(about[k]) for k in ("command", "model") if k in about) or str(status.directory)
    table = Table(
        "", "", title=f"{title}: {status.state}", show_header=False, box=SIMPLE_HEAD, pad_edge=False
    )
    for stage in status.stages:
        counted = f"{stage.done} of {stage.asked}" if stage.asked is not None else f"{stage.kept}"
        table.add_row(f"records: {stage.name}", counted)
    for name, seconds in status.seconds.items():
        table.add_row(f"time: {name}", f"{seconds:.1f} s")
    table.add_row("left out", str(len(status.left_out)))
    table.add_row("last write", ago(status.last))
    if status.wall_seconds is not None:
        table.add_row("wall time", f"{status.wall_seconds:.0f} s (last run)")
    machine, versions = about.get("machine", {}), about.get("versions", {})
    rows = {
        "benchmark": about.get("benchmark"),
        "started": about.get("started"),
        "on": ", ".join(str(x) for x in (about.get("host"), machine.get("gpu") or machine.get("cpu")) if x),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "commit": about.get("commit"),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    return table


def units_table(units: Units, title: str) -> Table:
    """Units switched off in each layer."""
    table = Table(
        "layer",
        "off",
        "eligible",
        "share",
        title=title,
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for layer, off, eligible, density in units.table().itertuples(index=False):
        short = layer.replace(".transformer_blocks.0", "")
        table.add_row(short, str(off), str(eligible), f"{100 * density:.2f} %")
    table.add_section()
    table.add_row("all", str(units.count), str(units.size), f"{100 * units.density:.2f} %")
    return table


def trained_table(provenance: dict) -> Table:
    """What a training did."""
    table = Table("", "", title=provenance["setting"], show_header=False, box=SIMPLE_HEAD, pad_edge=False)
    table.add_row("images to forget", str(provenance["prompts"]))
    table.add_row("pairs to keep", str(provenance["retain_pairs"]))
    table.add_row("minutes", f"{provenance['training_seconds'] / 60:.1f}")
    table.add_row("rows through the UNet", str(provenance["unet_rows"]))
    table.add_row("processes", str(provenance["processes"]))
    return table


def models_table() -> Group:
    """The models known by name (`dori.known`), the bundled ones first: where they lie, then their figures.

    Two tables, as one would be cut on a terminal of 80 columns.
    """
    import torch

    from dori.known import KNOWN, memory, training_memory
    from dori.loading import BUNDLED

    style = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    places = Table("name", "repository, revision, licence", **style)
    figures = Table("name", "GB", "tuning", "guidance", "steps", "px", "predicts", **style)
    for name in BUNDLED:
        places.add_row(name, "bundled")
    for name, known in KNOWN.items():
        licence = known.licence + (", gated" if known.gated else "")
        whole, half = (memory(name, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16))
        places.add_row(name, f"{known.repository}\n{known.revision}\n{licence}")
        figures.add_row(
            name,
            f"{whole:.1f} / {half:.1f}",
            f"{training_memory(name) / 1e9:.1f}",
            f"{known.guidance_scale:g}",
            str(known.num_inference_steps),
            str(known.image_size),
            known.prediction.removesuffix("_prediction"),
        )
    return Group(places, figures)


def _rates_table(summary: dict, *columns: str, more: Sequence[str] = ()) -> Table:
    title = (
        f"{summary['model']}, {summary['descriptor']} > {summary['threshold']:.2f}, {summary['seeds']} seeds"
    )
    rates = ("n", "MR [95 %]", "per image", "best score")
    return Table(*columns, *rates, *more, title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _rates(found: dict) -> tuple[str, ...]:
    mr = found["mr"]
    interval = f"{mr['value']:.3f} [{mr['low']:.3f}, {mr['high']:.3f}]"
    best = f"{found['best_score_median']:.2f} ± {found['best_score_mad']:.2f}"
    return str(mr["n"]), interval, f"{found['mr_mean']['value']:.3f}", best


class _Lines(logging.Handler):
    """Warnings as the errors are shown: a line of stderr each."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"dori: {record.getMessage()}", err=True)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show what `dori` logs while the block runs."""
    handler, logger = _Lines(), logging.getLogger("dori")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
