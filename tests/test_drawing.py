"""Images are drawn once, whoever asks and in whatever batches; a row without a score costs one line."""

import dataclasses

import pytest
import torch

from dori.drawing import (
    Trigger,
    drawn,
    generate_and_score,
    prompt_trigger,
    rows_at_once,
    score_triggers,
    stored_images,
)
from dori.errors import DoriError
from dori.experiments.searches import at_once
from dori.mitigation.units import Units
from dori.store import RunStore


@pytest.fixture
def sampled(study, monkeypatch):
    """Number of images of each call of the sampler."""
    calls, sample = [], study.model.sample

    def counted(embeds, seeds, **more):
        calls.append(len(seeds))
        return sample(embeds, seeds, **more)

    monkeypatch.setattr(study.model, "sample", counted)
    return calls


def some_units(model):
    widths = {name: layer.out_features for name, layer in model.value_layers().items()}
    return Units.of(dict.fromkeys(widths, range(4)), widths)


def test_a_prompt_is_a_trigger_without_units(study, sampled):
    plain = dict(stored_images(study, study.memorized, study.sampling()))
    nothing = Units(dict.fromkeys(study.model.value_layers(), torch.zeros(8, dtype=torch.bool)))
    triggers = [prompt_trigger(study.memorized, i, nothing) for i in study.memorized.ids]
    again = {t.id: images for t, images in drawn(study, triggers, study.sampling())}
    assert sum(sampled) == 6
    assert all(torch.equal(plain[i], again[i]) for i in plain)


def test_more_seeds_are_added_to_what_lies_there(study, sampled):
    few = dict(stored_images(study, study.memorized, study.sampling(seeds=1)))
    many = dict(stored_images(study, study.memorized, study.sampling(seeds=3)))
    assert sum(sampled) == 3 * 3
    assert all(torch.equal(few[i][0], many[i][0]) for i in few)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_batches_of_any_size_give_the_same_images(study, rows):
    """Prompts and embeddings, with units and without, some of whose images lie there."""
    units, ids = some_units(study.model), study.memorized.ids
    y = study.model.encode_prompts(["red boat at noon"])[0]
    triggers = [Trigger(ids[0], y, units), prompt_trigger(study.memorized, ids[1], units), Trigger(ids[2], y)]
    whole = dict(zip(ids, (x for _, x in drawn(study, triggers, study.sampling(seeds=3))), strict=True))
    store = RunStore(study.store.directory / "other")
    other = dataclasses.replace(study, store=store, images_at_once=rows)
    list(drawn(other, triggers[1:2], study.sampling(seeds=1)))
    for trigger, images in drawn(other, triggers, study.sampling(seeds=3)):
        torch.testing.assert_close(images, whole[trigger.id], atol=1.5 / 255, rtol=0)
    assert not torch.equal(whole[ids[0]], whole[ids[2]])


def test_units_and_embeddings_make_other_images(study):
    item, y = study.memorized.ids[0], study.model.encode_prompts(["red boat"])[0]
    triggers = [Trigger(item, y), Trigger(item, y + 1), Trigger(item, y, some_units(study.model))]
    plain, moved, pruned = (x for _, x in drawn(study, triggers, study.sampling()))
    assert not torch.equal(plain, moved)
    assert not torch.equal(plain, pruned)


def test_a_row_whose_image_cannot_be_read_is_left_out_and_named(study, sampled, caplog):
    path = study.memorized.path.parent / study.memorized.table["image"].iloc[1]
    path.write_bytes(b"no picture")
    table = generate_and_score(study, study.memorized)
    assert set(table["id"]) == {study.memorized.ids[0], study.memorized.ids[2]}
    assert list(table.attrs["skipped"]) == [study.memorized.ids[1]]
    assert "not a readable image" in caplog.text
    assert sum(sampled) == 4
    path.unlink()
    one = dataclasses.replace(study.memorized, table=study.memorized.table.iloc[1:2])
    with pytest.raises(DoriError, match="none of 1 rows"):
        generate_and_score(study, one)


def test_scores_are_kept_and_belong_to_the_training_image(study, monkeypatch):
    first = generate_and_score(study, study.memorized)
    embed = type(study.descriptor).embed
    monkeypatch.setattr(type(study.descriptor), "embed", None)
    assert generate_and_score(study, study.memorized).equals(first)
    monkeypatch.setattr(type(study.descriptor), "embed", embed)
    names = study.memorized.table["image"]
    swapped = dataclasses.replace(
        study.memorized, table=study.memorized.table.assign(image=names.iloc[[1, 2, 0]].tolist())
    )
    assert not generate_and_score(study, swapped)["score"].equals(first["score"])


def test_an_embedding_is_scored_as_the_prompt_it_encodes(study):
    plain = generate_and_score(study, study.memorized)
    embeds = study.model.encode_prompts(study.memorized.prompts())
    triggers = [Trigger(i, y) for i, y in zip(study.memorized.ids, embeds, strict=True)]
    scored = score_triggers(study, study.memorized, triggers)
    assert (scored["score"] - plain["score"]).abs().max() < 1e-3


def test_batches_follow_the_size_of_the_images(study, monkeypatch):
    sizes = {}
    for side in (16, 64, 512):
        monkeypatch.setattr(
            study.model, "defaults", dataclasses.replace(study.model.defaults, image_size=side)
        )
        sizes[side] = (rows_at_once(study), at_once(study))
    assert sizes[64] == (32, 16)
    assert sizes[512] == (1, 1)
    assert sizes[16] > sizes[64]
    one = dataclasses.replace(study, images_at_once=3)
    assert (rows_at_once(one), at_once(one)) == (3, 3)
