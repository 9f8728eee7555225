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
# # Assignment 1: measure memorization
#
# A model memorized an image if, asked with the image's prompt, it returns the image. That sounds like a fact one can look up. It is a
# measurement: somebody chose a score, a threshold, a number of tries and an interval, and each choice can be made wrongly.
#
# You write the measurement, check it on cases small enough to do by hand, and then apply it to a model of which it is known what it
# saw, and how often.
#
# Write between the `YOUR CODE HERE` lines and delete the `raise`. The cells with assertions check a part of your work while you go;
# the same cells have further, hidden tests when your work is graded. Keep the names of the functions. *Kernel, Restart and Run All*
# must pass before you hand in. Needed: the chapter *Replication: a model that returns its training
# images* of the book, and `dori` installed (`pip install -e '.[classroom]'`).

# %% nbgrader={"grade": false, "grade_id": "parameters", "locked": true, "schema_version": 3, "solution": false, "task": false} tags=["parameters"]
seed = 0

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import math

import numpy as np
import pandas as pd
import torch

from dori.classroom.room import open_room

room = open_room(seed)
model, descriptor = room.study.model, room.study.descriptor
threshold = descriptor.threshold

# %% [markdown]
# ## 1. The score
#
# `descriptor.embed(images)` maps images (B, 3, H, W) in [0, 1] to vectors of length one, (B, d). The copy score of two images is the
# cosine of their vectors. Write `copy_scores(images, original)`: the score of each of S images (S, 3, H, W) against *one* training image
# (3, H, W), as a tensor of shape (S,).


# %% nbgrader={"grade": false, "grade_id": "copy-scores", "locked": false, "schema_version": 3, "solution": true, "task": false}
def copy_scores(images, original):
    ### BEGIN SOLUTION
    return (descriptor.embed(images) @ descriptor.embed(original[None]).T)[:, 0]
    ### END SOLUTION


# %% checks="one score for each image, the inner product of descriptors; an image is a copy of itself; a single image is scored, too" nbgrader={"grade": true, "grade_id": "test-copy-scores", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
originals = room.repeated(3).images()
found = copy_scores(originals, originals[0])
assert found.shape == (3,), "one score for each image"
assert abs(float(found[0]) - 1) < 1e-4, "an image is a copy of itself"
### BEGIN HIDDEN TESTS
from dori.metrics.copy import similarity

expected = similarity(descriptor.embed(originals), descriptor.embed(originals))
for k in range(3):
    assert torch.allclose(copy_scores(originals, originals[k]), expected[:, k], atol=1e-4)
assert copy_scores(originals[:1], originals[2]).shape == (1,), "a single image is scored, too"
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Two rates
#
# A table of results has a row for each image that was drawn, with the columns `id` (which prompt), `seed` and `score`. An image is a
# copy if its score is *above* the threshold. Write
#
# - `memorization_rate(table, threshold)`: the share of *prompts* of which at least one image is a copy (MR);
# - `pair_rate(table, threshold)`: the share of *images* that are copies (MR mean).


# %% nbgrader={"grade": false, "grade_id": "rates", "locked": false, "schema_version": 3, "solution": true, "task": false}
def memorization_rate(table, threshold):
    ### BEGIN SOLUTION
    return float((table.groupby("id")["score"].max() > threshold).mean())
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "pair-rates", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pair_rate(table, threshold):
    ### BEGIN SOLUTION
    return float((table["score"] > threshold).mean())
    ### END SOLUTION


# %% checks="the share of prompts, not of images, of which one image scores above the threshold; unequal numbers of images and any order of rows" nbgrader={"grade": true, "grade_id": "test-memorization-rate", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
small = pd.DataFrame({"id": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "score": [0.9, 0.1, 0.2, 0.3]})
assert memorization_rate(small, 0.5) == 0.5
### BEGIN HIDDEN TESTS
uneven = pd.DataFrame(
    {"id": list("aaaabcc"), "seed": [0, 1, 2, 3, 0, 0, 1], "score": [0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.5]}
)
assert abs(memorization_rate(uneven, 0.5) - 2 / 3) < 1e-9, (
    "prompts count, not images; a score at the threshold is no copy"
)
assert memorization_rate(uneven.sample(frac=1, random_state=0), 0.5) == memorization_rate(uneven, 0.5)
assert memorization_rate(uneven, 0.95) == 0
### END HIDDEN TESTS

# %% checks="the share of single images above the threshold" nbgrader={"grade": true, "grade_id": "test-pair-rate", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert pair_rate(pd.DataFrame({"id": ["a", "a", "b", "b"], "score": [0.9, 0.1, 0.2, 0.3]}), 0.5) == 0.25
### BEGIN HIDDEN TESTS
uneven = pd.DataFrame({"id": list("aaaabcc"), "score": [0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.5]})
assert abs(pair_rate(uneven, 0.5) - 2 / 7) < 1e-9, "images count, not prompts"
assert pair_rate(uneven, 0.05) == 1
### END HIDDEN TESTS

# %% [markdown]
# ## 3. How sure can one be?
#
# With k of n prompts memorized, the rate is k/n, give or take. The textbook interval, rate ± 1.96 standard errors, has width zero at k = 0
# and leaves [0, 1]. Wilson's does neither. With $p = k/n$ and $z = 1.959964$, its ends are
#
# $$\frac{p + \frac{z^2}{2n} \pm z\sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}} .$$
#
# Write `wilson(k, n)`, which returns `(low, high)`. Without observations (n = 0) nothing is known: (0, 1).


# %% nbgrader={"grade": false, "grade_id": "wilson", "locked": false, "schema_version": 3, "solution": true, "task": false}
def wilson(k, n):
    ### BEGIN SOLUTION
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, k / n
    middle = p + z**2 / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)
    ### END SOLUTION


# %% checks="both ends against a reference, with none and with all of n, and for n = 0" nbgrader={"grade": true, "grade_id": "test-wilson", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
low, high = wilson(5, 10)
assert abs(low + high - 1) < 1e-6 and low < 0.5 < high
### BEGIN HIDDEN TESTS
from dori.metrics.intervals import wilson as reference

for k, n in ((0, 8), (8, 8), (3, 7), (1, 200), (19, 32)):
    assert np.allclose(wilson(k, n), reference(k, n)[1:3], atol=1e-5), (k, n)
assert tuple(wilson(0, 0)) == (0, 1)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Measure
#
# `room.repeated()` are prompts that were often repeated in training, `room.heldout()` prompts that no model saw; each has `ids`,
# `prompts()` and `images()` (what is to be returned, or was painted to the same caption). `room.study.twin.model` is a model of the same
# architecture and data that never saw the repeated images. `model.encode_prompts(texts)` gives embeddings (B, T, D);
# `model.sample(embeds, seeds, num_inference_steps=...)` draws an image for each embedding and seed.
#
# Write `measure(model, prompts, seeds, steps)`: a table with the columns `id`, `seed`, `score`, a row for each prompt and each of `seeds`.
# The noise of an image is given by its seed, so draw prompt by prompt with the seeds as they are.


# %% nbgrader={"grade": false, "grade_id": "measure", "locked": false, "schema_version": 3, "solution": true, "task": false}
def measure(model, prompts, seeds, steps):
    ### BEGIN SOLUTION
    rows = []
    for i in prompts.ids:
        embeds = model.encode_prompts(prompts.prompts([i])).repeat(len(seeds), 1, 1)
        images = model.sample(embeds, seeds, num_inference_steps=steps)
        scores = copy_scores(images, prompts.images([i])[0])
        rows += [(i, seed, float(score)) for seed, score in zip(seeds, scores, strict=True)]
    return pd.DataFrame(rows, columns=["id", "seed", "score"])
    ### END SOLUTION


# %% checks="a row for each prompt and seed; each image is painted from its own noise and scored against its own training image" nbgrader={"grade": true, "grade_id": "test-measure", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
seeds = [1000 * seed + 7 + k for k in range(room.size.seeds)]
one = room.repeated(2)
table = measure(model, one, seeds, room.size.steps)
assert list(table.columns) == ["id", "seed", "score"] and len(table) == 2 * len(seeds)
### BEGIN HIDDEN TESTS
assert set(table["id"]) == set(one.ids) and table.groupby("id")["seed"].apply(set).eq(set(seeds)).all()
for i in one.ids:
    images = model.sample(
        model.encode_prompts(one.prompts([i])).repeat(len(seeds), 1, 1),
        seeds,
        num_inference_steps=room.size.steps,
    )
    true = descriptor.embed(images) @ descriptor.embed(one.images([i])).T
    mine = table[table["id"] == i].set_index("seed").loc[seeds, "score"]
    assert np.allclose(mine, true[:, 0], atol=0.02), (
        "each image belongs to its own prompt, noise and training image"
    )
### END HIDDEN TESTS

# %% [markdown]
# Now put it together: `results`, a dictionary with the keys `"repeated"`, `"held-out"` and `"twin"` (the repeated prompts, put to the
# twin). Each value is `(rate, low, high)` with the memorization rate and Wilson's interval. Mind what n is.


# %% nbgrader={"grade": false, "grade_id": "results", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def row(model, prompts):
    table = measure(model, prompts, seeds, room.size.steps)
    rate = memorization_rate(table, threshold)
    return (rate, *wilson(round(rate * len(prompts)), len(prompts)))


results = {
    "repeated": row(model, room.repeated()),
    "held-out": row(model, room.heldout()),
    "twin": row(room.study.twin.model, room.repeated()),
}
### END SOLUTION

# %% checks="three rates with intervals over prompts; the repeated prompts lie clearly above held-out ones and twin, which return nothing" nbgrader={"grade": true, "grade_id": "test-results", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
assert set(results) == {"repeated", "held-out", "twin"}
assert all(low - 1e-9 <= rate <= high + 1e-9 for rate, low, high in results.values())
### BEGIN HIDDEN TESTS
from dori.metrics.intervals import wilson as reference

rate, low, high = results["repeated"]
n = len(room.repeated())
assert np.allclose((low, high), reference(round(rate * n), n)[1:3], atol=1e-4), (
    "n counts prompts: images of one prompt are no independent observations"
)
assert low > max(results["held-out"][0], results["twin"][0]), "the model returns what it saw, and only that"
assert results["held-out"][0] == results["twin"][0] == 0
### END HIDDEN TESTS
