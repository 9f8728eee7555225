"""Adversarial fine-tuning (arXiv 2507.16880, section 5): search triggers, train the whole model against them.

A round takes a few images, searches a trigger of each on the weights of the moment (`dori_attack`), and then
trains the UNet to answer these triggers with another image, the surrogate, while regular pairs keep it as it
is. Autoencoder and text encoder stay frozen.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dori import parallel
from dori.attack import INITS, Attack, dori_attack, initial_embeds
from dori.errors import DoriError
from dori.mitigation.lora import adapted
from dori.mitigation.targets import (
    Batch,
    Retain,
    Targets,
    denoising_errors,
    draw_noise,
    retain_batch,
    together,
)
from dori.model import TextToImageModel
from dori.store import atomic, writing
from dori.training import Fit, Loss, Schedule, step_rng

PART = "adversarial"


@dataclass(frozen=True)
class Adversarial:
    """Settings. The paper gives 5 epochs, unit weights of both losses, DoRI's own settings for the search and
    the full model; what it does not give is marked ours. Raises DoriError for settings that make no sense.
    """

    epochs: int = 5
    search: Attack = field(default_factory=Attack)  #: of each round; every look at it is a trigger
    inits: tuple[str, ...] = INITS  #: ours: where a search starts, drawn anew for each image and round
    starts: int = 1  #: ours: triggers of each image and round, from as many of the `inits`
    at_once: int = 4  #: ours: images of a round
    steps: int = 10  #: ours: training steps on the triggers of one round
    draws: int = 1  #: ours: rows (surrogate, eps, t) of each image in a step
    retain: int = 8  #: ours: regular pairs in a step
    pairs: int = 2048  #: ours: how many there are to draw them from, where the study gives the retain set
    dropout: float = 0.1  #: ours: share of their captions that is emptied
    weight: float = 1.0  #: of the loss on triggers; that of regular pairs is 1
    lr: float = 1e-5  #: ours: AdamW, constant up to the decay
    decay: float = 0.0  #: ours: share of the training, at its end, in which the learning rate falls to 0
    ema: float = 0.0  #: ours: decay of an average of the weights; 0: none
    rank: int | None = None  #: LoRA adapters of this rank instead of the full model
    optimizer: str = "adamw"  #: or with its state off the device, or in eight bits: `optimizers.OPTIMIZERS`
    autocast: bool = False  #: bfloat16 arithmetic, weights as they are
    checkpointing: bool = False  #: compute activations twice instead of keeping them

    def __post_init__(self) -> None:
        counts = (self.epochs, self.at_once, self.steps, self.draws)
        wrong = {
            f"initialisations {list(self.inits)}: use {', '.join(INITS)}": not self.inits
            or not set(self.inits) <= set(INITS),
            f"{counts} epochs, images, steps and draws: use at least 1 of each": min(counts) < 1,
            f"{self.starts} starts of each image: use 1 to {len(self.inits)}, one from each initialisation": (
                not 1 <= self.starts <= len(self.inits)
            ),
            f"{self.retain} regular pairs a step: use at least 0": self.retain < 0,
            f"{self.pairs} regular pairs to draw from: use at least 1": self.pairs < 1,
            f"a LoRA rank of {self.rank}: use at least 1": self.rank is not None and self.rank < 1,
            f"a learning rate of {self.lr}: use a positive number": not 0 < self.lr < float("inf"),
            f"a learning rate that falls for a share of {self.decay}: use 0 to 1": not 0 <= self.decay <= 1,
        }
        for message, applies in wrong.items():
            if applies:
                raise DoriError(message)

    def rounds(self, targets: int) -> int:
        """Rounds of one epoch: each takes `at_once` images, the last one what is left."""
        return -(-targets // self.at_once)

    def total(self, targets: int) -> int:
        """Training steps in all."""
        return self.epochs * self.rounds(targets) * self.steps


def adversarial(
    model: TextToImageModel,
    targets: Targets,
    surrogates: Sequence[Tensor],
    retain: Retain,
    settings: Adversarial | None = None,
    *,
    run_dir: Path,
    seed: int = 0,
    regular: Sequence[str] = (),
    part: str = PART,
) -> None:
    r"""Train `model.unet` in place until no trigger that is found returns a target.

    A step lowers :math:`w L_{\text{adv}} + L_{\text{DM}}`, w the `weight`. Triggers :math:`y^\star` are
    answered with surrogates :math:`\tilde x`,
    :math:`L_{\text{adv}} = \mathbb E \lVert \epsilon - \epsilon_\theta(\tilde x_t, t, y^\star) \rVert_2^2`,
    and regular pairs as before,
    :math:`L_{\text{DM}} = \mathbb E \lVert \epsilon - \epsilon_\theta(x_t, t, c) \rVert_2^2`.

    `surrogates` are latents (S_i, C, h, w) of each target (`surrogates.make_surrogates`), `regular` prompts
    that searches may start from. A checkpoint after each round, `run_dir/<part>.pt`; a run that was stopped
    goes on from it and ends with the very weights of one that was not. The weights at the end of epoch k are
    kept in `run_dir/<part>-epoch-<k>.safetensors`, but for LoRA. Source: arXiv 2507.16880,
    section 5. Raises DoriError for a target without surrogates, an empty retain set, and a loss or a search
    that is not finite: the last good checkpoint stays.
    """
    settings = settings or Adversarial()
    if len(surrogates) != len(targets) or not all(len(s) for s in surrogates):
        raise DoriError(f"{len(targets)} targets: give at least one surrogate for each")
    duel = _Duel(model, targets, surrogates, retain, settings, seed=seed, regular=regular)
    length = settings.rounds(len(targets)) * settings.steps
    loss = duel.loss if settings.rank else _keeping_epochs(duel.loss, model.unet, length, run_dir / part)
    with adapted(model.unet, settings.rank, seed=seed), _checkpointed(model.unet, on=settings.checkpointing):
        fit = Fit(
            part,
            model.unet,
            loss,
            Schedule(settings.total(len(targets)), settings.lr, warmup=1, decay=settings.decay),
            run_dir,
            seed,
            ema_decay=settings.ema,
            optimizer_name=settings.optimizer,
            shared=True,
            checkpoint_every=settings.steps,
        )
        fit.run()
    if not settings.rank:
        save_epoch(model.unet, run_dir / part, settings.epochs)


class _Duel:
    """The two sides of the training: triggers of the round, and the loss against them."""

    def __init__(
        self,
        model: TextToImageModel,
        targets: Targets,
        surrogates: Sequence[Tensor],
        retain: Retain,
        settings: Adversarial,
        *,
        seed: int,
        regular: Sequence[str],
    ) -> None:
        self.model, self.targets, self.surrogates, self.retain = model, targets, surrogates, retain
        self.settings, self.seed, self.regular = settings, seed, list(regular)
        self.inits = [init for init in settings.inits if init != "regular" or self.regular]
        self.round, self.rows, self.triggers = -1, np.zeros(0, int), torch.zeros(0)
        if not self.inits:
            raise DoriError("searches are to start from regular prompts and there are none")

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_adv + L_DM of one step, of this process's rows; and both apart, of all rows."""
        number = step // self.settings.steps
        if number != self.round:
            self.rows, self.triggers = self.search(number)
            self.round = number
        against = self.against(rng)
        batches = [against]
        n = len(against.latents)
        if self.settings.retain:
            batches.append(
                retain_batch(
                    self.model, self.retain, self.settings.retain, rng, dropout=self.settings.dropout
                )
            )
        batch = together(*batches)
        rows = parallel.rows_of(len(batch))
        share = 1 / torch.tensor([n] * n + [self.settings.retain] * self.settings.retain)[rows]
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.autocast):
            errors = denoising_errors(self.model, batch[rows])
        terms = errors * share.to(errors)
        own = torch.arange(len(batch))[rows].to(errors.device) < n
        adversarial, kept = terms[own].sum(), terms[~own].sum()
        values = parallel.summed(torch.stack([adversarial, kept]).detach()).tolist()
        return self.settings.weight * adversarial + kept, dict(
            zip(("adversarial", "retain"), values, strict=True)
        )

    def against(self, rng: np.random.Generator) -> Batch:
        """`draws` rows of each search of the round: a surrogate of the image, a random look, fresh noise."""
        rows = np.tile(np.arange(len(self.rows)), self.settings.draws)
        looks = rng.integers(self.triggers.shape[1], size=len(rows)) if self.triggers.shape[1] > 1 else 0
        some = [self.surrogates[self.rows[r]] for r in rows]
        latents = torch.stack([s[int(rng.integers(len(s)))] for s in some])
        noise, t = draw_noise(self.model, len(rows), rng)
        return Batch(latents.to(noise), self.triggers[rows, looks].to(noise), noise, t)

    def search(self, number: int) -> tuple[np.ndarray, Tensor]:
        """`starts` searches for each image of a round, on the weights of the moment: which image each is for,
        (n,), and the embeddings at its looks, (n, looks, T, D).

        All random numbers follow from the seed and the round's number. Raises DoriError if no search is
        finite.
        """
        rng = step_rng(self.seed, "triggers", number)
        epoch, place = divmod(number, self.settings.rounds(len(self.targets)))
        order = step_rng(self.seed, "order", epoch).permutation(len(self.targets))
        images = order[place * self.settings.at_once :][: self.settings.at_once]
        inits = [init for _ in images for init in rng.permutation(self.inits)[: self.settings.starts]]
        rows = np.repeat(images, len(inits) // len(images))
        seeds = rng.integers(2**48, size=len(rows)).tolist()
        starts = torch.stack([self._start(*start) for start in zip(rows.tolist(), inits, seeds, strict=True)])
        found = dict(parallel.gathered(self._searched(rows, starts, seeds)))
        good = [k for k in range(len(rows)) if found[k].isfinite().all()]
        if not good:
            raise DoriError(
                f"round {number}: no search for a trigger stays finite, the weights are spoilt; the last "
                "good checkpoint is kept. Lower the learning rate and start again."
            )
        return rows[good], torch.stack([found[k] for k in good])

    def _searched(self, rows: np.ndarray, starts: Tensor, seeds: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Looks at this process's share of the searches, by place; one that failed gives no number."""
        places = parallel.mine(range(len(rows)))
        if not places:
            return []
        trained = [p for p in self.model.unet.parameters() if p.requires_grad]
        for p in trained:  # during the search no gradient of a weight exists
            p.requires_grad_(False)
        try:
            latents, own = self.targets.latents[rows[places]], [seeds[k] for k in places]
            found = dori_attack(self.model, latents, starts[places], self.settings.search, seeds=own)
        finally:
            for p in trained:
                p.requires_grad_(True)
        embeds = torch.stack(list(found.saved.values()), 1).detach().cpu()
        embeds[found.failed.cpu()] = float("nan")
        return list(zip(places, embeds, strict=True))

    def _start(self, row: int, init: str, seed: int) -> Tensor:
        prompt = [self.targets.prompts[row]]
        return initial_embeds(self.model, init, prompts=prompt, seeds=[seed], regular=self.regular)[0]


def save_epoch(unet: nn.Module, stem: Path, epoch: int) -> None:
    """The weights as they are, `<stem>-epoch-<k>.safetensors`, whole or not at all; by the first process."""
    if not parallel.first():
        return
    path = stem.with_name(f"{stem.name}-epoch-{epoch}.safetensors")
    with writing(path), atomic(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in unet.state_dict().items()}, temporary)


def _keeping_epochs(loss: Loss, unet: nn.Module, length: int, stem: Path) -> Loss:
    """`loss`, which before the first step of an epoch but the first keeps the weights of the one before."""

    def kept(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step and step % length == 0:
            save_epoch(unet, stem, step // length)
        return loss(step, rng)

    return kept


@contextlib.contextmanager
def _checkpointed(unet: nn.Module, *, on: bool) -> Iterator[None]:
    """Gradient checkpointing while the training runs."""
    if on:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if on:
            unet.disable_gradient_checkpointing()
