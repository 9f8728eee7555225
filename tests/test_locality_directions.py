"""Chapter 3: what of a search's way does an image need?"""

import dataclasses

import pandas as pd
import pytest
import torch

from dori.attack import Attack
from dori.experiments import locality_blocks as blocks
from dori.experiments import locality_directions as directions
from dori.experiments.locality_activations import nearer
from dori.experiments.memories import ORDINARY, PLANTED, Memory
from dori.experiments.triggers import find_triggers, score_found
from dori.hooks import find_layer
from dori.locality.distances import pairwise
from dori.mitigation.units import Units


@pytest.fixture
def memory(study):
    """An image of the small study, whatever its searches found counted as triggers."""
    prompts = study.memorized.head(1)
    found = find_triggers(study, prompts, Attack("random", 1), 2)
    scores = score_found(study, prompts, found).assign(replicated=True)
    return Memory(ORDINARY, study, prompts, found, scores)


def test_a_projection_keeps_what_the_rows_span():
    rows = torch.tensor([[2.0, 0, 0, 0], [1, 1, 0, 0]])
    assert torch.allclose(
        directions.spanned(rows), torch.diag(torch.tensor([1.0, 1, 0, 0])).double(), atol=1e-9
    )


def test_the_rows_that_a_way_drives_most_are_taken():
    weight = torch.tensor([[1.0, 0], [0, 1], [0, -3], [0.5, 0]])
    way = torch.tensor([[0.0, 1], [0, -1], [1, 0]])  # mean |value|: 1/3, 2/3, 2, 1/6
    assert directions.read_most(weight, way, 2).tolist() == [[0, -3], [0, 1]]
    assert len(directions.read_most(weight, way, 16)) == 2, "no more rows than dimensions"


def test_a_part_of_the_way_is_added_to_the_start(memory):
    found = memory.found[0]
    half = directions.altered(memory, found, lambda way: way / 2, "half of it")
    torch.testing.assert_close(half.embeds, (found.start + found.embeds.cpu()) / 2)
    assert (half.name, half.start is found.start) == (f"{found.name}, half of it", True)
    assert (
        half.source != directions.altered(memory, memory.found[1], lambda way: way / 2, "half of it").source
    )


def test_rows_that_are_no_tokens_keep_their_way(memory, monkeypatch):
    monkeypatch.setattr(type(memory.study.model), "tokens", lambda self, y: y[:, :-1])
    found = memory.found[0]
    none = directions.altered(memory, found, torch.zeros_like, "nothing").embeds
    torch.testing.assert_close(none[:-1], found.start[:-1])
    torch.testing.assert_close(none[-1], found.embeds[-1].cpu())


def test_every_trigger_loses_what_every_block_reads(memory):
    found = directions.table([memory])
    layers = memory.study.model.cross_attention()
    assert found["layer"].tolist() == layers * found["trigger"].nunique()
    assert blocks.indices(found)["index"].between(0, 1).all()
    computed = memory.study.store.computed
    pd.testing.assert_frame_equal(directions.table([memory]), found)
    assert memory.study.store.computed == computed
    none = dataclasses.replace(memory, scores=memory.scores.assign(replicated=False))
    assert directions.table([none]).empty
    assert directions.coarseness([none]) == ""
    assert "directions" in directions.coarseness([memory])


def test_what_a_block_reads_is_gone_from_the_way(memory):
    block = memory.study.model.cross_attention()[0]
    one = directions._without_block(memory, memory.found[0], block)
    weight = find_layer(memory.study.model.unet, f"{block}.to_v").weight
    whole = memory.found[0].embeds.cpu().double() - one.start.double()
    rows = directions.read_most(weight, whole)
    left = one.embeds.double() - one.start.double()
    assert float((left @ rows.T).norm()) < 1e-4 * float((whole @ rows.T).norm())


def test_doors_are_tried_beside_random_directions(memory, monkeypatch):
    from dori.testbed import planted

    layer = f"{memory.study.model.cross_attention()[0]}.to_v"
    neurons = torch.zeros(len(find_layer(memory.study.model.unet, layer).weight), dtype=torch.bool)
    neurons[:2] = True
    monkeypatch.setattr(planted, "known_units", lambda which: (Units({layer: neurons}), Units({})))
    assert directions.known_door([memory]).empty, "without planted memories there is no door"
    both = [memory, dataclasses.replace(memory, kind=PLANTED)]
    found = directions.known_door(both)
    assert len(found["part"].unique()) == 4
    shown = directions.door_rates(found)
    assert len(shown) == 8
    assert shown.index[0][0] == f"{directions.WITHOUT} {directions.DOOR}"


def test_the_door_shows_where_its_neurons_alone_are_looked_at(memory, study, monkeypatch):
    from dori.testbed import planted

    one = study.memorized.head(2)
    found = find_triggers(study, one, Attack("random", 1), 2)
    scores = score_found(study, one, found).assign(replicated=True)
    other = Memory(ORDINARY, study, one.only([one.ids[1]]), [f for f in found if f.image == one.ids[1]],
                   scores[scores["id"] == one.ids[1]])  # fmt: skip
    layer = f"{study.model.cross_attention()[0]}.to_v"
    neurons = torch.zeros(len(find_layer(study.model.unet, layer).weight), dtype=torch.bool)
    neurons[:2] = True
    monkeypatch.setattr(planted, "known_units", lambda which: (Units({layer: neurons}), Units({})))
    assert directions.door_activity([memory, other]).empty, "nothing was planted"
    same = [dataclasses.replace(f, embeds=memory.found[0].embeds) for f in memory.found]
    local = dataclasses.replace(memory, kind=PLANTED, found=same)
    table = directions.door_activity([local, other])
    assert table["door"].tolist() == pytest.approx([1.0]), "ordinary memories need others to be compared with"
    assert table["others"].tolist() == pytest.approx([1.0])
    assert "is 1.00 for planted memories" in directions.activity_said(table)
    size = torch.tensor([[0.0], [1], [4], [5]])  # own 1 apart, others 4.5 - 0.5 = 4 away on average
    assert nearer(pairwise(size), 2) == pytest.approx(0.75)


def of_doors(returned):
    """{(memory, part): (triggers that return the image, of 2)}."""
    rows = [(m, part, "i", f"t{k}", k < n) for (m, part), n in returned.items() for k in range(2)]
    return pd.DataFrame(rows, columns=["memory", "part", "id", "trigger", "replicated"])


def test_what_is_said_of_the_doors_follows_the_shares():
    less, other = (f"{directions.WITHOUT} {what}" for what in (directions.DOOR, directions.RANDOM))
    only, chance = (f"{directions.ALONE} {what}" for what in (directions.DOOR, directions.RANDOM))
    usual = {(ORDINARY, part): n for part, n in ((less, 2), (other, 2), (only, 0), (chance, 0))}
    needed = {(PLANTED, less): 0, (PLANTED, other): 2, (PLANTED, only): 0, (PLANTED, chance): 0}
    told = directions.door_said(of_doors(usual | needed))
    assert "Planted memories need what their door reads" in told
    assert "1.00 more of their triggers fail" in told
    assert "(ordinary memories 0.00)" in told
    assert "is not enough" in told
    assert "do not stand out" in directions.door_said(of_doors(usual | needed | {(ORDINARY, less): 0}))
    assert "By itself it is enough" in directions.door_said(of_doors(usual | needed | {(PLANTED, only): 2}))
    assert directions.door_said(pd.DataFrame()) == ""
