"""Chapter 3's tables, against cases made by hand."""

import numpy as np
import pandas as pd
import pytest

from dori.experiments import locality_activations as activations
from dori.experiments import locality_embeddings as embeddings
from dori.experiments import locality_levels as levels
from dori.experiments import locality_weights as weights
from dori.experiments.locality_levels import LEVELS
from dori.locality.weights import ALL


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
    rows = [("ordinary", "a", n, k, v) for n, k, v in (("l", "value", 0.3), ("output", "output", 0.9))]
    table = pd.DataFrame(rows, columns=["memory", "image", "layer", "kind", "index"])
    assert activations.best_layers(table)["index"].tolist() == [0.3]


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
    assert levels.gap_table(found)["planted minus ordinary"].iloc[0] == pytest.approx(0.6)
    assert levels.levels(table)["value"].tolist() == pytest.approx([0.2, 0.8])


def test_the_conclusion_has_a_line_per_level_and_says_what_is_not_defined():
    lines = levels.conclusion(scored({"ordinary": [0.1, 0.3]})).splitlines()[2:]
    assert len(lines) == len(LEVELS)
    assert "0.20" in lines[0]
    assert "planted" not in lines[0]
    assert all("not defined" in line for line in lines[1:])
