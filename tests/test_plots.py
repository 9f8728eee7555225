"""Figures have labelled axes, one colour per meaning, the threshold; the slider needs no kernel."""

import itertools

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
TARGETS = {"memorized": (0.5, 1.0, 1.0), "twin": (0.0, 0.0, 0.5), "held-out": (0.0, 0.0, 0.0)}
ATTACKS = pd.DataFrame(
    [
        {"id": f"i{i}", "target": target, "steps": steps, "replicated": i < 4 * rate, "score": i < 4 * rate}
        | {"moved": 0.1 * steps + i, "cosine": 1 - steps / 1000}
        for target, found in TARGETS.items()
        for steps, rate in zip((0, 50, 200), found, strict=True)
        for i in range(4)
    ]
)
LIMITS = ATTACKS.assign(limit=ATTACKS["steps"].map({0: "2 tokens", 50: "16 tokens", 200: "radius 0.5"}))
LAYER = "{}.transformer_blocks.0.attn2.to_v"
UNITS = pd.DataFrame(
    {
        "layer": [LAYER.format("down_blocks.1.attentions.0"), LAYER.format("mid_block.attentions.0")] * 2,
        "units": [2, 0, 4, 4],
        "eligible": [8, 8, 8, 8],
        "density": [0.25, 0.0, 0.5, 0.5],
        "setting": "NeMo search",
    }
)
UTILITY = pd.DataFrame(
    {
        "label": ["as trained", "NeMo search"],
        "alignment": [0.6, 0.5],
        "alignment_low": [0.5, 0.4],
        "alignment_high": [0.7, 0.6],
        "fid": [np.nan, np.nan],
        "diversity": [0.4, 0.5],
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
    "budgets": lambda: plots.budget_curves(ATTACKS),
    "limits": lambda: plots.limit_rates(LIMITS),
    "movement": lambda: plots.movement(ATTACKS, reference=3.0),
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


def test_heads_of_many_stages_stay_apart():
    stages = ["training image", "as trained", "pruned (Wanda)", "adversarial fine-tuning", "concept ablation"]
    stages += ["ESD", "SISS", "the twin"]
    row = {"prompt": "a", "scores": {}, "images": {s: torch.zeros(3, 8, 8) for s in stages}}
    figure = plots.comparison_grid([row], threshold=0.5)
    figure.canvas.draw()
    heads = [axis.texts[0].get_window_extent() for axis in figure.axes]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(heads))
    assert max(box.y1 for box in heads) < figure.bbox.y1


def ticks(axis, which="x"):
    return [t.get_text() for t in getattr(axis, f"get_{which}ticklabels")()]


def told(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_intervals_of_a_budget_stand_beside_each_other():
    (axis,) = plots.budget_curves(ATTACKS).axes
    bars = [bar for one in axis.collections for bar in one.get_segments()]
    places = [round(float(bar[0, 0]), 3) for bar in bars]
    assert len(places) == len(set(places)) == 9


def test_a_legend_counts_images_and_their_prompts():
    (axis,) = plots.cumulative(TABLE, x="score", by="sort", label="copy score").axes
    assert told(axis) == ["memorized (8 images of 4 prompts)", "regular (8 images of 4 prompts)"]


def test_a_budget_figure_marks_where_a_control_gives_way():
    (axis,) = plots.budget_curves(ATTACKS).axes
    assert [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1] == [1.5]
    assert ticks(axis) == ["0", "50", "200"]
    assert told(axis)[-1] == "a control above 1 %, from 200 steps on"
    early = ATTACKS[ATTACKS["steps"] < 200]
    (axis,) = plots.budget_curves(early).axes
    assert "no control above 1 %" in told(axis)
    (axis,) = plots.budget_curves(ATTACKS[ATTACKS["target"] == "memorized"]).axes
    assert told(axis) == ["memorized (n = 4)"]


def test_a_single_budget_is_drawn_too():
    (axis,) = plots.budget_curves(ATTACKS[ATTACKS["steps"] == 0]).axes
    assert ticks(axis) == ["0"]


def test_limits_stay_in_the_order_of_the_table():
    (axis,) = plots.limit_rates(LIMITS).axes
    assert ticks(axis) == ["2 tokens", "16 tokens", "radius 0.5"]
    assert [label.get_text() for label in axis.get_legend().get_texts()] == [f"{t} (n = 4)" for t in TARGETS]


def test_movement_fills_what_brought_the_image_back():
    left, _ = plots.movement(ATTACKS, reference=3.0).axes
    filled, hollow = left.collections[:2]  # of the memorized images
    assert len(filled.get_offsets()) == 2 + 4 + 4
    assert len(hollow.get_offsets()) == 2
    assert any(set(line.get_ydata()) == {3.0} for line in left.lines)


def test_units_are_drawn_as_shares_of_what_each_layer_has():
    (axis,) = plots.units_per_layer(UNITS).axes
    assert ticks(axis) == ["down 1.0", "mid"]
    assert [bar.get_height() for bar in axis.patches] == [37.5, 25.0]
    assert axis.get_title(loc="left") == "NeMo search: 5.0 of 16 units off on average"


def test_stages_have_heads_and_framed_copies():
    stages = {name: torch.rand(3, 8, 8) for name in ("training image", "pruned", "pruned + attack")}
    gallery = [{"prompt": "boat", "images": stages, "scores": {"pruned": 0.1, "pruned + attack": 0.9}}] * 2
    training, pruned, attacked, *_ = plots.comparison_grid(gallery, threshold=0.7).axes
    assert [a.texts[0].get_text() for a in (training, pruned, attacked)] == list(stages)
    assert [a.get_xlabel() for a in (training, pruned, attacked)] == ["", "0.10", "0.90"]
    assert attacked.spines["left"].get_visible()
    assert not pruned.spines["left"].get_visible()


def test_utility_leaves_out_what_is_not_known():
    shown = [a for a in plots.utility(UTILITY).axes if a.axison]
    assert [a.get_xlabel().split("\n")[0] for a in shown] == [
        "prompt alignment (CLIP)", "copy score within a prompt",
    ]  # fmt: skip
    assert ticks(shown[0], "y") == ["as trained", "NeMo search"]
    low, high = shown[0].collections[0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((0.5, 0.7))


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


def nested(triggers, images=("a", "b")):
    frames = {image: {t: plots.image_rows({t: torch.rand(1, 3, 8, 8)}) for t in triggers} for image in images}
    return frames, {image: {t: f"{image}, {t}" for t in triggers} for image in images}


def test_a_nested_figure_has_one_list_and_one_slider_for_all_images(monkeypatch):
    frames, alts = nested(["first", "second", "third"])
    links = []
    monkeypatch.setattr(widgets.ipywidgets, "jslink", lambda *ends: links.append(ends))
    box = widgets.nested_figure(frames, descriptions=("image", "trigger"), alts=alts, caption="Cards")
    choice, slider, outer = box.children
    assert (choice.options, slider.options) == (("a", "b"), ("first", "second", "third"))
    assert 'alt="b, third"' in outer.children[1].children[2].value
    inner = [((slider, "index"), (stack, "selected_index")) for stack in outer.children]
    assert links == [((choice, "index"), (outer, "selected_index")), *inner]


def stages(**scores):
    shown = {name: torch.rand(3, 8, 8) for name in ("training image", *scores)}
    return {"prompt": "a <boat>", "images": shown, "scores": scores}


def test_a_stage_picker_says_which_stage_is_a_copy():
    gallery = [stages(pruned=0.1, searched=0.9), stages(pruned=0.7, searched=0.9)]
    box = widgets.stage_picker(gallery, threshold=0.5)
    choice, slider, outer = box.children
    assert len(choice.options) == len(outer.children) == 2
    assert list(slider.options) == ["pruned", "searched"]
    first, second = (child.value for child in outer.children[0].children)
    assert "copy score 0.10: no copy" in first
    assert "copy score 0.90: a copy" in second
    assert ("dori-copy" in first, "dori-copy" in second) == (False, True)
    assert all(page.count(" alt=") == page.count("<img") == 2 for page in (first, second))
    assert "&lt;boat&gt;" in first


def test_a_stage_picker_needs_the_same_stages_for_each_image():
    with pytest.raises(ValueError, match="the same stages"):
        widgets.stage_picker([stages(pruned=0.1), stages(searched=0.9)], threshold=0.5)
    assert "Not available" in widgets.stage_picker([], threshold=0.5).value


def test_strips_label_every_image():
    rows = {"given": {"step 1": torch.rand(3, 8, 8), "step 2": torch.rand(3, 8, 8)}}
    figure = plots.image_strip(rows)
    assert [axis.get_title() for axis in figure.axes] == ["step 1", "step 2"]
    maps = {"image": torch.ones(3, 8, 8), "tree": torch.zeros(8, 8)}
    painted, tree = plots.attention_strip(maps).axes
    assert tree.get_title() == "“tree”"
    assert tree.images[0].get_array().max() < painted.images[0].get_array().max(), "dark where it is not read"


def test_a_nested_figure_needs_the_same_triggers_for_each_image_and_at_most_a_dozen():
    frames, alts = nested(["first", "second"])
    names = {"descriptions": ("image", "trigger"), "caption": ""}
    ragged = frames | {"b": {"first": frames["b"]["first"]}}
    with pytest.raises(ValueError, match="same labels"):
        widgets.nested_figure(ragged, alts=alts | {"b": {"first": "b"}}, **names)
    with pytest.raises(ValueError, match="alt texts"):
        widgets.nested_figure(frames, alts={"a": alts["a"]}, **names)
    many, told = nested([str(n) for n in range(7)])
    with pytest.raises(ValueError, match="14 frames"):
        widgets.nested_figure(many, alts=told, **names)


def test_the_axis_of_rates_is_called_as_asked():
    figure = plots.rate_curves(rates(TABLE, ["sort", "copies"]), x="copies", label="DDIM steps")
    axis = figure.axes[0]
    assert axis.get_xlabel() == "DDIM steps"
    assert all(" (n = " in text.get_text() for text in axis.get_legend().get_texts())
