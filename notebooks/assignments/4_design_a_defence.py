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
# # Assignment 4: design a defence
#
# The images are yours to hide, the model is yours to change, and the attacker is not. Your defence is judged by three questions. Does the
# model still return the images for their prompts? Does a search bring them back, with another start, optimiser and step size than the
# searches you have seen? And is the model still good for anything else?
#
# Write between the `YOUR CODE HERE` lines and delete the `raise`; keep the names. The same cells have further, hidden tests when your work
# is graded; there the attacker has another seed. Needed: the chapters *Pruning: is a silenced image gone?* and *Training
# against the search* of the book, assignments 2 and 3.

# %% nbgrader={"grade": false, "grade_id": "parameters", "locked": true, "schema_version": 3, "solution": false, "task": false} tags=["parameters"]
seed = 0

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import torch

from dori.classroom.leaderboard import MOST_LOST, compete, defended, judge, prune_jointly, shown, utility_loss
from dori.classroom.room import open_room
from dori.experiments.erasing import retain_pairs

room = open_room(seed)
prompts = room.memorized()

# %% [markdown]
# ## 1. When is a defence better?
#
# With few images, rates differ by chance. If $k_1$ of $n_1$ images return under one defence and $k_2$ of $n_2$ under another, Newcombe's
# interval of the difference $p_1 - p_2$ is made of the two Wilson intervals $(l_1, u_1)$ and $(l_2, u_2)$:
#
# $$\Big(p_1 - p_2 - \sqrt{(p_1 - l_1)^2 + (u_2 - p_2)^2},\quad p_1 - p_2 + \sqrt{(u_1 - p_1)^2 + (p_2 - l_2)^2}\Big).$$
#
# Write `clearly_lower(k1, n1, k2, n2)`: whether the first rate is lower and the interval lies wholly below zero. `dori.metrics.intervals.wilson`
# gives `(rate, low, high, n)`.


# %% nbgrader={"grade": false, "grade_id": "clearly-lower", "locked": false, "schema_version": 3, "solution": true, "task": false}
def clearly_lower(k1, n1, k2, n2):
    ### BEGIN SOLUTION
    from dori.metrics.intervals import wilson

    a, b = wilson(k1, n1), wilson(k2, n2)
    return bool(a.value - b.value + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5 < 0)
    ### END SOLUTION


# %% checks="Newcombe’s interval lies below zero: against a reference, in close cases, too" nbgrader={"grade": true, "grade_id": "test-clearly-lower", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
assert clearly_lower(0, 100, 100, 100)
assert not clearly_lower(1, 2, 1, 2)
### BEGIN HIDDEN TESTS
from dori.metrics.intervals import rate_difference, wilson

for k1, n1, k2, n2 in (
    (0, 3, 3, 3),
    (0, 2, 1, 2),
    (2, 10, 6, 10),
    (20, 100, 35, 100),
    (35, 100, 20, 100),
    (1, 12, 7, 12),
    (3, 20, 9, 20),
    (3, 20, 10, 20),
):
    interval = rate_difference(wilson(k1, n1), wilson(k2, n2))
    assert clearly_lower(k1, n1, k2, n2) == (interval.high < 0), (k1, n1, k2, n2)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Your defence
#
# `defend(model, prompts)` gets a copy of the model and the images to hide: `prompts.prompts()`, `prompts.images()`, `prompts.ids`. It changes
# the weights of `model.unet` in place and returns `None`, or it returns `Units`, which are then switched off for good, as `prune_jointly`
# does. What you may use: everything in `dori`, in particular
#
# - `model.encode_images`, `model.encode_prompts`, `model.add_noise`, `model.predict`, `model.alphas_cumprod`;
# - `retain_pairs(room.study, n)`: n pairs of the training set (`.latents`, `.prompt_embeds`) to keep the model good by.
#
# Only the UNet's weights count; hooks, the text encoder and the autoencoder do not. Put all that it needs into this cell, which the class's
# leaderboard takes by itself, and keep it under two minutes.


# %% nbgrader={"grade": false, "grade_id": "defend", "locked": false, "schema_version": 3, "solution": true, "task": false}
def defend(model, prompts):
    ### BEGIN SOLUTION
    # Whatever the embedding, a noised target is to be denoised into another picture; regular pairs stay as they are.
    generator = torch.Generator().manual_seed(seed)
    keep = retain_pairs(room.study, 64)
    x, own = model.encode_images(prompts.images()), model.encode_prompts(prompts.prompts())
    instead, optimizer = keep.latents[: len(x)], torch.optim.AdamW(model.unet.parameters(), lr=2e-4)

    def draw(latents, count):
        i = torch.randint(len(latents), (count,), generator=generator)
        t = torch.randint(len(model.alphas_cumprod), (count,), generator=generator)
        noise = torch.randn((count, *latents.shape[1:]), generator=generator)
        return i, t, noise, model.add_noise(latents[i], noise, t)

    for _ in range(40):
        i, t, _, x_t = draw(x, 4)
        j, u, noise, z_t = draw(keep.latents, 4)
        share = torch.rand(4, 1, 1, generator=generator)
        y = share * own[i] + (1 - share) * keep.prompt_embeds[torch.randint(64, (4,), generator=generator)]
        y = (
            y
            + 0.5
            * torch.rand(4, 1, 1, generator=generator)
            * torch.randn(y.shape, generator=generator)
            * y.std()
        )
        out = model.predict(torch.cat([x_t, z_t]), torch.cat([t, u]), torch.cat([y, keep.prompt_embeds[j]]))
        alpha = model.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        forget = ((1 - alpha**2).sqrt() * out[:4] - (x_t - alpha * instead[i])).square().mean()
        optimizer.zero_grad()
        (forget + (out[4:] - noise).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
    ### END SOLUTION


# %% checks="the defence changes a copy of the model, and not the model itself" nbgrader={"grade": true, "grade_id": "test-defend", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
before = room.weights
mine = defended(room, prompts, defend)
assert mine.model.fingerprint != room.study.model.fingerprint, "the defence changed nothing"
### BEGIN HIDDEN TESTS
assert room.weights == before and mine.model.unet is not room.study.model.unet
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Is it silent?
#
# No prompt may return its image from any of the seeds.

# %% checks="no prompt returns its image, with other noise neither" nbgrader={"grade": true, "grade_id": "test-silent", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
silent = room.scores(prompts, study=mine)
assert not silent["replicated"].any(), "a prompt returns its image"
### BEGIN HIDDEN TESTS
from dataclasses import replace

assert not room.scores(prompts, study=replace(mine, seed=seed + 1))["replicated"].any(), (
    "with other noise a prompt returns its image"
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Is it still a model?
#
# The loss on held-out pairs may rise by no more than the share `MOST_LOST`. A model that paints noise hides everything.

# %% checks="the loss on held-out pairs rises by no more than the assignment allows, with other noise neither" nbgrader={"grade": true, "grade_id": "test-useful", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
lost = utility_loss(room, mine) / utility_loss(room, room.study) - 1
print(f"held-out loss: {100 * lost:+.1f} %, allowed: {100 * MOST_LOST:+.0f} %")
assert lost <= MOST_LOST
### BEGIN HIDDEN TESTS
from dataclasses import replace

other = replace(mine, seed=seed + 1), replace(room.study, seed=seed + 1)
assert utility_loss(room, other[0]) <= (1 + MOST_LOST) * utility_loss(room, other[1]), (
    "with other noise the model is worse"
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Does it hold?
#
# The held-out attacker may bring back none of the images.

# %% checks="the held-out attacker brings no image back, with other draws neither" nbgrader={"grade": true, "grade_id": "test-holds", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
row = judge(room, mine, prompts)
print("returned by the attacker:", row["attack"])
assert row["attack"].value == 0
### BEGIN HIDDEN TESTS
from dataclasses import replace

assert judge(room, replace(mine, seed=seed + 1), prompts)["attack"].value == 0, (
    "with other draws the attacker brings an image back"
)
### END HIDDEN TESTS

# %% [markdown]
# ## The board
#
# Yours beside the references. A rank says who is first here, with these images; `clearly_lower` says what that is worth.

# %% nbgrader={"grade": false, "grade_id": "board", "locked": true, "schema_version": 3, "solution": false, "task": false}
shown(compete(room, prompts, {"yours": mine}))
