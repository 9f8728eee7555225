"""SISS: raise the denoising loss of the images to forget while that of others is kept, from one forward.

Alberti et al. 2025 (Data Unlearning in Diffusion Models, arXiv 2503.01034): subtracted importance sampled
scores, and the published code's step for Stable Diffusion.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dori.errors import DoriError
from dori.mitigation.targets import Retain, Targets, draw_noise, trainable, undone_on_error
from dori.model import TextToImageModel
from dori.training import Fit, Schedule, step_rng

TIMESTEPS = ("all", "last")
CAPTIONS = ("target", "own")
MEASURED = 8  # batches whose gradient norm sets the scale


@dataclass(frozen=True)
class SISS:
    """Settings; the values are those of the published code for Stable Diffusion, but for the first two.

    Adapted: t is drawn from all timesteps, while the published script only ever draws 999 ("last"). The norm
    of the forgetting gradient is, as the README advises, a tenth of naive deletion's, measured before
    training; its number for SD is `scaling_norm` 750. Its 16 accumulated samples are one batch. All targets
    are forgotten at once; the paper has one model per image.

    Raises DoriError for settings that make no sense.
    """

    timesteps: str = "all"  #: or "last": t = 999, as published
    scaling_norm: float | None = None  #: ||s g_a||; None: `scaling_share` of the norm of naive deletion
    scaling_share: float = 0.1
    mixture: float = 0.5  #: lambda: how often x_t is of an image to forget
    captions: str = "target"  #: one caption for x and a, as published; "own": that of whichever x_t is of
    steps: int = 35
    lr: float = 1e-5  #: of AdamW
    batch: int = 16
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if self.timesteps not in TIMESTEPS or self.captions not in CAPTIONS:
            raise DoriError(
                f"SISS with timesteps '{self.timesteps}' and captions '{self.captions}': use "
                f"{' or '.join(TIMESTEPS)}, and {' or '.join(CAPTIONS)}"
            )
        scale = self.scaling_share if self.scaling_norm is None else self.scaling_norm
        if not 0 < self.mixture < 1 or min(self.steps, self.batch) < 1 or self.lr <= 0 or scale < 0:
            raise DoriError(f"{self}: not a setting; 0 < mixture < 1, and steps, batch and lr are positive")


def siss(
    model: TextToImageModel,
    targets: Targets,
    retain: Retain,
    settings: SISS | None = None,
    *,
    run_dir: Path,
    seed: int = 0,
    checkpoint_every: int = 10,
) -> None:
    r"""Train all of `model.unet` in place along :math:`g_x - s\, g_a`, the gradients of `siss_losses`, where
    :math:`s = \text{scaling norm} / \lVert g_a \rVert`; the whole is clipped at norm 1. `run_dir/siss.csv`
    has s and the mean weights.

    Each row pairs a random target a with a random image x of `retain`. As published, x are images the model
    draws for a's caption and both are conditioned on it: captions "target". With other pairs that never shows
    x its own caption, and so nothing holds the other captions in place; "own" does. One forward and two
    backward passes per row. v-models are compared in eps, the form in which the weights are derived.

    `run_dir` belongs to one model, data, settings and seed; a run that stopped goes on from there if it is
    given the model as it was before. On an error the model is put back. Memory: two more copies of the UNet
    (`Fit`'s and one on the CPU), gradients twice, and Adam's two. Wrap the pipeline anew afterwards if
    `model.fingerprint` was asked for before. Raises DoriError.
    """
    settings = settings or SISS()
    if not len(targets) or not len(retain):
        raise DoriError(f"SISS: {len(targets)} images to forget and {len(retain)} to keep: give some of both")
    schedule = Schedule(settings.steps, settings.lr, warmup=1, decay=0)
    with trainable(model.unet), undone_on_error(model.unet):
        weights = list(model.unet.parameters())
        scale = settings.scaling_norm
        if scale is None:
            scale = settings.scaling_share * naive_norm(model, weights, targets, retain, settings, seed=seed)

        def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            rows = draw(model, targets, retain, settings, rng)
            keep, forget, w_x, w_a = siss_losses(model, rows, settings.mixture)
            s = _ratio(scale, gradient_norm(forget, weights, retain_graph=True))
            # s is a number, so the gradient of this difference is g_x - s g_a: the step SISS asks for
            return keep - s * forget, {"s": s, "w_x": w_x.mean().item(), "w_a": w_a.mean().item()}

        Fit(
            "siss", model.unet, loss, schedule, Path(run_dir), seed,
            ema_decay=0, weight_decay=settings.weight_decay, checkpoint_every=checkpoint_every,
        ).run()  # fmt: skip


def _ratio(scale: float, norm: float) -> float:
    """s. Without anything to forget in a batch it is 0, and nan, at which training stops, if the norm is."""
    if not math.isfinite(norm):
        return math.nan
    return scale / norm if norm else 0.0


@dataclass(frozen=True, eq=False)
class Rows:
    """One batch: latents to keep x and to forget a, and x_t of the mixture, all (B, C, h, w); t (B,), and the
    caption of each row (B, T, D)."""

    keep: Tensor
    forget: Tensor
    noisy: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor


def draw(
    model: TextToImageModel,
    targets: Targets,
    retain: Retain,
    settings: SISS,
    rng: np.random.Generator,
    *,
    mixture: float | None = None,
) -> Rows:
    """A random batch: x_t is the noisy a with probability `mixture` (None: the settings'), else the noisy x,
    from one eps and t."""
    n, share = settings.batch, settings.mixture if mixture is None else mixture
    a, x = (torch.from_numpy(rng.integers(len(data), size=n)) for data in (targets, retain))
    forgetting = torch.from_numpy(rng.random(n) < share).to(model.device)
    noise, t = draw_noise(model, n, rng)
    if settings.timesteps == "last":
        t = torch.full_like(t, model.timesteps[-1].item())
    drawn = torch.where(forgetting[:, None, None, None], targets.latents[a], retain.latents[x])
    embeds = targets.prompt_embeds[a]
    if settings.captions == "own":
        embeds = torch.where(forgetting[:, None, None], embeds, retain.prompt_embeds[x])
    return Rows(retain.latents[x], targets.latents[a], model.add_noise(drawn, noise, t), t, embeds)


def siss_losses(model: TextToImageModel, rows: Rows, mixture: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""(L_x, L_a, w_x, w_a): :math:`L_x = \mathbb E\, w_x \lVert \epsilon_\theta(m) - e_x \rVert_2^2` over
    the rows, with :math:`e_x = (m - \alpha x) / \sigma`, the noise that would make m of x; L_a the same of a.
    The weights are (B,)."""
    error_x, error_a, delta = _errors(model, rows)
    w_x, w_a = importance_weights(delta, mixture)
    return (w_x * error_x).mean(), (w_a * error_a).mean(), w_x, w_a


def _errors(model: TextToImageModel, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row (B,): ||eps_theta(m) - e_x||^2 with e_x = (m - alpha x) / sigma, the same for a (summed
    over the latent's entries, as published), and delta = (||e_x||^2 - ||e_a||^2) / 2."""
    m, t = rows.noisy, rows.timesteps
    alpha, sigma = model.alpha_sigma(t, m)
    e_x, e_a = ((m - alpha * z) / sigma for z in (rows.keep, rows.forget))
    found = model.as_epsilon(model.predict(m, t, rows.prompt_embeds), m, t)
    return _squared(found - e_x), _squared(found - e_a), (_squared(e_x) - _squared(e_a)) / 2


def importance_weights(delta: Tensor, mixture: float) -> tuple[Tensor, Tensor]:
    r"""(w_x, w_a) of any shape: :math:`w_x = 1 / ((1 - \lambda) + \lambda e^{\Delta})` and
    :math:`w_a = 1 / ((1 - \lambda) e^{-\Delta} + \lambda)`, :math:`0 < \lambda < 1` the `mixture`.

    They are the densities of x_t given x and given a over that of the mixture; `delta` is the log of the
    ratio of a's to x's, :math:`\Delta = (d_x - d_a) / (2 \sigma^2)` with :math:`d_z = \lVert m - \alpha z
    \rVert^2`. As sigmoids, which do not overflow.
    """
    z = delta + math.log(mixture / (1 - mixture))
    return torch.sigmoid(-z) / (1 - mixture), torch.sigmoid(z) / mixture


def naive_norm(
    model: TextToImageModel,
    weights: list[nn.Parameter],
    targets: Targets,
    retain: Retain,
    settings: SISS,
    *,
    seed: int = 0,
) -> float:
    """Norm of the gradient of naive deletion, which trains on x alone, at these weights: the mean of a few
    batches."""
    norms = []
    for k in range(MEASURED):
        rows = draw(model, targets, retain, settings, step_rng(seed, "siss/norm", k), mixture=0)
        norms.append(gradient_norm(_errors(model, rows)[0].mean(), weights))
    return sum(norms) / len(norms)


def gradient_norm(loss: Tensor, weights: list[nn.Parameter], *, retain_graph: bool = False) -> float:
    """L2 norm of the gradient over all weights together."""
    found = torch.autograd.grad(loss, weights, retain_graph=retain_graph, allow_unused=True)
    return torch.stack([g.norm() for g in found if g is not None]).norm().item()


def _squared(x: Tensor) -> Tensor:
    """||x||^2 of each row, (B,), in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().flatten(1).sum(1)
