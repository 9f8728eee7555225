"""DoRI (arXiv 2507.16880): does any text embedding still make a frozen, mended model paint an image?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from dori.errors import DoriError
from dori.hooks import Masks, masked
from dori.model import TextToImageModel

Progress = Callable[[int, Tensor, Tensor], None]  # steps done, losses (n,), embeddings (n, T, D)
INITS = ("prompt", "random", "regular")
BETWEEN = (
    "between"  # half-way from the image's prompt to a regular one: for attackers that a defence has not met
)
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
}
CPU_ROWS = 64  # a larger batch is no faster on a CPU, only larger


@dataclass(frozen=True)
class Attack:
    """An attack's settings. The defaults are the paper's (arXiv 2507.16880, section 3), without limits.

    The limits ask how much room a trigger needs, as an embedding of all tokens could carry the image itself.
    Raises DoriError for settings that make no sense.
    """

    init: str = "prompt"  #: prompt, random, regular or between
    steps: tuple[int, ...] = (50,)  #: kept after each of these numbers of steps; the largest ends the search
    lr: float = 0.1  #: of the optimiser
    batch: int = 8  #: draws of (eps, t) at each step
    free_tokens: int | None = None  #: only so many positions move, the first after BOS; None: all rows
    radius: float | None = (
        None  # greatest L2 distance of y, all T x D numbers, from its start; None: no limit
    )
    optimizer: str = "adam"  #: of OPTIMIZERS, with torch's own settings

    @property
    def passes(self) -> int:
        """Rows through the UNet, forward and back, that one search takes."""
        return max(self.steps) * self.batch

    def __post_init__(self) -> None:
        counts = (self.steps,) if isinstance(self.steps, int) else self.steps
        object.__setattr__(self, "steps", tuple(sorted(set(counts))))
        wrong = {
            f"initialisation '{self.init}': use {', '.join((*INITS, BETWEEN))}": self.init
            not in (*INITS, BETWEEN),
            f"optimiser '{self.optimizer}': use {', '.join(OPTIMIZERS)}": self.optimizer not in OPTIMIZERS,
            f"attack steps {list(self.steps)}: give whole numbers from 0 on": not self.steps
            or any(not isinstance(s, int) or s < 0 for s in self.steps),
            f"a learning rate of {self.lr}: use a positive number": not 0 < self.lr < math.inf,
            f"an attack of {self.batch} draws a step: use at least 1": self.batch < 1,
            f"{self.free_tokens} free tokens: use at least 1": self.free_tokens is not None
            and self.free_tokens < 1,
            f"a radius of {self.radius}: use a positive number": self.radius is not None
            and not 0 < self.radius < math.inf,
        }
        for message, applies in wrong.items():
            if applies:
                raise DoriError(message)


PAPER = Attack()


@dataclass(frozen=True)
class Attacked:
    """Where the search ended for each of N images."""

    embeds: Tensor  #: (N, T, D)
    losses: Tensor  #: (N, steps), each of fresh noise, before the step was taken
    saved: dict[int, Tensor]  #: steps taken, as the plan asks -> embeddings (N, T, D); 0 is the start

    @property
    def failed(self) -> Tensor:
        """(N,) True where a loss or an embedding is no longer finite; other images are not touched by it."""
        return ~(self.losses.isfinite().all(1) & self.embeds.isfinite().flatten(1).all(1))


def dori_attack(
    model: TextToImageModel,
    latents: Tensor,
    prompt_embeds: Tensor,
    plan: Attack = PAPER,
    *,
    seeds: Sequence[int],
    units: Masks | Sequence[Masks] | None = None,
    callback: Progress | None = None,
) -> Attacked:
    r"""Search the embedding that a frozen model denoises an image best with.

    It is the y that minimises :math:`\mathbb E_{\epsilon,t}\,\lVert \epsilon - \epsilon_\theta(x_t, t, y)
    \rVert_2^2` with :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, the loss that the model was trained with.

    `latents` (N, C, h, w) are the encoded images, `prompt_embeds` (N, T, D) where each search starts
    (`initial_embeds`). The draws of (eps, t) of a step are new each time and come from the image's own
    generator (`seeds`), so an image's result does not depend on its company. The weights stay as they are;
    `units` are switched off meanwhile, one set for all or one for each image. v-models are attacked in v,
    flow matching in its velocity; a pooled vector is searched with the tokens. A
    `plan.radius` is kept by projecting y after each step. Images and draws are split where the free memory
    asks for it. Source: arXiv 2507.16880, section 3; the limits are ours. Raises DoriError.
    """
    n, tokens = len(latents), model.tokens(prompt_embeds).shape[1]
    if not n == len(prompt_embeds) == len(seeds) or not n:
        raise DoriError(
            f"{n} images, {len(prompt_embeds)} starts, {len(seeds)} seeds: give one each per image"
        )
    if plan.free_tokens is not None and plan.free_tokens >= tokens:
        raise DoriError(f"{plan.free_tokens} free tokens after BOS: this model has {tokens - 1}")
    rows = max_batch(model, prompt_embeds[:1])
    at_once, parts = max(1, rows // plan.batch), []
    for part in (slice(a, a + at_once) for a in range(0, n, at_once)):
        off = units if isinstance(units, Mapping) else (units or [{}] * n)[part]
        images = _Images(model, latents[part], seeds[part], batch=plan.batch, rows=rows)
        with masked(model.unet, off):
            parts.append(_search(images, prompt_embeds[part], plan, callback))
    return Attacked(
        torch.cat([p.embeds for p in parts]),
        torch.cat([p.losses for p in parts]),
        {s: torch.cat([p.saved[s] for p in parts]) for s in parts[0].saved},
    )


def _search(images: "_Images", start: Tensor, plan: Attack, callback: Progress | None) -> Attacked:
    """Steps of the optimiser for one batch of images; each has its own loss, so none sees the others."""
    start = start.detach().to(torch.promote_types(start.dtype, torch.float32))  # half would underflow
    y, losses, saved = start.clone(), [], {}
    optimizer = OPTIMIZERS[plan.optimizer]([y], lr=plan.lr)
    for step in range(max(plan.steps) + 1):
        if step in plan.steps:
            saved[step] = y.clone()
        if step == max(plan.steps):
            break
        loss, y.grad = images.loss_and_gradient(y)
        if plan.free_tokens is not None:  # all of them leave where it is what never had a gradient
            y.grad[:, 0] = y.grad[:, 1 + plan.free_tokens :] = 0
        optimizer.step()
        if plan.radius is not None:
            y.copy_(within(y, start, plan.radius))
        losses.append(loss)
        if callback is not None:
            callback(step + 1, loss, y.clone())
    return Attacked(y, torch.stack(losses, 1) if losses else y.new_zeros(len(y), 0), saved)


def within(y: Tensor, center: Tensor, radius: float) -> Tensor:
    """Each of y (N, T, D) outside the ball ||y - center||_2 <= radius, pulled straight back to its edge."""
    moved = y - center
    return center + moved * (radius / moved.flatten(1).norm(dim=1).clamp_min(radius)).view(-1, 1, 1)


class _Images:
    """The images of one batch with their generators: a fresh loss of the denoiser at each call."""

    def __init__(
        self, model: TextToImageModel, latents: Tensor, seeds: Sequence[int], *, batch: int, rows: int
    ) -> None:
        self.model, self.x0, self.batch = model, latents, batch
        self.generators = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds]
        self.draws_at_once = min(batch, max(1, rows // len(latents)))

    def loss_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over fresh draws (n,) and its gradient in y (n, T, D); the split of the draws is free."""
        y = y.detach().requires_grad_()
        loss, gradient = torch.zeros(len(y), dtype=y.dtype, device=y.device), torch.zeros_like(y)
        noise, t = self.draw()
        for k in range(0, self.batch, self.draws_at_once):
            part = slice(k, k + self.draws_at_once)
            each = denoising_losses(self.model, self.x0, y, noise[part], t[part])
            found = each.sum(0) / self.batch
            gradient += torch.autograd.grad(found.sum(), y)[0]
            loss += found.detach()
        return loss, gradient

    def draw(self) -> tuple[Tensor, Tensor]:
        """eps ~ N(0, I) as (batch, n, C, h, w) and t, uniform over the timesteps of training, (batch, n)."""
        steps, shape = self.model.timesteps, (self.batch, *self.x0.shape[1:])
        t = [steps[torch.randint(len(steps), (self.batch,), generator=g)] for g in self.generators]
        noise = [torch.randn(shape, generator=g) for g in self.generators]
        return torch.stack(noise, 1).to(self.x0), torch.stack(t, 1).to(self.x0.device)


def denoising_losses(model: TextToImageModel, x0: Tensor, y: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    r"""The loss of each draw and image, (draws, n), differentiable in y:
    :math:`\lVert \epsilon - \epsilon_\theta(x_t, t, y) \rVert_2^2` per latent entry, of v-models in v.

    x0 (n, C, h, w), y (n, T, D), noise (draws, n, C, h, w), t (draws, n). Row r of the batch is image
    r mod n, as units of n images want it.
    """
    draws, (noise, t) = len(t), (noise.flatten(0, 1), t.flatten())
    x0, embeds = x0.repeat(draws, 1, 1, 1), y.repeat(draws, 1, 1).to(model.dtype)
    error = model.predict(model.add_noise(x0, noise, t), t, embeds) - model.target(x0, noise, t)
    return error.to(y.dtype).square().flatten(1).mean(1).view(draws, -1)


def initial_embeds(
    model: TextToImageModel,
    init: str,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    regular: Sequence[str] = (),
) -> Tensor:
    """Where the search starts, (N, T, D): the image's own `prompt`, `random` N(0, I), a `regular` prompt, or
    the mean of the own and a regular one (`between`).

    Random numbers and the choice of a regular prompt follow each image's seed. Raises DoriError.
    """
    if init == "prompt":
        return model.encode_prompts(prompts)
    if init == "random":
        shape = model.unconditional.shape[1:]
        drawn = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(s))) for s in seeds]
        return torch.stack(drawn).to(model.unconditional)
    if init in ("regular", BETWEEN) and regular:
        others = model.encode_prompts([regular[int(s) % len(regular)] for s in seeds])
        return others if init == "regular" else (others + model.encode_prompts(prompts)) / 2
    known = init in ("regular", BETWEEN)
    reason = "there are no regular prompts to start from" if known else f"use {', '.join(INITS)}"
    raise DoriError(f"initialisation '{init}': {reason}")


def max_batch(model: TextToImageModel, embeds: Tensor) -> int:
    """Rows one forward and backward pass may have: half the free memory over what a row keeps for backward.

    Measured by one forward pass of one row (`embeds` (1, T, D)).
    """
    weights = {p.untyped_storage().data_ptr() for p in model.unet.parameters()}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    row, t = model.initial_latents([0]), torch.zeros(1, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        output = model.predict(row, t, embeds.detach().to(model.dtype).requires_grad_())
    del output
    fitting = max(1, free_memory(model.device) // (2 * max(1, sum(kept.values()))))
    return fitting if model.device.type == "cuda" else min(CPU_ROWS, fitting)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
