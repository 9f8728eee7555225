"""What every training against memorization is given: the images to forget, and pairs to keep the model by."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dori.errors import DoriError
from dori.model import TextToImageModel
from dori.training import torch_rng


@dataclass(frozen=True, eq=False)
class Targets:
    """N memorized images: ids, prompts, latents (N, C, h, w), prompt embeddings (N, T, D)."""

    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    latents: Tensor
    prompt_embeds: Tensor

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.prompts) == len(self.latents) == len(self.prompt_embeds):
            raise DoriError(
                f"{len(self.ids)} ids, {len(self.prompts)} prompts, {len(self.latents)} latents and "
                f"{len(self.prompt_embeds)} embeddings: give one of each per image"
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Retain:
    """M pairs the model is to keep: latents (M, C, h, w) and prompt embeddings (M, T, D).

    No target is among them, and no prompt a mended model is judged by.
    """

    latents: Tensor
    prompt_embeds: Tensor

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one training step: latents (B, C, h, w), embeddings (B, T, D), noise like latents, t (B,)."""

    latents: Tensor
    prompt_embeds: Tensor
    noise: Tensor
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(self.latents[rows], self.prompt_embeds[rows], self.noise[rows], self.timesteps[rows])

    def noisy(self, model: TextToImageModel) -> Tensor:
        """x_t of each row."""
        return model.add_noise(self.latents, self.noise, self.timesteps)


@contextlib.contextmanager
def trainable(unet: nn.Module, wanted: Callable[[str], bool] | None = None) -> Iterator[None]:
    """Inside, weights whose name is wanted (all, if None) require a gradient and no others do; put back at
    the end.

    The network is left in evaluation mode. Raises DoriError if no name is wanted.
    """
    before = {name: p.requires_grad for name, p in unet.named_parameters()}
    chosen = {name for name in before if wanted is None or wanted(name)}
    if not chosen:
        raise DoriError("no weight of this model is among those that are to be trained")
    try:
        for name, p in unet.named_parameters():
            p.requires_grad_(name in chosen)
        yield
    finally:
        for name, p in unet.named_parameters():
            p.requires_grad_(before[name])
        unet.eval()


@contextlib.contextmanager
def undone_on_error(unet: nn.Module) -> Iterator[None]:
    """After an error the weights that require a gradient are what they were; no gradient is left in any case.

    A second try on the same model would otherwise take a half-trained one for the original. Costs a copy of
    these weights on the CPU.
    """
    trained = [p for p in unet.parameters() if p.requires_grad]
    before = [p.detach().to("cpu", copy=True) for p in trained]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
        raise
    finally:
        for p in trained:
            p.grad = None


def denoising_loss(model: TextToImageModel, batch: Batch) -> Tensor:
    r""":math:`\lVert \epsilon - \epsilon_\theta(x_t, t, y) \rVert_2^2` per latent entry, mean of the rows:
    what the model was trained with.

    In eps or v, whichever the model predicts.
    """
    return denoising_errors(model, batch).mean()


def denoising_errors(model: TextToImageModel, batch: Batch) -> Tensor:
    """`denoising_loss` of each row, (B,)."""
    predicted = model.predict(batch.noisy(model), batch.timesteps, batch.prompt_embeds)
    error = predicted - model.target(batch.latents, batch.noise, batch.timesteps)
    return error.float().square().flatten(1).mean(1)


def together(*batches: Batch) -> Batch:
    """One batch of all rows."""
    parts = ("latents", "prompt_embeds", "noise", "timesteps")
    return Batch(*(torch.cat([getattr(b, part) for b in batches]) for part in parts))


def draw_noise(model: TextToImageModel, rows: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """eps ~ N(0, I) of `rows` latents and t, uniform over those of training, from the step's numbers alone
    and so on any device."""
    generator = torch_rng(rng)
    shape = model.initial_latents([0]).shape[1:]
    noise = torch.randn((rows, *shape), generator=generator)
    t = model.timesteps[torch.randint(len(model.timesteps), (rows,), generator=generator)]
    return noise.to(model.device, model.dtype), t.to(model.device)


def retain_batch(
    model: TextToImageModel, retain: Retain, rows: int, rng: np.random.Generator, *, dropout: float = 0.1
) -> Batch:
    """`rows` pairs of the retain set with fresh noise; a share `dropout` of the captions is emptied, which
    keeps classifier-free guidance.

    Raises DoriError for an empty retain set.
    """
    if not len(retain):
        raise DoriError("the retain set is empty; a model that is trained without one forgets everything")
    chosen = torch.from_numpy(rng.integers(len(retain), size=rows))
    empty = torch.from_numpy(rng.random(rows) < dropout).to(model.device)
    embeds = torch.where(empty[:, None, None], model.unconditional, retain.prompt_embeds[chosen])
    noise, t = draw_noise(model, rows, rng)
    return Batch(retain.latents[chosen], embeds, noise, t)
