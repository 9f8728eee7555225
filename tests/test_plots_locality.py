"""Chapter 3's figures: what is not defined is no 0, own and foreign triggers are told apart, n is there."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from dori import plots
from dori.errors import DoriError
from dori.plots.style import error_bars, palette

BLOCK = "{}.transformer_blocks.0.attn2.to_v"
LAYERS = [BLOCK.format(f"down_blocks.{k}.attentions.0") for k in range(3)]
MAP = pd.DataFrame(
    [
        {"method": method, "x": x, "y": y, "sort": sort, "image": image, "item": item, "share": share}
        for method, share in (("PCA", 0.12), ("t-SNE", np.nan))
        for x, y, sort, image, item in (
            (0, 0, "start", "a", "a 0"),
            (3, 4, "trigger", "a", "a 0"),
            (1, 0, "start", "b", "b 0"),
            (2, 2, "trigger", "b", "b 0"),
            (5, 5, "regular prompt", "", "r"),
        )
    ]
)
DISTANCES = pd.DataFrame(
    {"set": ["starts"] * 3 + ["prompts"] * 3, "metric": "L2", "distance": [1, 2, 9, 4, 5, 6.0]}
)
PATHS = pd.DataFrame(
    [
        {"memory": memory, "path": path, "pair": pair, "image": "a", "fraction": f, "score": score}
        for memory in ("ordinary", "planted")
        for path in ("straight", "spherical")
        for pair, middle in (("0", 0.2), ("1", 0.3), ("2", 0.9))
        for f, score in ((0.0, 0.9), (0.5, middle), (1.0, 0.9))
    ]
)
PROFILE = pd.DataFrame(
    [
        {"layer": layer, "kind": kind, "measure": measure, "set": name, "value": 2.0, "low": 1.5, "high": 3.0}
        for measure in ("L2", "CKA")
        for kind, layers in (("value", LAYERS), ("mid", ["mid_block"]))
        for layer in layers
        for name in ("one image's triggers", "regular prompts")
    ]
)
AGREEMENT = pd.DataFrame(
    {"layer": [*LAYERS, "all"], "iou": [0.5, np.nan, 0.2, 0.3], "low": [0.4, np.nan, 0.1, 0.2]}
    | {"high": [0.6, np.nan, 0.3, 0.4], "chance": [0.05, np.nan, 0.05, 0.05], "units": [2.5, 0, 40, 12345]}
    | {"ceiling": [0.9, np.nan, 0.9, 0.9], "method": "NeMo", "memory": "ordinary"}
)
TRANSFER = pd.DataFrame(
    [
        {
            "memory": "planted",
            "method": "Wanda",
            "image": "a",
            "a": a,
            "b": b,
            "rate": 0.0 if a == b else 0.75,
        }
        for a in ("prompt", "a random 0")
        for b in ("prompt", "a random 0", "a random 1")
    ]
)
DOSE = pd.DataFrame(
    {"copies": [128, 1] * 2, "diagnostic": ["spread"] * 2 + ["index"] * 2, "value": [1.0, 2.0, 0.5, 0.1]}
    | {"low": 0.0, "high": 3.0, "n": [4, 8] * 2}
)
LEVELS = pd.DataFrame(
    {"level": ["embeddings", "weights (NeMo)"] * 2, "memory": ["ordinary"] * 2 + ["planted"] * 2}
    | {"value": [-0.3, 0.2, 0.8, np.nan], "low": [-0.5, 0.1, 0.7, np.nan], "high": [-0.1, 0.3, 0.9, np.nan]}
    | {"n": [12, 12, 3, 3]}
)
CARD = {
    "image": torch.rand(3, 8, 8),
    "generated": torch.rand(2, 3, 8, 8),
    "scores": torch.tensor([0.9, 0.1]),
    "note": "moved 81",
    "activations": pd.DataFrame({"layer": LAYERS, "value": [1.0, 2.0, 3.0]}),
    "units": pd.DataFrame({"layer": LAYERS, "units": [0, 0, 0]}),
}
FIGURES = {
    "map": lambda: plots.embedding_map(MAP),
    "paths": lambda: plots.path_scores(PATHS, threshold=0.7),
    "profile": lambda: plots.layer_profile(PROFILE, measure="L2"),
    "agreement": lambda: plots.agreement_profile(AGREEMENT),
    "dose": lambda: plots.dose_profile(DOSE),
}


def ticks(axis, which="x"):
    return [t.get_text() for t in getattr(axis, f"get_{which}ticklabels")()]


def texts(axis):
    return [t.get_text() for t in axis.texts]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_chapter_3_is_labelled_and_closed(name):
    figure = FIGURES[name]()
    shown = [axis for axis in figure.axes if axis.axison]
    assert shown[-1].get_xlabel() or ticks(shown[-1])
    assert shown[0].get_ylabel()
    assert plt.get_fignums() == []


def test_a_map_joins_each_start_to_its_trigger_and_notes_the_variance():
    pca, tsne = plots.embedding_map(MAP).axes
    assert [list(line.get_xdata()) for line in pca.lines] == [[0, 3], [1, 2]]
    assert [a.get_title(loc="left") for a in (pca, tsne)] == ["PCA, 12 % of the variance", "t-SNE"]


def test_distances_have_their_medians_marked():
    (axis,) = plots.distance_distributions(DISTANCES).axes
    assert ticks(axis, "y") == ["starts", "prompts"]
    assert list(axis.lines[-1].get_xdata()) == [2, 5]
    assert texts(axis) == ["2.00", "5.00"]


def test_a_path_has_a_thin_line_per_pair_and_a_thick_median():
    straight, _ = plots.path_scores(PATHS, threshold=0.7).axes
    assert list(straight.lines[0].get_ydata()) == [0.7, 0.7]
    widths = [line.get_linewidth() for line in straight.lines[1:5]]
    assert max(widths[:3]) < widths[3]
    assert list(straight.lines[4].get_ydata()) == [0.9, 0.3, 0.9]


def test_a_profile_has_a_panel_per_kind_and_a_logarithm_for_lengths_only():
    value, mid = plots.layer_profile(PROFILE, measure="L2").axes
    assert (ticks(value), ticks(mid)) == (["down 0.0", "down 1.0", "down 2.0"], ["mid"])
    assert value.get_yscale() == "log"
    assert plots.layer_profile(PROFILE, measure="CKA").axes[0].get_yscale() == "linear"


def test_a_profile_of_an_unknown_measure_names_those_there():
    with pytest.raises(DoriError, match=r"CKA.*L2"):
        plots.layer_profile(PROFILE, measure="SVCCA")


def test_an_agreement_of_nothing_is_a_cross_and_no_0():
    (axis,) = plots.agreement_profile(AGREEMENT).axes
    (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == [1]
    assert cross.get_ydata()[0] < 0
    (dots,) = [line for line in axis.lines if line.get_marker() == "o"]
    assert np.isnan(dots.get_ydata()[1])


def test_agreement_says_how_many_units_and_sets_the_whole_apart():
    (axis,) = plots.agreement_profile(AGREEMENT).axes
    assert texts(axis) == ["2.5", "0", "40", "12.3k", "units, ordinary"]
    assert ticks(axis)[-1] == "all"
    (between,) = [line for line in axis.lines if list(line.get_ydata()) == [0, 1]]
    assert set(between.get_xdata()) == {2.5}


def test_transfer_outlines_own_triggers_and_annotates_every_cell():
    axis, _ = plots.transfer_matrices(TRANSFER).axes
    assert (ticks(axis), ticks(axis, "y")) == (["prompt", "random 0", "random 1"], ["prompt", "random 0"])
    assert texts(axis) == ["0", "0.75", "0.75", "0.75", "0", "0.75"]
    assert [patch.get_xy() for patch in axis.patches] == [(0, 0), (1, 1)]


def test_doses_are_in_order_with_their_numbers():
    first, second = (a for a in plots.dose_profile(DOSE).axes if a.axison)
    assert (first.get_ylabel(), second.get_ylabel()) == ("spread", "index")
    assert ticks(first) == ["1", "128"]
    assert list(first.lines[0].get_ydata()) == [2, 1]
    assert texts(first) == ["n = 8", "4"]


def test_levels_run_from_0_to_1_and_beyond_where_values_do():
    (axis,) = plots.levels(LEVELS).axes
    assert axis.get_xlim()[0] < -0.5 < 1 < axis.get_xlim()[1]
    assert ticks(axis, "y") == ["embeddings", "weights (NeMo)"]
    assert texts(axis) == ["n = 12", "n = 12", "n = 3", "undefined, n = 3"]


def test_a_trigger_card_frames_copies_and_shares_its_axes():
    figure = plots.trigger_card(CARD, title="a, 1 of 8", threshold=0.7, limits=(5, 9))
    original, copy, other, activations, units = figure.axes
    assert [a.get_xlabel() for a in (original, copy, other)] == ["training image", "score 0.90", "score 0.10"]
    assert [a.spines["left"].get_visible() for a in (original, copy, other)] == [False, True, False]
    assert [bar.get_height() for bar in activations.patches] == [1, 2, 3]
    assert (activations.get_ylim(), units.get_ylim()) == ((0, 5), (0, 9))
    assert [text.get_text() for text in figure.texts] == ["a, 1 of 8", "moved 81"]


def test_strangers_in_one_figure_never_share_a_colour():
    tones = palette(["regular", "mem-128-01", "mem-128-10", "plant-00"])
    assert len(set(tones.values())) == 4
    assert tones["regular"] == plots.colour("regular")


def test_unknown_ends_have_no_bar_and_rounding_makes_none_negative():
    bars = error_bars([1.0, 2.0], [0.5, np.nan], [0.9, np.nan])
    assert bars.tolist() == [[0.5, 0], [0, 0]]
