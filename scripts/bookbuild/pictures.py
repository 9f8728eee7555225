"""Pictures that the build makes: sample sheets, training curves, and the figure of the landing page."""

from __future__ import annotations

import base64
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
import nbformat
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bookbuild.layout import BuildError, Layout

COLUMNS, ROWS, ZOOM, GAP = 8, 4, 2, 8  # images a row, rows of regular images, enlargement, pixels between
LANDING_FIGURE = ("01_replication", "fig-twin")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe-Ito


def sample_sheet(rows: list[list[Path]], target: Path) -> None:
    """A sheet of images in rows, enlarged without smoothing, on a transparent ground."""
    side = Image.open(rows[0][0]).width * ZOOM
    step = side + GAP
    sheet = Image.new("RGBA", (COLUMNS * step - GAP, len(rows) * step - GAP), (0, 0, 0, 0))
    for y, row in enumerate(rows):
        for x, path in enumerate(row):
            tile = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (x * step, y * step))
    sheet.save(target, optimize=True)


def read_log(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of each trained part, from `training_log.csv` (part, step, loss, seconds)."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    if path.exists():
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                curves[row["part"]].append((int(float(row["step"])), float(row["loss"])))
    return curves


def training_curves(curves: dict[str, list[tuple[int, float]]], target: Path) -> None:
    """One small panel a part: loss by step, faint as logged and strong as a running mean."""
    columns = min(3, max(1, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.3 * rows), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (part, points), colour in zip(axes.flat, curves.items(), COLOURS * 3, strict=False):
        steps, losses = zip(*points, strict=True)
        axis.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, running_mean(losses), color=colour, linewidth=1.6)
        axis.set(title=part, xlabel="step", ylabel="loss")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=150, facecolor="white")
    plt.close(figure)


def running_mean(values: tuple[float, ...], weight: float = 0.9) -> list[float]:
    """Exponential running mean, corrected for its start."""
    means, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1
        means.append(total / norm)
    return means


def images_by_copies(benchmark: Path) -> list[list[Path]]:
    """Up to `COLUMNS` verbatim images for each number of copies, most copies first: a row each."""
    with benchmark.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["kind"] == "verbatim"]
    levels = sorted({int(row["copies"]) for row in rows}, reverse=True)
    chosen = [[row for row in rows if int(row["copies"]) == level][:COLUMNS] for level in levels]
    return [[benchmark.parent / row["image"] for row in level] for level in chosen]


def chapter_figure(notebook: Path, name: str) -> bytes | None:
    """The PNG that the executed chapter shows as figure `name`; None before the chapter has run."""
    if not notebook.exists():
        return None
    for cell in nbformat.read(notebook, nbformat.NO_CONVERT).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            pictures = [
                output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})
            ]
            return base64.b64decode(pictures[0]) if pictures else None
    raise BuildError(f"{notebook.stem} has no figure '{name}', which the landing page shows")


def draw_pictures(layout: Layout) -> None:
    """Write all of them to `_build/src/generated/`."""
    testbed, target = layout.data / "testbed", layout.src / "generated"
    if not (testbed / "memorized.csv").exists():
        raise BuildError(f"{testbed}: no memorized.csv; make the testbed with `dori testbed train`")
    sample_sheet(images_by_copies(testbed / "memorized.csv"), target / "samples_memorized.png")
    regular = sorted((testbed / "images" / "regular").glob("*.png"))
    rows = [regular[y * COLUMNS : (y + 1) * COLUMNS] for y in range(ROWS)]
    sample_sheet(rows, target / "samples_regular.png")
    training_curves(read_log(testbed / "training_log.csv"), target / "training_curves.png")
    chapter, figure = LANDING_FIGURE
    shown = chapter_figure(layout.executed / f"{chapter}.ipynb", figure)
    (target / "landing.png").write_bytes(shown or (target / "samples_memorized.png").read_bytes())
