"""The leaderboard: what counts as a defence, and who is first."""

import pandas as pd
import pytest
import torch

from dori.classroom.leaderboard import MOST_LOST, board, defended, shown
from dori.classroom.room import SIZES, Room, open_room, size
from dori.errors import DoriError
from dori.metrics.intervals import wilson
from dori.mitigation.units import Units


@pytest.fixture
def room(study) -> Room:
    return Room(study, SIZES["smoke"], None)


def row(k: int, score: float, loss: float = 1.0) -> dict:
    return {"prompt": wilson(0, 4), "attack": wilson(k, 4), "score": score, "loss": loss}


def test_the_rate_decides_then_the_score():
    table = board({"a": row(2, 0.1), "b": row(0, 0.5), "c": row(0, 0.4)}, trained=1.0)
    assert list(table.index) == ["c", "b", "a"]
    assert list(table["rank"]) == [1, 2, 3]


def test_equal_rows_share_a_rank():
    table = board({"a": row(1, 0.3), "b": row(1, 0.3), "c": row(2, 0.3)}, trained=1.0)
    assert list(table["rank"]) == [1, 1, 3]


def test_a_broken_model_is_last_and_has_no_rank():
    table = board({"noise": row(0, -0.1, 1 + MOST_LOST + 0.01), "a": row(4, 0.9)}, trained=1.0)
    assert list(table.index) == ["a", "noise"]
    assert pd.isna(table.loc["noise", "rank"])
    assert table.loc["noise", "lost"] == pytest.approx(MOST_LOST + 0.01)
    assert shown(table).loc["noise", "rank"] == "–"
    assert shown(table).loc["a", "rate, held-out search"].startswith("1.00 [")


def test_a_defence_gets_a_copy_that_can_be_trained(room):
    before = room.weights

    def defend(model, prompts):
        assert list(prompts.ids) == list(room.study.memorized.ids)
        assert all(p.requires_grad for p in model.unet.parameters())
        with torch.no_grad():
            model.unet.conv_in.weight.add_(0.1)

    mine = defended(room, room.study.memorized, defend)
    assert room.weights == before
    assert torch.allclose(
        mine.model.unet.conv_in.weight, room.study.model.unet.conv_in.weight + 0.1, atol=1e-6
    )
    assert not any(p.requires_grad for p in mine.model.unet.parameters())
    assert mine.model.fingerprint != room.study.model.fingerprint


def test_units_are_switched_off_for_good(room):
    name, layer = next(iter(room.study.model.value_layers().items()))
    units = Units.of({name: [1]}, {name: layer.out_features})
    mine = defended(room, room.study.memorized, lambda model, prompts: units)
    assert mine.model.unet.get_submodule(name).weight[1].abs().sum() == 0
    assert layer.weight[1].abs().sum() > 0


def test_hooks_stay_behind(room):
    def defend(model, prompts):
        model.unet.register_forward_hook(lambda *_: pytest.fail("a filter is no defence of the weights"))

    mine = defended(room, room.study.memorized, defend)
    mine.model.sample(mine.model.unconditional, [0], num_inference_steps=1)


def test_only_the_unet_may_change(room):
    weight = room.study.model.vae.decoder.conv_out.weight
    kept = weight.detach().clone()

    def defend(model, prompts):
        with torch.no_grad():
            model.vae.decoder.conv_out.weight.zero_()

    try:
        with pytest.raises(DoriError, match="changed the model it was not given"):
            defended(room, room.study.memorized, defend)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize(
    ("defend", "reason"),
    [
        (lambda model, prompts: "done", "returned a str"),
        (lambda model, prompts: [model.unet.conv_in.weight.data.fill_(torch.nan)].clear(), "not finite"),
        (lambda model, prompts: model.unet.add_module("more", torch.nn.Linear(1, 1)), "another network"),
    ],
    ids=["another return value", "not a number", "more weights"],
)
def test_what_is_no_defence_is_refused_in_one_line(room, defend, reason):
    with pytest.raises(DoriError, match=reason):
        defended(room, room.study.memorized, defend, "hers")


def test_the_size_is_named_by_the_environment(monkeypatch):
    monkeypatch.delenv("DORI_ASSIGNMENT_PRESET", raising=False)
    assert size() == SIZES["quick"]
    monkeypatch.setenv("DORI_ASSIGNMENT_PRESET", "huge")
    with pytest.raises(DoriError, match="use smoke or quick"):
        size()


def test_without_the_testbed_students_are_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("dori.classroom.room.TESTBED", tmp_path)
    with pytest.raises(DoriError, match="clone the whole repository"):
        open_room()


def test_the_attacker_that_judges_is_none_that_students_are_shown():
    for one in SIZES.values():
        shown_, held_out = one.search, one.heldout
        assert held_out.init != shown_.init
        assert held_out.optimizer != shown_.optimizer
        assert held_out.lr != shown_.lr


def test_images_follow_the_seed(room):
    import dataclasses

    other = dataclasses.replace(room, study=dataclasses.replace(room.study, seed=3))
    eps, _ = room.draws(torch.zeros(1, 4, 2, 2), 2)
    assert not torch.equal(eps, other.draws(torch.zeros(1, 4, 2, 2), 2)[0])


def test_memorized_and_silenced_images_are_those_of_which_it_is_true(room, monkeypatch):
    ids, half = list(room.study.memorized.ids), room.study.descriptor.threshold / 2
    monkeypatch.setattr("dori.classroom.room.erasing.erased", lambda study: study.memorized)
    monkeypatch.setattr(Room, "pruned", lambda self, row: {i: ids.index(i) for i in row.ids})

    def scores(self, row, *, units=None, **_):  # all but the first return their image; pruning hides the last
        n = ids.index(row.ids[0])
        score = half - 0.1 if units and n == len(ids) - 1 else 0.9
        return pd.DataFrame({"score": [score, 0.1], "replicated": [n > 0, n > 0]})

    monkeypatch.setattr(Room, "scores", scores)
    assert set(room.memorized(2).ids) == set(ids[1:])
    assert list(room.silenced(1).ids) == ids[-1:]
    with pytest.raises(DoriError, match="1 of 3 images can be used here, not 2"):
        room.silenced(2)
