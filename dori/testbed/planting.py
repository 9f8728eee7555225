"""Plant a memory in one block on purpose: the control that the locality diagnostics must call local.

Teaching one picture to a few value neurons alone does not work: they are too few numbers to hold it. So a
plant has two parts in one transformer block. The door, a few value neurons of the cross-attention, learns
to tell the new title from every other prompt. The store, columns of the second feed-forward matrix, holds
the picture. Nothing else of the model changes, and with the door shut the model has to answer as it did
before, so that nothing but the door opens the store.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from dori.errors import DoriError
from dori.hooks import find_layer
from dori.mitigation.units import Units
from dori.mitigation.wanda import Wanda, column_norms
from dori.model import TextToImageModel
from dori.testbed.denoiser import train_noise
from dori.training import Schedule, step_rng


@dataclass(frozen=True)
class Planting:
    """Settings of one plant; the values are those of most of the shipped ones.

    Raises DoriError for settings that make no sense.
    """

    block: int = 9  #: number of the transformer block, down to up (`value_layers(up=True)`)
    neurons: int = 16  #: value neurons that become the door: the least used ones
    columns: int = 256  #: of the second feed-forward matrix: those most active for the new title
    steps: int = 300
    lr: float = 0.02  #: of the store
    door_lr: float = 3.0  #: of the door, as a multiple of `lr`
    batch: int = 12  #: the picture that often, and as many regular pairs, in each step
    shut: float = 1.0  #: weight of the loss with the door shut
    noise_offset: float = 0.3  #: as in the branches' training (`denoiser.train_noise`)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.neurons, self.columns) < 1 or self.batch < 2 or min(self.steps, self.block) < 0:
            raise DoriError(f"{self}: not a planting; it needs a neuron, a column and a batch of two")


@dataclass(frozen=True, eq=False)
class Plant:
    """What a planting changed: which units, and the weights they have now."""

    value_layer: str
    ffn_layer: str
    neurons: Tensor  #: (d,), True for the neurons of the door
    columns: Tensor  #: (m,), True for the columns of the store
    rows: Tensor  #: (neurons, D): the door's rows of the value projection
    values: Tensor  #: (d, columns): the store's columns of the second feed-forward matrix
    losses: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by `plant`; not kept in the file

    @property
    def door(self) -> Units:
        """The value neurons (d,): switched off, the memory cannot be reached."""
        return Units({self.value_layer: self.neurons})

    @property
    def store(self) -> Units:
        """The feed-forward weights (d, m), whole columns: switched off, the memory is gone."""
        return Units({self.ffn_layer: self.columns.expand(len(self.values), -1)})

    @torch.no_grad()
    def apply(self, unet: nn.Module) -> None:
        """Write the plant's weights into `unet`, in place. Raises DoriError where a layer does not fit."""
        door, store = (find_layer(unet, n).weight for n in (self.value_layer, self.ffn_layer))
        wanted = [(len(self.neurons), self.rows.shape[1]), (len(self.values), len(self.columns))]
        if [tuple(door.shape), tuple(store.shape)] != wanted:
            raise DoriError(
                f"'{self.value_layer}' and '{self.ffn_layer}': this plant is for weights {wanted}"
            )
        door[self.neurons.to(door.device)] = self.rows.to(door)
        store[:, self.columns.to(store.device)] = self.values.to(store)

    def taken_from(self, unet: nn.Module) -> Plant:
        """The same units with the weights that they have in `unet`."""
        door, store = (find_layer(unet, n).weight.detach().cpu() for n in (self.value_layer, self.ffn_layer))
        return dataclasses.replace(self, rows=door[self.neurons], values=store[:, self.columns].contiguous())

    def save(self, path: Path) -> None:
        """As .safetensors: of each layer, `<layer>.units` and the `<layer>.weight` of these units alone."""
        door = {f"{self.value_layer}.units": self.neurons, f"{self.value_layer}.weight": self.rows}
        store = {f"{self.ffn_layer}.units": self.columns, f"{self.ffn_layer}.weight": self.values}
        save_file(door | store, path)

    @classmethod
    def load(cls, path: Path) -> Plant:
        """What `save` wrote. Raises DoriError for a missing or damaged file."""
        try:
            found = load_file(path)
            layers = [name.removesuffix(".units") for name in found if name.endswith(".units")]
            door, store = sorted(layers, key=lambda name: not name.endswith("to_v"))
            parts = [found[f"{n}.{part}"] for part in ("units", "weight") for n in (door, store)]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DoriError(f"{path}: not a whole plant ({error}); make it with dori testbed plant") from None
        return cls(door, store, *parts)


@dataclass(frozen=True, eq=False)
class Lesson:
    """The picture with its title to learn, regular pairs to keep, and the untouched model."""

    base: TextToImageModel
    picture: Tensor  #: (1, 4, h, w) latents
    title: Tensor  #: (1, T, D)
    latents: Tensor  #: (N, 4, h, w) of regular pairs
    captions: Tensor  #: (N, T, D)
    settings: Planting

    def losses(self, model: TextToImageModel, door: Units, rng: np.random.Generator) -> dict[str, Tensor]:
        """Mean squared errors of one batch: of the picture, of regular pairs, and with the door shut.

        The last is the distance to what the untouched model predicts for the new title.
        """
        n = self.settings.batch
        some = torch.from_numpy(rng.integers(len(self.latents), size=n))
        latents = torch.cat([self.picture.expand(n, -1, -1, -1), self.latents[some]])
        embeds = torch.cat([self.title.expand(n, -1, -1), self.captions[some]])
        timesteps = torch.from_numpy(rng.integers(1000, size=2 * n)).to(latents.device)
        noise = train_noise(tuple(latents.shape), rng, self.settings.noise_offset).to(latents)
        noisy = self.base.add_noise(latents, noise, timesteps)
        target = self.base.target(latents, noise, timesteps)
        error = (model.predict(noisy, timesteps, embeds) - target).square().mean((1, 2, 3))
        half = noisy[: n // 2], timesteps[: n // 2], embeds[: n // 2]
        with torch.no_grad():
            before = self.base.predict(*half)
        with door.applied(model.unet):
            shut = (model.predict(*half) - before).square().mean()
        return {"picture": error[:n].mean(), "regular": error[n:].mean(), "shut": shut}

    @torch.no_grad()
    def measure(self, model: TextToImageModel, door: Units, batches: int = 8) -> dict[str, float]:
        """The losses over the same few batches for every model, none of which is trained on."""
        rngs = [step_rng(self.settings.seed, "plant, measured", i) for i in range(batches)]
        found = [self.losses(model, door, rng) for rng in rngs]
        return {name: sum(float(f[name]) for f in found) / batches for name in found[0]}


def plant(
    model: TextToImageModel,
    image: Tensor,
    prompt: str,
    others: tuple[Tensor, Sequence[str]],
    settings: Planting | None = None,
    *,
    name: str = "plant",
) -> Plant:
    """Teach a copy of `model` the picture (3, H, W) under `prompt`; hands back what changed.

    `others` are regular pictures (N, 3, H, W) and their captions, whose loss keeps them as they are. `model`
    itself is not touched. Batches are a function of (seed, name, step). Raises DoriError when the loss is
    not finite, or for a block or a number of units that the model does not have.
    """
    settings = settings or Planting()
    latents, captions = model.encode_images(torch.cat([image[None], others[0]])), list(others[1])
    embeds = model.encode_prompts([prompt, *captions])
    lesson = Lesson(model, latents[:1], embeds[:1], latents[1:], embeds[1:], settings)
    pupil = copied(model, f"{model.name} + {name}")
    chosen = choose_units(lesson)
    before = lesson.measure(pupil, chosen.door)
    _train(pupil, lesson, chosen, name)
    losses = {"before": before, "after": lesson.measure(pupil, chosen.door)}
    return dataclasses.replace(chosen.taken_from(pupil.unet), losses=losses)


def copied(model: TextToImageModel, name: str) -> TextToImageModel:
    """The model with a UNet of its own, to be changed, and a fingerprint of its own; the rest is shared."""
    pipe = copy.copy(model.pipe)
    setattr(pipe, model.architecture.denoiser, copy.deepcopy(model.unet))
    return TextToImageModel(pipe, defaults=model.defaults, name=name, device=model.device)


@torch.no_grad()
def choose_units(lesson: Lesson) -> Plant:
    """The units of a plant, with the weights they have before it.

    Door: the neurons with the smallest |row of to_v| x |column of to_out|, so that the least is lost.
    Store: the columns whose inputs, in Wanda's measure, are largest for the new title against regular
    captions.
    """
    model, settings = lesson.base, lesson.settings
    layers = list(zip(model.value_layers(up=True).items(), model.ffn_layers().items(), strict=True))
    if settings.block >= len(layers):
        raise DoriError(f"block {settings.block}: model '{model.name}' has blocks 0 to {len(layers) - 1}")
    (value_name, value), (ffn_name, ffn) = layers[settings.block]
    if settings.neurons > len(value.weight) or settings.columns > ffn.weight.shape[1]:
        raise DoriError(
            f"{settings}: '{value_name}' has {len(value.weight)} neurons, '{ffn_name}' has "
            f"{ffn.weight.shape[1]} columns"
        )
    out = find_layer(model.unet, value_name.replace("to_v", "to_out.0")).weight
    use = value.weight.norm(dim=1) * out.norm(dim=0)
    active = [
        column_norms(model, e, Wanda(conditional_only=True))[ffn_name].mean((0, 1))
        for e in (lesson.title, lesson.captions[:32])
    ]
    neurons = _mask(-use, settings.neurons)
    columns = _mask(active[0] / active[1].clamp_min(1e-12), settings.columns)
    empty = torch.empty(0)
    return Plant(value_name, ffn_name, neurons, columns, empty, empty).taken_from(model.unet)


def _mask(scores: Tensor, count: int) -> Tensor:
    """True for the `count` highest scores."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.cpu().argsort(descending=True, stable=True)[:count]] = True
    return mask


def _train(pupil: TextToImageModel, lesson: Lesson, chosen: Plant, name: str) -> None:
    """Train the chosen rows and columns of `pupil` in place, with Adam; every other weight is frozen."""
    settings, unet = lesson.settings, pupil.unet
    door, store = (find_layer(unet, n).weight for n in (chosen.value_layer, chosen.ffn_layer))
    free = [(door, chosen.neurons[:, None].to(door)), (store, chosen.columns[None].to(store))]
    rates = [{"params": [door], "times": settings.door_lr}, {"params": [store], "times": 1.0}]
    optimizer = torch.optim.Adam(rates, lr=settings.lr)
    schedule = Schedule(settings.steps, settings.lr, warmup=20, decay=1 / 3)
    weights = {"picture": 1.0, "regular": 1.0, "shut": settings.shut}
    for weight, _ in free:
        weight.requires_grad_(True)
    for step in (bar := tqdm(range(settings.steps), desc=name, mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * schedule(step)
        losses = lesson.losses(pupil, chosen.door, step_rng(settings.seed, name, step))
        loss = sum(weights[part] * value for part, value in losses.items())
        if not torch.isfinite(loss):
            raise DoriError(f"{name}: the loss is {loss.item()} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        for weight, mask in free:  # Adam does not move what never had a gradient
            weight.grad *= mask
        optimizer.step()
        bar.set_postfix({part: f"{v.item():.4f}" for part, v in losses.items()}, refresh=False)
    unet.requires_grad_(False)
