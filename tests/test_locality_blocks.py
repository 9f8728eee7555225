"""The causal diagnostic of chapter 3: one block at a time reads the empty prompt."""

import dataclasses

import pandas as pd
import pytest
import torch

from dori import plots
from dori.attack import Attack
from dori.errors import DoriError
from dori.experiments import locality_blocks as blocks
from dori.experiments import locality_levels as levels
from dori.experiments.memories import Memory
from dori.experiments.triggers import find_triggers, score_found
from dori.hooks import layer_label, reading

BLOCKS = ("down_blocks.0.attentions.0", "up_blocks.1.attentions.2", "mid_block.attentions.0")
PLACES = [f"{block}.transformer_blocks.0.attn2" for block in BLOCKS]


@pytest.fixture
def memory(study):
    """An image of the small study, whatever its searches found counted as triggers."""
    prompts = study.memorized.head(1)
    found = find_triggers(study, prompts, Attack("random", 1), 2)
    scores = score_found(study, prompts, found).assign(replicated=True)
    return Memory("ordinary", study, prompts, found, scores)


def cross_attention(model):
    return [name.removesuffix(".to_v") for name in model.value_layers(up=True)]


def predicted(model, embeds, layers=(), text=None):
    x, t = model.initial_latents([0]), torch.tensor([500])
    with torch.no_grad(), reading(model.unet, layers, text):
        return model.predict(x, t, embeds)


def test_a_text_read_by_all_layers_is_the_prompt(tiny_model):
    one, other = tiny_model.encode_prompts(["a red boat"]), tiny_model.encode_prompts(["two green trees"])
    layers = cross_attention(tiny_model)
    assert torch.equal(predicted(tiny_model, one, layers, other), predicted(tiny_model, other))
    assert not torch.equal(predicted(tiny_model, one), predicted(tiny_model, other))


def test_one_layer_alone_changes_the_prediction_and_is_put_back(tiny_model):
    one, other = tiny_model.encode_prompts(["a red boat"]), tiny_model.encode_prompts(["two green trees"])
    before = predicted(tiny_model, one)
    changed = predicted(tiny_model, one, cross_attention(tiny_model)[:1], other)
    assert not torch.equal(changed, before)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        reading(tiny_model.unet, cross_attention(tiny_model), other),
    ):
        raise RuntimeError("on purpose")
    assert torch.equal(predicted(tiny_model, one), before)


def test_a_layer_that_is_not_there_is_named(tiny_model):
    with pytest.raises(DoriError, match="no layer 'attic'"), reading(tiny_model.unet, ["attic"], None):
        pass


def test_every_trigger_meets_every_block_and_is_drawn_once(memory):
    found = blocks.table([memory])
    assert len(found) == len(blocks.blocks(memory)) * min(2, len(memory.triggers(n=1)))
    computed = memory.study.store.computed
    pd.testing.assert_frame_equal(blocks.table([memory]), found)
    assert memory.study.store.computed == computed


def test_an_image_without_triggers_has_no_rows(memory):
    none = dataclasses.replace(memory, scores=memory.scores.assign(replicated=False))
    assert blocks.table([none]).empty


def hand_made(replicated):
    """{(memory, image, trigger, layer): still returns the image}."""
    rows = [(*key, 0.9 if hit else 0.1, hit) for key, hit in replicated.items()]
    return pd.DataFrame(rows, columns=["memory", "image", "trigger", "layer", "score", "replicated"])


def one_door(memory="planted", image="p", door="b"):
    return {(memory, image, t, layer): layer != door for t in ("t0", "t1") for layer in ("a", "b", "c")}


def test_a_single_needed_block_has_index_one():
    found = blocks.indices(hand_made(one_door()))
    assert found[["layer", "index"]].to_numpy().tolist() == [["b", 1.0]]


def test_blocks_that_are_all_needed_or_all_spared_have_index_zero():
    for hit in (True, False):
        cells = {("ordinary", "i", "t0", layer): hit for layer in ("a", "b", "c")}
        assert blocks.indices(hand_made(cells))["index"].tolist() == [0.0]


def test_the_blocks_that_a_trigger_cannot_do_without_are_counted():
    cells = one_door() | {("planted", "p", "t1", "a"): False}
    found = blocks.needed(hand_made(cells))
    assert found["blocks needed"].tolist() == [1.5]
    assert found["triggers"].tolist() == [2]


def test_blocks_that_are_needed_alike_are_all_named():
    names = {"a": "down_blocks.0.attentions.0.x", "b": "up_blocks.1.attentions.1.x", "c": "mid_block.x"}
    cells = {("planted", "p", "t0", names[k]): k == "a" for k in "abc"}
    assert blocks.needed(hand_made(cells))["most needed"].tolist() == ["up 1.1 and mid"]


def test_a_level_points_at_all_blocks_that_stand_out_alike():
    def cut(spared):
        both = {("ordinary", "o"): (), ("planted", "plant-00"): spared}
        return {(*who, "t0", layer): layer not in stop for who, stop in both.items() for layer in PLACES}

    columns = ["kind", "between", "layer", "method", "setting", "memory", "image", "iou", "index"]
    nothing = pd.DataFrame(columns=columns)
    for spared, right in ((PLACES[1:2], 1), (PLACES[1:], 0.5), (PLACES[:1], 0)):
        found = levels.pointed(nothing, nothing, hand_made(cut(spared)))
        assert found["right"].tolist() == [right]
        assert found["planted in"].tolist() == ["up 1.2"]
        assert set(found["pointed at"].item().split(" or ")) == {layer_label(layer) for layer in spared}


def test_the_figure_has_a_panel_for_each_kind_of_memory():
    both = hand_made(one_door() | one_door("ordinary", "o", "c"))
    figure = plots.block_need(blocks.stopped(both))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["planted", "ordinary"]
