# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (dori)
#     language: python
#     name: python3
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Assignment 3: break a pruning, and ask where the memory is
#
# Pruning rests on the idea that a memory lives in a few weights: find them, cut them, and it is gone. You test this twice. First you
# break the pruning: you search for embeddings that bring the image back though the weights are off. Then you ask the method for the
# weights of *those* embeddings. If the memory had a place, one would think, they would be the same weights. Their overlap is measured as
# intersection over union (IoU), which you write first. What it can show, and what it cannot, is the last question.
#
# Write between the `YOUR CODE HERE` lines and delete the `raise`; keep the names. The same cells have further, hidden tests when your
# work is graded. Needed: the chapters *Pruning: is a silenced image gone?* and *Is a memory in one place?* of the book.

# %% nbgrader={"grade": false, "grade_id": "parameters", "locked": true, "schema_version": 3, "solution": false, "task": false} tags=["parameters"]
seed = 0

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import itertools
import math

import torch

from dori.attack import dori_attack, initial_embeds
from dori.classroom.room import open_room
from dori.experiments.erasing import PRUNING
from dori.mitigation.wanda import wanda

room = open_room(seed)
model, prompts = room.study.model, room.silenced()
pruned = room.pruned(prompts)  # id -> units: layer name -> mask, True where a weight is off

# %% [markdown]
# ## 1. Intersection over union
#
# `iou(a, b)` of two sets of weights, each a mapping from layer names to masks (True: in the set). All layers count together: the number of
# weights in both over the number in either. A layer that one of them lacks has no weight in that set. If neither has any weight the
# overlap is undefined: return `math.nan`.


# %% nbgrader={"grade": false, "grade_id": "iou", "locked": false, "schema_version": 3, "solution": true, "task": false}
def iou(a, b):
    ### BEGIN SOLUTION
    both = either = 0
    for name in {*a, *b}:
        x, y = a.get(name), b.get(name)
        x = torch.zeros_like(y) if x is None else x
        y = torch.zeros_like(x) if y is None else y
        both, either = both + int((x & y).sum()), either + int((x | y).sum())
    return both / either if either else math.nan
    ### END SOLUTION


# %% checks="intersection over union, over all layers together" nbgrader={"grade": true, "grade_id": "test-iou", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
a = {"one": torch.tensor([True, True, False, False])}
b = {"one": torch.tensor([True, False, True, False])}
assert abs(iou(a, b) - 1 / 3) < 1e-9
assert iou(a, a) == 1
### BEGIN HIDDEN TESTS
wide = {"one": torch.tensor([True] * 2 + [False] * 2), "two": torch.tensor([True] * 6 + [False] * 4)}
narrow = {"one": torch.tensor([True] * 2 + [False] * 2), "two": torch.tensor([False] * 6 + [True] * 4)}
assert abs(iou(wide, narrow) - 2 / 12) < 1e-9, "all layers count together; it is no mean over layers"
first, second = (pruned[i] for i in prompts.ids[:2])
assert abs(iou(dict(first), dict(second)) - first.iou(second)) < 1e-9
### END HIDDEN TESTS

# %% checks="two empty sets have no overlap to speak of (NaN); a layer that is lacking counts as empty" nbgrader={"grade": true, "grade_id": "test-iou-edges", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
empty = {"one": torch.zeros(4, dtype=torch.bool)}
assert iou(a, empty) == 0
### BEGIN HIDDEN TESTS
assert math.isnan(iou(empty, empty)), "nothing in common with nothing is not full agreement"
assert abs(iou(a, wide) - 2 / 8) < 1e-9 and abs(iou(wide, a) - 2 / 8) < 1e-9, (
    "a layer that is lacking has no weight in the set"
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The mean overlap of several sets
#
# `mean_iou(sets)`: the mean IoU over all pairs of a list of sets; pairs without a defined IoU are left out, and without any pair left it
# is `math.nan`.


# %% nbgrader={"grade": false, "grade_id": "mean-iou", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mean_iou(sets):
    ### BEGIN SOLUTION
    found = [iou(a, b) for a, b in itertools.combinations(sets, 2)]
    found = [x for x in found if not math.isnan(x)]
    return sum(found) / len(found) if found else math.nan
    ### END SOLUTION


# %% checks="the mean over pairs of different sets; undefined pairs are left out" nbgrader={"grade": true, "grade_id": "test-mean-iou", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert abs(mean_iou([a, b, a]) - (1 / 3 + 1 + 1 / 3) / 3) < 1e-9
### BEGIN HIDDEN TESTS
assert math.isnan(mean_iou([a])), "a set is not compared with itself"
assert abs(mean_iou([a, b, empty]) - (1 / 3 + 0 + 0) / 3) < 1e-9
defined = [x for x in (iou(empty, empty), iou(empty, a), iou(empty, a)) if not math.isnan(x)]
assert abs(mean_iou([empty, empty, a]) - sum(defined) / len(defined)) < 1e-9, (
    "an undefined pair is left out: it is neither 0 nor 1"
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Break it
#
# `break_pruning(init, seeds)`: search a trigger for each image of `prompts` on *its* pruned model. With `room.latents(prompts)`,
# `initial_embeds(model, init, prompts=…, seeds=…)` for the starts (`"prompt"` or `"random"`), and
# `dori_attack(model, latents, starts, room.size.search, seeds=…, units=…)`, whose result has the embeddings in `.embeds`, (N, T, D).
# `units` is a list, in the order of the images. Return a dictionary: id of the image -> embedding (T, D).


# %% nbgrader={"grade": false, "grade_id": "break-pruning", "locked": false, "schema_version": 3, "solution": true, "task": false}
def break_pruning(init, seeds):
    ### BEGIN SOLUTION
    starts = initial_embeds(model, init, prompts=prompts.prompts(), seeds=seeds)
    units = [pruned[i] for i in prompts.ids]
    found = dori_attack(model, room.latents(prompts), starts, room.size.search, seeds=seeds, units=units)
    return dict(zip(prompts.ids, found.embeds, strict=True))
    ### END SOLUTION


# %% checks="each trigger is that of its own image’s pruned model, from its own start; weights stay as they were" nbgrader={"grade": true, "grade_id": "test-break-pruning", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
weights = room.weights
seeds = [100 * seed + k for k in range(len(prompts))]
triggers = break_pruning("prompt", seeds)
assert list(triggers) == list(prompts.ids)
assert all(e.shape == model.unconditional.shape[1:] for e in triggers.values())
### BEGIN HIDDEN TESTS
assert room.weights == weights, "an attacker does not touch weights"
starts = initial_embeds(model, "prompt", prompts=prompts.prompts(), seeds=seeds)
units = [pruned[i] for i in prompts.ids]
true = dori_attack(model, room.latents(prompts), starts, room.size.search, seeds=seeds, units=units).embeds
for n, i in enumerate(prompts.ids):
    apart, moved = (triggers[i] - true[n]).norm(), (true[n] - starts[n]).norm()
    assert apart < 0.2 * moved, f"{i}: this is not the trigger of its own pruned model from its own prompt"
### END HIDDEN TESTS

# %% [markdown]
# `best_scores(embeds)`: the best copy score of each image, drawn on its pruned model, as a dictionary by id. `embeds` are embeddings by id,
# or `None` for the prompts. `room.scores(prompts, embeds=…, units=…)` draws and gives a row for each image and seed.


# %% nbgrader={"grade": false, "grade_id": "best-scores", "locked": false, "schema_version": 3, "solution": true, "task": false}
def best_scores(embeds):
    ### BEGIN SOLUTION
    return room.scores(prompts, embeds=embeds, units=pruned).groupby("id")["score"].max().to_dict()
    ### END SOLUTION


# %% checks="the best seed of each image, painted by its own pruned model, from the prompt and from other embeddings" nbgrader={"grade": true, "grade_id": "test-best-scores", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
silenced, revived = best_scores(None), best_scores(triggers)
print("with the prompt:", silenced, "with the trigger:", revived, sep="\n")
assert set(silenced) == set(revived) == set(prompts.ids)
### BEGIN HIDDEN TESTS
near = dict(zip(prompts.ids, 0.9 * room.embeds(prompts), strict=True))
for embeds, mine in ((None, silenced), (near, best_scores(near))):
    table = room.scores(prompts, embeds=embeds, units=pruned)
    for i in prompts.ids:
        assert abs(table.loc[table["id"] == i, "score"].max() - mine[i]) < 1e-6, (
            "the best seed, on the pruned model"
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Where is it?
#
# `wanda(model, embeds, settings=PRUNING)` gives the weights that are found for each of N embeddings (N, T, D). Search a second trigger for
# each image, from random numbers; call the dictionary `second`. Then compare:
#
# - `same`: the mean over the images of the `mean_iou` of the three sets of one image: of its prompt, of its first and of its second trigger;
# - `different`: the `mean_iou` of the prompts' sets of different images.

# %% nbgrader={"grade": false, "grade_id": "where", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
second = break_pruning("random", seeds)
by_image = [
    wanda(model, torch.stack([own, triggers[i], second[i]]), settings=PRUNING)
    for i, own in zip(prompts.ids, room.embeds(prompts), strict=True)
]
same = sum(mean_iou(sets) for sets in by_image) / len(by_image)
different = mean_iou([sets[0] for sets in by_image])
### END SOLUTION

# %% checks="the overlap within an image, over three embeddings, and that between the images’ prompts" nbgrader={"grade": true, "grade_id": "test-where", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
print(f"one image, three embeddings: {same:.2f}; different images: {different:.2f}")
assert 0 < same < 1 and 0 < different < 1
### BEGIN HIDDEN TESTS
own = wanda(model, room.embeds(prompts), settings=PRUNING)
pairs = [x.iou(y) for x, y in itertools.combinations(own, 2)]
assert abs(different - sum(pairs) / len(pairs)) < 0.01, "the prompts' sets of different images"
starts = initial_embeds(model, "random", prompts=prompts.prompts(), seeds=seeds)
for n, i in enumerate(prompts.ids):
    assert 0 < (second[i] - starts[n]).norm() < (room.embeds(prompts)[n] - starts[n]).norm(), (
        "from random numbers"
    )
three = [[e, triggers[i], second[i]] for e, i in zip(room.embeds(prompts), prompts.ids, strict=True)]
found = [wanda(model, torch.stack(x), settings=PRUNING) for x in three]
each = [[x.iou(y) for x, y in itertools.combinations(sets, 2)] for sets in found]
assert abs(same - sum(map(sum, each)) / (3 * len(each))) < 0.03, (
    "three sets for each image, all pairs of them"
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5. What does it show?
#
# Low overlap looks like an answer: the method takes other weights for another trigger, so the memory has no place. Before you write
# that, ask what the same figure would be for a memory that *does* have a place. The chapter *Is a memory in one place?* has such
# memories, planted in one block of the model, and puts every diagnostic to them. Where planted memories stand no higher than the others,
# a diagnostic is *blind*: it says nothing about place, in either direction. Look up what the chapter finds for the overlap of Wanda's
# weights, and which of its diagnostics can tell.
#
# What your figure does say: a pruning made for one embedding of an image is, to that degree, another one than that made for the next.
# Two more marks belong beside it: what random sets of the same sizes share, and what the method shares with itself when it is asked
# twice, with other noise.
