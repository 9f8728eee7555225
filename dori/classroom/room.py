"""A room for an assignment: the bundled model, some of its memorized images, and sizes that fit a lesson.

What a student works on follows from the seed: another seed picks other images and other noise.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, Trigger, prompt_trigger, score_triggers
from dori.errors import DoriError
from dori.experiments import defences, erasing
from dori.experiments.replication import regular_prompts, top_prompts
from dori.experiments.selections import find_units
from dori.mitigation.units import Units
from dori.store import weights_hash
from dori.study import Study, open_study
from dori.testbed.paths import TESTBED

VARIABLE = "DORI_ASSIGNMENT_PRESET"


@dataclass(frozen=True)
class Size:
    """How much an assignment computes."""

    prompts: int  # of each sort where rates are measured
    images: int  # that are attacked or defended
    seeds: int  # images drawn for each prompt
    steps: int  # DDIM steps
    search: Attack  # what students search with
    heldout: Attack  # what their defence is judged by
    losses: int  # held-out pairs that utility is measured on
    references: tuple[str, ...]  # rows of the leaderboard that a defence is compared with


HELD_OUT = defences.SEARCHES[defences.HEADLINE]
SMALL = replace(HELD_OUT, steps=(20,), batch=4)
SIZES = {
    "smoke": Size(4, 2, 2, 6, Attack(steps=(10,), batch=2), SMALL, 16, (defences.PRUNED,)),
    "quick": Size(
        12, 3, 4, 10, Attack(steps=(30,), batch=4), HELD_OUT, 32,
        (defences.TRAINED, defences.PRUNED, defences.TWIN),
    ),
}  # fmt: skip


def size() -> Size:
    """The size named by DORI_ASSIGNMENT_PRESET, `quick` unless set. Raises DoriError for an unknown one."""
    name = os.environ.get(VARIABLE, "quick")
    if name not in SIZES:
        raise DoriError(f"{VARIABLE} is '{name}'; use {' or '.join(SIZES)}")
    return SIZES[name]


def open_room(seed: int = 0) -> "Room":
    """The bundled model with a run directory of its own that goes with the kernel, so that no submission can
    bring results along. Raises DoriError where the testbed is not there, or the size is unknown.
    """
    chosen = size()
    if not (TESTBED / "memorized.csv").is_file():
        raise DoriError(
            f"the bundled model is not in {TESTBED}: clone the whole repository and install it from there "
            "(pip install -e '.[classroom]'); a wheel alone does not hold it"
        )
    folder = tempfile.TemporaryDirectory(prefix="dori-room-")
    study = open_study(preset="quick", seed=seed, device="cpu", run_dir=folder.name)
    return Room(study, chosen, folder)


@dataclass(frozen=True)
class Room:
    """A study, a size, and what both give: prompts, prunings, scores."""

    study: Study
    size: Size
    folder: tempfile.TemporaryDirectory

    @property
    def sampling(self) -> Sampling:
        """How images are drawn here."""
        return self.study.sampling(seeds=self.size.seeds, steps=self.size.steps)

    def repeated(self, n: int | None = None) -> Benchmark:
        """n prompts (the size's number) with the most copies, whether their image is returned or not."""
        return self._some(top_prompts(self.study), n or self.size.prompts)

    def heldout(self, n: int | None = None) -> Benchmark:
        """n held-out prompts, which no model was trained on."""
        return self._some(regular_prompts(self.study), n or self.size.prompts)

    def memorized(self, n: int | None = None) -> Benchmark:
        """n prompts (the size's number of images) whose image the model returns.

        Raises DoriError if there are not as many.
        """
        return self._first(n, lambda row: bool(self.scores(row)["replicated"].all()))

    def silenced(self, n: int | None = None) -> Benchmark:
        """As `memorized`, of those that their pruning silences: best score below half the threshold."""
        half = self.study.descriptor.threshold / 2

        def quiet(row: Benchmark) -> bool:
            return bool(
                self.scores(row)["replicated"].all()
                and self.scores(row, units=self.pruned(row))["score"].max() < half
            )

        return self._first(n, quiet)

    def pruned(self, prompts: Benchmark) -> dict[str, Units]:
        """What Wanda switches off for each prompt, by id: the book's choice of chapter 2."""
        return find_units(self.study, prompts, erasing.PRUNING)

    def scores(
        self,
        prompts: Benchmark,
        *,
        embeds: Mapping[str, Tensor] | None = None,
        units: Mapping[str, Units] | None = None,
        study: Study | None = None,
    ) -> pd.DataFrame:
        """Draw each row's prompt, or its embedding (T, D), under its units.

        A row per image and seed, with id, seed, score and replicated.
        """
        off = units or {}
        triggers = [
            prompt_trigger(prompts, i, off.get(i))
            if embeds is None
            else Trigger(i, embeds[i].detach(), off.get(i))
            for i in prompts.ids
        ]
        return score_triggers(study or self.study, prompts, triggers, self.sampling)

    def latents(self, prompts: Benchmark) -> Tensor:
        """The training images, encoded: (N, C, h, w)."""
        return self.study.model.encode_images(prompts.images(size=self.study.model.defaults.image_size))

    def embeds(self, prompts: Benchmark) -> Tensor:
        """The prompts, encoded: (N, T, D)."""
        return self.study.model.encode_prompts(prompts.prompts())

    def draws(self, latents: Tensor, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """eps (batch, N, C, h, w) and t (batch, N) for a loss of `latents` (N, C, h, w)."""
        generator = torch.Generator().manual_seed(1_000_003 * self.study.seed + seed)
        noise = torch.randn((batch, *latents.shape), generator=generator)
        t = torch.randint(len(self.study.model.alphas_cumprod), (batch, len(latents)), generator=generator)
        return noise, t

    @property
    def weights(self) -> str:
        """A hash of all weights of the model as they are now: equal before and after if none has moved."""
        model = self.study.model
        return weights_hash([model.unet, model.vae, model.text_encoder])

    def _first(self, n: int | None, wanted: Callable[[Benchmark], bool]) -> Benchmark:
        """The first n rows to be erased of which, each by itself, `wanted` is true. Raises DoriError."""
        n, candidates, found = n or self.size.images, self._some(erasing.erased(self.study), None), []
        for i in candidates.ids:
            if len(found) < n and wanted(candidates.only([i])):
                found.append(i)
        if len(found) < n:
            raise DoriError(f"{len(found)} of {len(candidates)} images can be used here, not {n}")
        return candidates.only(found)

    def _some(self, prompts: Benchmark, n: int | None) -> Benchmark:
        """n of the rows (all of them for None), in an order that the seed decides."""
        order = np.random.default_rng(self.study.seed).permutation(len(prompts))[:n]
        ids: Sequence[str] = [prompts.ids[k] for k in order]
        return prompts.only(ids)
