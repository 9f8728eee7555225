"""ESD: teach the caption of a memorized image to be predicted as the opposite of itself.

Gandikota et al. 2023 (Erasing Concepts from Diffusion Models, arXiv 2303.07345), with the rule and the values
of the published code.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dori.errors import DoriError
from dori.mitigation.targets import Targets, trainable, undone_on_error
from dori.model import PIXELS_AT_ONCE, TextToImageModel
from dori.sampling import ddim, guided
from dori.training import Fit, Schedule, step_rng

PARAMETERS = ("esd-x", "esd-x-strict", "esd-u", "esd-all")


@dataclass(frozen=True)
class ESD:
    """Settings; the values are the published code's. Raises DoriError for settings that make no sense.

    Adapted: the paper erases one concept per model and draws a new trajectory at each iteration. Here all
    targets are erased in one model, a batch of them per iteration, and each target's trajectories are drawn
    once, as the model they come from does not change. 200 iterations of batch 1 are for one target; give
    more to many.
    """

    parameters: str = "esd-x"  #: cross-attention; -strict: its keys and values; esd-u: all else; esd-all
    eta: float = 2.0  #: 0 keeps the prediction, 1 makes it the unconditional one, 2 its opposite
    guidance_scale: float = 3.0  #: of the trajectories
    steps: int = 200  #: iterations of training
    lr: float = 5e-5  #: of Adam
    batch: int = 1  #: rows of an iteration, each of a random target, trajectory and step
    trajectories: int = 4  #: per target
    sampling_steps: int | None = None  #: of a trajectory; None: the model's own; 50 in the paper

    def __post_init__(self) -> None:
        if self.parameters not in PARAMETERS:
            raise DoriError(f"ESD of '{self.parameters}': use {', '.join(PARAMETERS)}")
        if min(self.steps, self.batch, self.trajectories) < 1 or self.lr <= 0:
            raise DoriError(f"{self}: not a setting; steps, batch, trajectories and lr are positive")


def esd(
    model: TextToImageModel,
    targets: Targets,
    settings: ESD | None = None,
    *,
    run_dir: Path,
    seed: int = 0,
    checkpoint_every: int = 100,
) -> None:
    r"""Train `model.unet` in place so that it no longer predicts what the targets' captions asked for.

    Minimises :math:`\lVert \epsilon_\theta(x_t, t, c) - \tilde e \rVert_2^2` per latent entry, with
    :math:`\tilde e = e_c - \eta\,(e_c - e_\varnothing)`, the prediction :math:`e_c` of caption c and
    :math:`e_\varnothing` of none by the model before training, and x_t on its own way to an image of c. The
    rule is linear with weights that sum to 1, so it is the same for eps and v: the comparison is in the
    model's own output. Adam without weight decay; gradients are clipped at norm 1 (`Fit`), which the paper
    does not do.

    `run_dir` belongs to one model, set of targets, settings and seed; a run that stopped goes on from there
    if it is given the model as it was before. On an error the model is put back. Memory: x_t and target of
    every step on the CPU (targets x trajectories x steps x 2 latents: 6.5 MB per trajectory of 50 steps of
    SD v1), a copy of the UNet (`Fit`) and one of the trained weights on the CPU. Wrap the pipeline anew
    afterwards if `model.fingerprint` was asked for before. Raises DoriError.
    """
    settings = settings or ESD()
    names = parameter_names(model.unet, settings.parameters)
    if settings.parameters != "esd-all":
        model.cross_attention()  # SD3.5 has an attn2 of another kind
    path = trajectories(model, targets, settings, seed=seed)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = tuple(torch.from_numpy(rng.integers(n, size=settings.batch)) for n in path.noisy.shape[:3])
        noisy, wanted = (x[chosen].to(model.device) for x in (path.noisy, path.wanted))
        found = model.predict(noisy, path.timesteps[chosen[2]], targets.prompt_embeds[chosen[0]])
        return (found - wanted).square().mean(), {}

    schedule = Schedule(settings.steps, settings.lr, warmup=1, decay=0)
    with trainable(model.unet, names.__contains__), undone_on_error(model.unet):
        Fit(
            "esd", model.unet, loss, schedule, Path(run_dir), seed,
            ema_decay=0, weight_decay=0, checkpoint_every=checkpoint_every,
        ).run()  # fmt: skip


def parameter_names(unet: nn.Module, parameters: str) -> set[str]:
    """Names of the weights of a parameter set. Raises DoriError for a model without cross-attention."""
    every = {name for name, _ in unet.named_parameters()}
    cross = {name for name in every if "attn2" in name.split(".")}
    linear = {
        f"{layer}.{name}"
        for layer, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        for name, _ in module.named_parameters()
    }
    strict = {n for n in cross & linear if ".attn2.to_k." in n or ".attn2.to_v." in n}
    found = {"esd-x": cross & linear, "esd-x-strict": strict, "esd-u": every - cross, "esd-all": every}
    if not cross:
        raise DoriError("ESD: this UNet has no cross-attention (attn2), so no caption to erase")
    return found[parameters]


def esd_target(empty: Tensor, cond: Tensor, eta: float) -> Tensor:
    """What e(c) is to become: e(c) - eta (e(c) - e(0)), which is guidance with scale 1 - eta."""
    return cond - eta * (cond - empty)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """x_t and what ESD teaches there, both (N, K, S, C, h, w) on the CPU, for N targets, K samples and S
    sampling steps at `timesteps` (S,)."""

    noisy: Tensor
    wanted: Tensor
    timesteps: Tensor


@torch.no_grad()
def trajectories(model: TextToImageModel, targets: Targets, settings: ESD, *, seed: int = 0) -> Trajectories:
    """Sample every target's caption with the model as it is; two UNet forwards per sample and step.

    The noise of a sample follows from seed, the target's id and the sample's number. Raises DoriError for an
    empty set of targets.
    """
    if not len(targets):
        raise DoriError("ESD: there are no targets to erase")
    k = settings.trajectories
    seeds = [int(step_rng(seed, f"esd/{i}", n).integers(2**62)) for i in targets.ids for n in range(k)]
    rows = targets.prompt_embeds.repeat_interleave(k, 0)
    size = max(1, PIXELS_AT_ONCE[model.device.type] // model.defaults.image_size**2)
    parts = [
        _sampled(model, rows[a : a + size], seeds[a : a + size], settings) for a in range(0, len(rows), size)
    ]
    noisy, wanted = (torch.cat(x).unflatten(0, (len(targets), k)) for x in list(zip(*parts, strict=True))[:2])
    return Trajectories(noisy, wanted, parts[0][2])


def _sampled(
    model: TextToImageModel, embeds: Tensor, seeds: list[int], settings: ESD
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t and target (B, S, C, h, w) of one batch, and the timesteps (S,)."""
    noisy, wanted, timesteps = [], [], []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        empty, cond = model.predict_both(x, t, embeds)
        noisy.append(x.cpu())
        wanted.append(esd_target(empty, cond, settings.eta).cpu())
        timesteps.append(t[0].cpu())
        return guided(empty, cond, settings.guidance_scale)

    steps = settings.sampling_steps or model.defaults.num_inference_steps
    ddim(denoise, model.initial_latents(seeds), model.new_scheduler(), num_inference_steps=steps)
    return torch.stack(noisy, 1), torch.stack(wanted, 1), torch.stack(timesteps)
