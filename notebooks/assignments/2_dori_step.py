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
# # Assignment 2: one step of DoRI
#
# A pruned model no longer paints a memorized image for its prompt. DoRI asks whether it still paints it for *any* embedding: it holds
# the weights fixed and moves the text embedding $y$ so that the model denoises the image well,
#
# $$\min_y\ \mathbb{E}_{\epsilon, t}\ \lVert \text{target} - f_\theta(x_t, t, y) \rVert^2, \qquad x_t = \alpha_t x_0 + \sigma_t \epsilon,\quad
# \alpha_t = \sqrt{\bar\alpha_t},\ \sigma_t = \sqrt{1 - \bar\alpha_t} .$$
#
# You write it, from $x_t$ up to the search. Write between the `YOUR CODE HERE` lines and delete the `raise`; keep the names of the
# functions. The same cells have further, hidden tests when your work is graded. Needed: the chapter *Pruning: is a silenced
# image gone?* of the book.

# %% nbgrader={"grade": false, "grade_id": "parameters", "locked": true, "schema_version": 3, "solution": false, "task": false} tags=["parameters"]
seed = 0

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import torch

from dori.classroom.room import open_room

room = open_room(seed)
model = room.study.model
prompts = room.silenced(1)
x0, own = room.latents(prompts), room.embeds(prompts)  # (1, C, h, w), (1, T, D)
eps, t = room.draws(x0, batch=4)  # (4, 1, C, h, w), (4, 1)
eps, t = eps[:, 0], t[:, 0]

# %% [markdown]
# ## 1. Noise
#
# `noisy(x0, eps, abar)` gives $x_t$. `x0` is (1, C, h, w), `eps` (B, C, h, w), and `abar` (B,) holds $\bar\alpha_t$ of each row.


# %% nbgrader={"grade": false, "grade_id": "noisy", "locked": false, "schema_version": 3, "solution": true, "task": false}
def noisy(x0, eps, abar):
    ### BEGIN SOLUTION
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    ### END SOLUTION


# %% checks="shape; no noise where all signal is left; the mixture against the model’s own" nbgrader={"grade": true, "grade_id": "test-noisy", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert noisy(x0, eps, model.alphas_cumprod[t]).shape == eps.shape
assert torch.allclose(noisy(x0, eps, torch.ones(4)), x0.expand(4, -1, -1, -1)), "no noise at abar = 1"
### BEGIN HIDDEN TESTS
assert torch.allclose(
    noisy(x0, eps, model.alphas_cumprod[t]), model.add_noise(x0.expand(4, -1, -1, -1), eps, t), atol=1e-5
)
assert torch.allclose(noisy(x0, eps, torch.full((4,), 0.36)), 0.6 * x0 + 0.8 * eps, atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The target
#
# Stable Diffusion 1 predicts the noise $\epsilon$ (`"epsilon"`). Stable Diffusion 2 predicts the velocity (`"v_prediction"`) of Salimans and
# Ho (2022), $v = \alpha_t \epsilon - \sigma_t x_0$. `target(x0, eps, abar, prediction_type)` gives what is to be predicted, (B, C, h, w).


# %% nbgrader={"grade": false, "grade_id": "target", "locked": false, "schema_version": 3, "solution": true, "task": false}
def target(x0, eps, abar, prediction_type):
    ### BEGIN SOLUTION
    if prediction_type == "epsilon":
        return eps
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * eps - (1 - abar).sqrt() * x0
    ### END SOLUTION


# %% checks="the noise, or the velocity, as the model predicts" nbgrader={"grade": true, "grade_id": "test-target", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
assert torch.equal(target(x0, eps, model.alphas_cumprod[t], "epsilon"), eps)
assert target(x0, eps, model.alphas_cumprod[t], "v_prediction").shape == eps.shape
### BEGIN HIDDEN TESTS
assert torch.allclose(
    target(x0, eps, torch.full((4,), 0.36), "v_prediction"), 0.6 * eps - 0.8 * x0, atol=1e-5
)
assert torch.allclose(target(x0, eps, torch.zeros(4), "v_prediction"), (-x0).expand(4, -1, -1, -1), atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Loss and gradient
#
# `loss_and_gradient(model, x0, y, eps, t)` gives the mean squared error over all rows and latent entries, a number without a graph, and
# its gradient in $y$, shaped like $y$ (1, T, D). The model offers
#
# - `model.predict(x_t, t, y)`: what the network returns for B rows; give it an embedding for each row;
# - `model.alphas_cumprod[t]` and `model.prediction_type`.
#
# Only $y$ has a gradient: nothing may be left in the `.grad` of the weights, and `y` itself stays as it was given.


# %% nbgrader={"grade": false, "grade_id": "loss-and-gradient", "locked": false, "schema_version": 3, "solution": true, "task": false}
def loss_and_gradient(model, x0, y, eps, t):
    ### BEGIN SOLUTION
    y = y.detach().clone().requires_grad_()
    abar = model.alphas_cumprod[t]
    out = model.predict(noisy(x0, eps, abar), t, y.expand(len(t), -1, -1))
    loss = (out - target(x0, eps, abar, model.prediction_type)).square().mean()
    return loss.detach(), torch.autograd.grad(loss, y)[0]
    ### END SOLUTION


# %% checks="loss and gradient against a reference; the embedding and the weights are left without gradients" nbgrader={"grade": true, "grade_id": "test-loss", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
loss, gradient = loss_and_gradient(model, x0, own, eps, t)
assert gradient.shape == own.shape and float(loss) > 0
assert not own.requires_grad
### BEGIN HIDDEN TESTS
from dori.attack import denoising_losses

y = own.clone().requires_grad_()
true = denoising_losses(model, x0, y, eps[:, None], t[:, None]).mean()
assert torch.allclose(loss, true.detach(), rtol=1e-3)
assert torch.allclose(gradient, torch.autograd.grad(true, y)[0], rtol=1e-2, atol=1e-6)
assert not torch.as_tensor(loss).requires_grad
assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters()), (
    "the weights are not trained"
)
### END HIDDEN TESTS

# %% checks="a model that predicts the velocity is attacked in it" nbgrader={"grade": true, "grade_id": "test-loss-v", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# What about a model that predicts the velocity?
### BEGIN HIDDEN TESTS
from types import SimpleNamespace


def linear(noisy_rows, _, embeds):
    return noisy_rows * 0.5 + embeds.mean((1, 2)).view(-1, 1, 1, 1)


toy = SimpleNamespace(predict=linear, alphas_cumprod=torch.tensor([0.36]), prediction_type="v_prediction")
zero, none = torch.zeros(2, dtype=torch.long), own * 0
loss, gradient = loss_and_gradient(toy, x0, none, eps[:2], zero)
error = 0.5 * (0.6 * x0 + 0.8 * eps[:2]) - (0.6 * eps[:2] - 0.8 * x0)
assert torch.allclose(torch.as_tensor(loss), error.square().mean(), rtol=1e-4), "v-models are attacked in v"
assert torch.allclose(gradient.sum(), 2 * error.mean(), rtol=1e-3, atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. The search
#
# `dori_search(model, x0, start, steps, batch, lr=0.1, seed=0)`: Adam on $y$ from `start` (1, T, D), with fresh draws of `batch` pairs
# $(\epsilon, t)$ at every step, $t$ uniform over all `len(model.alphas_cumprod)` timesteps. It returns `(y, losses)`: the last embedding,
# detached, and the list of the losses before each step. Draw from a generator of your own, made from `seed`.


# %% nbgrader={"grade": false, "grade_id": "search", "locked": false, "schema_version": 3, "solution": true, "task": false}
def dori_search(model, x0, start, steps, batch, lr=0.1, seed=0):
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    y, losses = start.detach().clone(), []
    optimizer = torch.optim.Adam([y], lr=lr)
    for _ in range(steps):
        eps = torch.randn((batch, *x0.shape[1:]), generator=generator)
        t = torch.randint(len(model.alphas_cumprod), (batch,), generator=generator)
        loss, y.grad = loss_and_gradient(model, x0, y, eps, t)
        optimizer.step()
        losses.append(float(loss))
    return y, losses
    ### END SOLUTION


# %% checks="weights and start stay as they were; new draws in each step, one pass of the given number of rows; the same seed, the same search" nbgrader={"grade": true, "grade_id": "test-search", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
before = room.weights
start = own.clone()
y, losses = dori_search(model, x0, start, steps=3, batch=2)
assert y.shape == own.shape and len(losses) == 3 and not y.requires_grad
### BEGIN HIDDEN TESTS
assert room.weights == before, "the search moved weights: only the embedding may move"
assert torch.equal(start, own), "the start is still needed: work on a copy"
assert not torch.equal(y, own)
from types import SimpleNamespace

seen = []
spy = SimpleNamespace(
    predict=lambda x, t, e: (seen.append((x.detach().clone(), t.clone())), model.predict(x, t, e))[1],
    alphas_cumprod=model.alphas_cumprod,
    prediction_type=model.prediction_type,
)
again, _ = dori_search(spy, x0, start, steps=3, batch=2)
assert torch.allclose(again, y, atol=1e-3), "the same seed, the same search"
assert len(seen) == 3 and all(len(x) == 2 for x, _ in seen), "one pass of `batch` rows a step"
assert not any(torch.equal(seen[0][1], t) for _, t in seen[1:]), "timesteps are drawn anew at each step"
other, _ = dori_search(model, x0, start, steps=3, batch=2, seed=1)
assert not torch.allclose(other, y, atol=1e-4), "another seed, other draws"
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Does it find what was pruned?
#
# `units` are what Wanda switches off for the prompt. Inside `with units.applied(model.unet):` the model is the pruned one. Search there,
# from the prompt, with `room.size.search.steps[-1]` steps and `room.size.search.batch` draws, and call the embedding that you find `trigger`,
# (1, T, D). The loss on fresh noise has to fall. Whether that is enough to bring the image back, the copy score says; so short a search need
# not succeed with every image.

# %% nbgrader={"grade": false, "grade_id": "trigger", "locked": false, "schema_version": 3, "solution": true, "task": false}
units = room.pruned(prompts)[prompts.ids[0]]
### BEGIN SOLUTION
with units.applied(model.unet):
    trigger, _ = dori_search(model, x0, own, steps=room.size.search.steps[-1], batch=room.size.search.batch)
### END SOLUTION

# %% checks="on noise that the search never saw, the pruned model denoises the image better with the trigger than with the prompt" nbgrader={"grade": true, "grade_id": "test-trigger", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
off = {prompts.ids[0]: units}
silenced = room.scores(prompts, units=off)["score"].max()
revived = room.scores(prompts, units=off, embeds={prompts.ids[0]: trigger[0]})["score"].max()
print(f"best copy score, pruned: {silenced:.2f} with the prompt, {revived:.2f} with the trigger")
from dori.attack import denoising_losses

fresh, when = room.draws(x0, batch=32, seed=1)
with torch.no_grad(), units.applied(model.unet):
    old, new = (float(denoising_losses(model, x0, e, fresh, when).mean()) for e in (own, trigger))
print(f"loss of the pruned model on fresh noise: {old:.3f} with the prompt, {new:.3f} with the trigger")
assert new < old, "on fresh noise the pruned model denoises the image better with the trigger"
### BEGIN HIDDEN TESTS
fresh, when = room.draws(x0, batch=32, seed=2)
with torch.no_grad(), units.applied(model.unet):
    old, new = (float(denoising_losses(model, x0, e, fresh, when).mean()) for e in (own, trigger))
assert new < old, "with other noise it does not"
assert room.weights == before
### END HIDDEN TESTS
