"""Chapter 3's tables, against cases made by hand."""

import numpy as np
import pandas as pd
import pytest

from dori.experiments import locality_activations as activations
from dori.experiments import locality_dose as dose
from dori.experiments import locality_embeddings as embeddings
from dori.experiments import locality_levels as levels
from dori.experiments import locality_reasons as reasons
from dori.experiments import locality_weights as weights
from dori.experiments.locality_levels import LEVELS
from dori.locality.weights import ALL
from dori.metrics.intervals import Estimate


def agreed(layer, ious, *, ceiling=1.0, chance=0.0, image="a"):
    """Rows of `agreements`: one per pair of triggers, and the ceiling of the layer."""
    about = {"layer": layer, "chance": chance, "image": image, "memory": "ordinary"}
    about |= {"method": "Wanda", "setting": "Wanda 15 %", "units_a": 4, "units_b": 4, "a": "x", "b": "y"}
    rows = [{**about, "iou": iou, "between": "triggers"} for iou in ious]
    return pd.DataFrame([*rows, {**about, "iou": ceiling, "between": weights.NOISE}])


def test_the_best_layer_gives_the_index_and_all_layers_together_do_not_count():
    table = pd.concat([agreed("one", [0.2]), agreed("two", [0.4], ceiling=0.5), agreed(ALL, [1.0])])
    [found] = weights.indices(table).to_dict("records")
    assert (found["layer"], found["index"]) == ("two", pytest.approx(0.8))


def test_a_layer_in_which_fewer_than_half_of_pairs_have_units_has_no_index():
    few, half = agreed("one", [1, np.nan, np.nan]), agreed("one", [1, np.nan])
    assert np.isnan(weights.indices(few)["index"].iloc[0])
    assert weights.indices(few)["layer"].iloc[0] == "none"
    assert weights.indices(half)["index"].iloc[0] == 1


def test_mean_iou_weighs_images_alike():
    table = pd.concat([agreed("one", [0.2] * 5), agreed("one", [0.6], image="b"), agreed(ALL, [1.0])])
    found = weights.mean_iou(table, "Wanda 15 %", "ordinary")
    assert (found.value, found.n) == (pytest.approx(0.4), 2)


def test_the_output_is_no_best_layer():
    layers = (("l", "value", 0.3), ("f", activations.FFN_OUTPUT, 0.8), ("output", "output", 0.9))
    rows = [("ordinary", "a", name, kind, value) for name, kind, value in layers]
    table = pd.DataFrame(rows, columns=["memory", "image", "layer", "kind", "index"])
    assert activations.best_layers(table)["index"].tolist() == [0.3]


def test_the_outputs_of_feed_forward_layers_are_shown_and_not_judged():
    kinds = {"value": 2.0, "feed-forward": 0.5, "mid": 1.0, activations.FFN_OUTPUT: 0.1}
    rows = [("a", "L2", kind, kind, ratio) for kind, ratio in kinds.items()]
    table = pd.DataFrame(rows, columns=["image", "measure", "layer", "kind", "ratio"])
    assert activations.activation_ratio(table).value == 1.0
    assert activations.activation_ratio(table, only=activations.FFN_OUTPUT).value == 0.1


def test_what_the_door_shows_decides_what_is_said_of_activations():
    def told(door, others):
        rows = [("planted", f"p{k}", door, others) for k in range(3)]
        return reasons.averaged(pd.DataFrame(rows, columns=["memory", "image", "door", "others"]))

    assert "averages it away" in told(0.5, 0.1)
    assert "not even there" in told(0.2, 0.1)
    assert reasons.averaged(pd.DataFrame(columns=["memory", "image", "door", "others"])) == ""


def test_the_trend_over_copies_is_a_rank_correlation():
    def found(pairs):
        index = pd.MultiIndex.from_tuples([(c, f"i{n}") for n, (c, _) in enumerate(pairs)])
        return pd.DataFrame({"index": [v for _, v in pairs]}, index=index.set_names(["copies", "image"]))

    falling = [(2**k, 1 - k / 8) for k in range(8)]
    assert "−1.00 (p < 0.001" in dose.trend(found(falling))
    assert "Over 8 images" in dose.trend(found(falling))
    mixed = dose.trend(found([(1, 0.1), (2, 0.4), (4, 0.2), (8, 0.3)]))  # ranks 1 4 2 3: rho 0.4
    assert "is 0.40 (p 0." in mixed
    assert dose.trend(found([(1, 0.1), (1, 0.4), (1, 0.2), (1, 0.3)])) == ""
    assert dose.trend(pd.DataFrame()) == ""


def test_a_path_is_connected_if_its_lowest_point_is_above_the_threshold():
    rows = [
        ("ordinary", "straight", p, s)
        for p, scores in {"p": [0.9, 0.8], "q": [0.9, 0.1]}.items()
        for s in scores
    ]
    table = pd.DataFrame(rows, columns=["memory", "path", "pair", "score"])
    found = embeddings.connected(table, 0.7).loc[("ordinary", "straight")]
    assert found.tolist() == [2, 0.5, pytest.approx(0.45)]


def scored(values):
    rows = [
        (LEVELS[0], memory, f"{memory}{k}", v) for memory, some in values.items() for k, v in enumerate(some)
    ]
    return pd.DataFrame(rows, columns=["level", "memory", "image", "index"])


def test_the_gap_of_a_level_is_planted_minus_ordinary():
    table = scored({"ordinary": [0.1, 0.3], "planted": [0.7, 0.9]})
    found = levels.gaps(table)
    assert found["planted_gap_embeddings"].value == pytest.approx(0.6)
    assert np.isnan(found["planted_gap_wanda"].value)
    shown = levels.gap_table(found)
    assert shown.iloc[0].tolist() == [found["planted_gap_embeddings"].short, 2]
    assert shown.loc["weights (Wanda)"].tolist() == ["–", 0]
    assert levels.levels(table)["value"].tolist() == pytest.approx([0.2, 0.8])


def test_the_conclusion_has_a_line_per_level_and_says_what_is_not_defined():
    lines = levels.conclusion(scored({"ordinary": [0.1, 0.3]})).splitlines()[2:]
    assert len(lines) == len(LEVELS)
    assert "0.20" in lines[0]
    assert "is not known" in lines[0], "without planted memories"
    assert all("not defined" in line for line in lines[1:])


def test_the_conclusion_says_of_each_level_whether_it_is_blind():
    def first(planted):
        return levels.conclusion(scored({"ordinary": [0.1, 0.2, 0.3], "planted": planted})).splitlines()[2]

    assert "less local than that" in first([0.7, 0.8, 0.9])
    assert "blind" in first([0.1, 0.2, 0.4])
    assert "points the wrong way" in first([-0.9, -0.8, -0.7])
    assert "blind" in first([-1.0, 0.5, 2.0]), "far apart, but an interval that reaches 0 settles nothing"


def some(value, low=np.nan, high=np.nan):
    return Estimate(value, low, high, 3)


def test_where_only_the_added_level_sees_the_others_are_named_blind():
    blind, sees = some(0.01, -0.1, 0.1), some(0.6, 0.4, 0.8)
    found = dict.fromkeys(LEVELS, blind)
    assert "0 of 7 levels tell them" in reasons.seen(found)
    blocks, directions = reasons.ADDED
    only = reasons.seen(found | {blocks: sees})
    assert "1 of 7 levels" in only
    assert "A likely reason" in only
    assert f"*{blocks}, {directions}*" in reasons.seen(found | {blocks: sees, directions: sees})
    assert "A likely reason" not in reasons.seen(found | {blocks: sees, LEVELS[0]: sees})
    assert reasons.seen(dict.fromkeys(LEVELS, some(np.nan))) == ""


def test_a_spread_that_the_starts_have_already_is_called_inherited():
    easy = reasons.inherited(some(1.8), some(1.9), some(0.7))
    assert "is met" in easy
    assert "too easily" in easy
    assert "the starts alone have 95 % of the triggers' spread" in easy
    assert "too easily" not in reasons.inherited(some(0.2), some(1.9), some(0.7))
    assert "is not met" in reasons.inherited(some(1.8), some(1.9), some(0.1))
    assert reasons.inherited(some(np.nan), some(1.9), some(0.1)) == ""


def test_a_thin_ceiling_is_counted_and_its_swing_told():
    table = pd.DataFrame(
        {"level": "weights (Wanda)", "memory": "ordinary", "image": ["a", "b"], "index": [0.2, 1.7]}
    )
    told = reasons.thin_ceiling(table, agreed(ALL, [0.5, 0.4]))
    assert "a ceiling is 1 pair of sets" in told
    assert "from 0.20 to 1.70, and above 1" in told
    assert "above 1" not in reasons.thin_ceiling(table.assign(index=[0.2, 0.7]), agreed(ALL, [0.5]))


def test_a_transfer_index_at_its_end_leaves_no_room():
    def told(same, other):
        rows = [("1", "2", "another of the image", same), ("of b", "2", "one of another image", other)]
        moved = pd.DataFrame(rows, columns=["a", "b", "made_for", "rate"]).assign(
            memory="ordinary", image="a"
        )
        table = pd.DataFrame(
            {"level": ["transfer (Wanda)"], "memory": "ordinary", "image": "a", "index": 1 - same}
        )
        return reasons.saturated(table, moved)

    assert "stops 0.95 of the others of its image, one made for another image 0.75" in told(0.05, 0.25)
    assert "cannot stand 0.2 above" in told(0.05, 0.25)
    assert "cannot stand" not in told(0.5, 0.5)
    assert "so coarse" in told(0.05, 0.25)
    assert "against the paper" in told(0.05, 0.9)
    assert "coarse" not in told(0.9, 0.9) + told(0.9, 0.1)
    assert told(0.05, np.nan) == "", "one image alone has no other to compare with"


def test_what_disagrees_with_the_paper_is_listed_with_its_figure():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "preset": "quick"}
    told = reasons.against_paper({"spread_ratio": figure, "activation_ratio": figure | {"value": 0.9}})
    assert told.count("“") == 1
    assert "(0.50, rule ≥ 1)" in told
    assert "none of its claims" in reasons.against_paper({"spread_ratio": figure | {"value": 2.0}})


def test_weights_for_reading_have_dashes_for_what_was_not_measured():
    one = agreed(ALL, [0.4], ceiling=0.6, chance=0.05)  # no ceiling of other draws
    shown = weights.summary(one, pd.DataFrame(columns=["memory", "setting", "layer"]))
    assert shown.loc[("Wanda 15 %", "ordinary")].tolist() == ["0.40", "–", "0.05", "0.60", "–", "4"]
    across = one[one["between"] == "triggers"].assign(iou=0.3)
    assert weights.summary(one, across).loc[("Wanda 15 %", "ordinary"), weights.STRANGERS] == "0.30"


def test_what_different_images_share_is_taken_off_the_overlap(monkeypatch):
    one = agreed("up", [0.7], chance=0.1).assign(setting=weights.label(weights.WANDA))
    across = pd.DataFrame({"setting": one["setting"], "memory": "ordinary", "layer": "up", "iou": 0.4}).head(
        1
    )
    told = reasons.unspecific(one, across)
    assert "by 0.70" in told
    assert "different images by 0.40" in told
    assert "50 % of the overlap beyond chance" in told
    assert reasons.unspecific(one, across.head(0)) == ""
    monkeypatch.setattr(reasons, "one_way", lambda some: [0.4, 0.4])
    monkeypatch.setattr(reasons, "other_ways", lambda some: [0.2, 0.2])
    assert "So 50 % of what" in reasons.shared_ways([])
