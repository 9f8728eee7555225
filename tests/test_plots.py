"""Figures have labelled axes, one colour per meaning, the threshold; the slider needs no kernel."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from dori import plots, widgets
from dori.detection import roc_table
from dori.metrics.replication import rates, replication_table


def scored():
    rng = np.random.default_rng(0)
    table = replication_table({f"i{n}": rng.random(2) for n in range(8)}, 0.7)
    table["sort"] = ["memorized"] * 8 + ["regular"] * 8
    table["copies"] = [1, 1, 4, 4] * 4
    return table


def entry(scores):
    images = torch.rand(len(scores), 3, 16, 16)
    return {"id": "a", "prompt": "red boat " * 9, "original": images[0], "images": images, "scores": scores}


TABLE = scored()
ATTRIBUTES = pd.DataFrame(
    {
        "slot": ["time", "place"] * 4,
        "source": ["generated"] * 4 + ["held-out"] * 4,
        "correct": [True, False] * 4,
        "chance": 0.25,
    }
)
DETECTION = pd.DataFrame(
    {
        "kind": ["verbatim", "none"] * 3,
        "copies": [4, 0] * 3,
        "score": range(6),
        "memorized": [True, False] * 3,
    }
)
FIGURES = {
    "distributions": lambda: plots.score_distributions(TABLE, threshold=0.7),
    "copies": lambda: plots.copies_curve(rates(TABLE, ["copies"])),
    "curves": lambda: plots.rate_curves(
        rates(TABLE, ["sort", "copies"]), x="copies", label="DDIM steps", log=True
    ),
    "roc": lambda: plots.roc({"one step": roc_table([3, 2, 1, 0], [True, False, True, False])}),
    "strip": lambda: plots.strip_by_copies(DETECTION, label="||eps|| (latent units)"),
    "cumulative": lambda: plots.cumulative(TABLE, x="score", by="sort", label="copy score", threshold=0.7),
    "attributes": lambda: plots.attribute_bars(ATTRIBUTES),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_labelled_axes_and_is_closed(name):
    figure = FIGURES[name]()
    assert figure.axes[-1].get_xlabel()
    assert all(axis.get_ylabel() for axis in figure.axes)
    assert plt.get_fignums() == []


def test_copies_are_framed_and_scored_in_the_grid():
    figure = plots.image_grid([entry([0.9, 0.1])], threshold=0.7)
    _, copy, other = figure.axes
    assert [copy.get_xlabel(), other.get_xlabel()] == ["0.90", "0.10"]
    assert copy.spines["left"].get_visible()
    assert not other.spines["left"].get_visible()


def test_image_rows_label_their_rows():
    figure = plots.image_rows({"model": torch.rand(3, 3, 8, 8), "twin": torch.rand(2, 3, 8, 8)})
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["model", "twin"]


def test_colours_keep_their_meaning_and_strangers_get_one():
    assert plots.colour("memorized") == plots.colour("verbatim") != plots.colour("regular")
    assert plots.colour("sd-v1-4") == plots.colour("sd-v1-4")


def test_plots_leave_the_readers_style_alone():
    before = plt.rcParams["axes.facecolor"]
    FIGURES["copies"]()
    assert plt.rcParams["axes.facecolor"] == before


def test_a_slider_figure_links_in_the_browser_and_has_alt_texts():
    frames = [plots.image_rows({"a": torch.rand(1, 3, 8, 8)}) for _ in range(3)]
    box = widgets.slider_figure(
        frames, ["1", "2", "3"], description="step", alts=["x < 1", "y", "z"], caption="Steps"
    )
    slider, stack = box.children
    assert len(slider.options) == len(stack.children) == 3
    assert 'alt="x &lt; 1"' in stack.children[0].value
    with pytest.raises(ValueError, match="alt"):
        widgets.slider_figure(frames, ["1"], description="", alts=[], caption="")
