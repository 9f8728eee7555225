"""The attack and NeMo's search the plain way, as published code does them: the measure of attack.py."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dori.attack import PAPER
from dori.hooks import masked
from dori.mitigation.nemo import Nemo, Statistics, activations, flagged
from dori.mitigation.signature import alike, memorization_scores, noise_differences
from dori.mitigation.units import Units
from dori.model import TextToImageModel


def attack(
    model: TextToImageModel, images: Tensor, prompt_embeds: Tensor, *, steps: int, seeds: Sequence[int]
) -> list[list[float]]:
    """DoRI on one image (3, H, W) at a time, weights requiring gradients: the losses of each.

    Noise is drawn as `dori_attack` draws it, so that both can be compared step by step.
    """
    model.unet.requires_grad_(True)
    losses = []
    for image, start, seed in zip(images, prompt_embeds, seeds, strict=True):
        x0, y = model.encode_images(image[None]), start[None].clone().requires_grad_()
        adam, generator = torch.optim.Adam([y], lr=PAPER.lr), torch.Generator().manual_seed(seed)
        losses.append([_step(model, x0, y, adam, generator) for _ in range(steps)])
    model.unet.requires_grad_(False).zero_grad(set_to_none=True)  # the model is left as it was
    return losses


def _step(
    model: TextToImageModel, x0: Tensor, y: Tensor, adam: torch.optim.Adam, generator: torch.Generator
) -> float:
    """One step on fresh draws; the weights' gradients are computed, added up and never used."""
    batch = PAPER.batch
    t = model.timesteps[torch.randint(len(model.timesteps), (batch,), generator=generator)]
    noise = torch.randn((batch, *x0.shape[1:]), generator=generator).to(x0)
    x0 = x0.expand(batch, -1, -1, -1)
    output = model.predict(model.add_noise(x0, noise, t), t, y.expand(batch, -1, -1))
    loss = (output - model.target(x0, noise, t)).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    return float(loss.detach())


def nemo(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    statistics: Statistics,
    *,
    threshold: float,
    settings: Nemo,
    wasteful: bool = True,
) -> list[Units]:
    """NeMo's search prompt by prompt, one set of neurons for each call of the UNet.

    `wasteful`, as the released code: the UNet is called at two timesteps and the second answer kept, and for
    all noises although only those count that show memorization. Otherwise once, for those.
    """
    found, chosen = activations(model, prompt_embeds), []
    for i, y in enumerate(prompt_embeds):
        prompt = _Prompt(model, y, settings, threshold, wasteful)
        activity = {name: a[i] for name, a in found.items()}
        nothing = Units({name: torch.zeros_like(a, dtype=torch.bool) for name, a in activity.items()})
        searched = _search(activity, statistics, threshold, prompt.score) if prompt.counting else nothing
        chosen.append(searched)
    return chosen


class _Prompt:
    """A prompt's noise differences, and how alike they stay with units switched off."""

    def __init__(
        self, model: TextToImageModel, y: Tensor, settings: Nemo, threshold: float, wasteful: bool
    ) -> None:
        self.model, self.y, self.settings, self.calls = model, y, settings, 2 if wasteful else 1
        self.noise = settings.noise
        self.deltas = self._differences()
        counts = (memorization_scores(self.deltas) > threshold).nonzero().flatten().tolist()
        self.counting = counts
        if not wasteful:
            self.noise, self.deltas = [self.noise[s] for s in counts], self.deltas[counts]
            self.counting = list(range(len(counts)))

    def _differences(self) -> Tensor:
        embeds = self.y.expand(len(self.noise), -1, -1)
        for _ in range(self.calls):
            delta = noise_differences(self.model, embeds, self.noise, variant=self.settings.variant)
        return delta

    def score(self, units: Units) -> float:
        with masked(self.model.unet, units):
            blocked = self._differences()
        return float(alike(self.deltas, blocked)[self.counting].max())


def _search(
    activity: dict[str, Tensor], statistics: Statistics, threshold: float, score: Callable[[Units], float]
) -> Units:
    """The smallest flagged set that is enough; then each layer and each neuron tried without, last first."""
    limit = threshold
    for k in range(16):
        units = flagged(activity, statistics, 5 - 0.25 * k, k)
        reached = score(units)
        if reached <= threshold:
            break
    else:
        limit = reached
    layers = [name for name in reversed(list(units)) if units[name].any()]
    for name in layers:
        without = units - Units({name: units[name]})
        units = without if score(without) < limit else units
    for name in layers:
        for j in units.indices[name]:
            without = units - Units.of({name: [j]}, {name: len(units[name])})
            units = without if score(without) < limit else units
    return units
