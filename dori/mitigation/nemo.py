"""NeMo: the few cross-attention value neurons whose silence takes a prompt's memorization signature away.

Hintersdorf et al. 2024 (arXiv 2406.02366), sections 3.2 to 3.4. Each prompt's search is a generator that asks
how a set of units would score; the searches of many prompts are answered together, in large UNet batches.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dori.errors import DoriError
from dori.hooks import masked
from dori.mitigation.signature import (
    alike,
    all_differences,
    memorization_scores,
    noise_differences,
    rows_at_once,
)
from dori.mitigation.units import Units
from dori.model import TextToImageModel

Activations = dict[str, Tensor]  # layer -> (N, d): mean |to_v(y)| over the tokens
Search = Generator[list[Units], list[float], Units]  # asks for the scores of sets, returns the selection
Ask = Callable[[list[tuple[int, Units]]], Sequence[float] | Tensor]  # number of the search, set -> scores
MOST_AHEAD = 16  # sets asked for at once in the refinement


@dataclass(frozen=True)
class Nemo:
    """Settings; the values are the published ones. Raises DoriError for settings that make no sense."""

    seeds: int = 10  #: noises whose differences are compared
    seed: int = 1  #: the first of them
    variant: str = "compat"  #: see signature.noise_differences
    z: float | None = None  #: a fixed z-score instead of the search: no UNet pass at all
    k: int = 0  #: with a fixed z: the k most active neurons of each layer besides
    refine: bool = True
    up: bool = False  #: look into the up blocks too; the published method does not

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.k < 0:
            raise DoriError(
                f"NeMo with {self.seeds} noises and k {self.k}: use 2 noises or more, k from 0 on"
            )

    @property
    def passes(self) -> int:
        """Rows through the UNet for a prompt, about: each neuron in question is put back for a trial (214 a
        noise on the testbed)."""
        return 0 if self.z is not None else self.seeds * (200 if self.refine else 10)

    @property
    def noise(self) -> list[int]:
        """Generator seeds of the noises."""
        return list(range(self.seed, self.seed + self.seeds))


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation over regular captions of each neuron's activation."""

    mean: dict[str, Tensor]  #: layer -> (d,)
    std: dict[str, Tensor]


def activations(model: TextToImageModel, prompt_embeds: Tensor, *, up: bool = False) -> Activations:
    r""":math:`a_{l,j}(y) = \frac{1}{T} \sum_k |(W_l\, y_k)_j|`, the mean over the T tokens of what value
    layer l answers; no UNet pass where there is cross-attention."""
    return model.value_activity(prompt_embeds, up=up)


def activation_statistics(
    model: TextToImageModel, captions: Sequence[str], *, up: bool = False, batch_size: int = 256
) -> Statistics:
    """Statistics over captions that are not memorized (at least two)."""
    if len(captions) < 2:
        raise DoriError(f"activation statistics need two regular captions; there are {len(captions)}")
    parts = [
        activations(model, model.encode_prompts(captions[i : i + batch_size]), up=up)
        for i in range(0, len(captions), batch_size)
    ]
    stacked = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    return Statistics({n: a.mean(0) for n, a in stacked.items()}, {n: a.std(0) for n, a in stacked.items()})


def flagged(found: Mapping[str, Tensor], statistics: Statistics, z: float, k: int) -> Units:
    r"""Neurons with :math:`|a_{l,j} - \mu_{l,j}| / \sigma_{l,j} > z`, and the k most active of each layer.

    `found`: layer -> (d,).
    """
    masks = {}
    for name, a in found.items():
        off = (a - statistics.mean[name]).abs() > z * statistics.std[name]
        off[a.topk(min(k, len(a))).indices] = True
        masks[name] = off
    return Units(masks)


def nemo(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    statistics: Statistics,
    *,
    threshold: float,
    settings: Nemo | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[Units]:
    """The neurons to switch off for each prompt (N, T, D); none where the prompt shows no memorization.

    `threshold` is theta_mem (signature.calibrate). `batch_size` rows go through the UNet at once.
    """
    settings = settings or Nemo()
    found = activations(model, prompt_embeds, up=settings.up)
    each = [{name: a[i] for name, a in found.items()} for i in range(len(prompt_embeds))]
    if settings.z is not None:
        return [flagged(a, statistics, settings.z, settings.k) for a in each]
    deltas = all_differences(model, prompt_embeds, settings.noise, variant=settings.variant)
    memorized = [memorization_scores(d) > threshold for d in deltas]
    searches = [
        search(a, statistics, threshold, refined=settings.refine) if kept.any() else _nothing(a)
        for a, kept in zip(each, memorized, strict=True)
    ]

    def ask(questions: list[tuple[int, Units]]) -> list[float]:
        rows = [(i, s, units) for i, units in questions for s in memorized[i].nonzero().flatten().tolist()]
        scores = _scores(model, prompt_embeds, deltas, rows, settings=settings, batch_size=batch_size)
        answers, start = [], 0
        for i, _ in questions:
            end = start + int(memorized[i].sum())
            answers.append(float(scores[start:end].max()))
            start = end
        return answers

    return answer_all(searches, ask, progress=progress)


def search(
    found: Mapping[str, Tensor], statistics: Statistics, threshold: float, *, refined: bool = True
) -> Search:
    """One prompt's selection, then its refinement."""
    chosen, limit = yield from select(found, statistics, threshold)
    return (yield from refine(chosen, limit)) if refined else chosen


def select(
    found: Mapping[str, Tensor], statistics: Statistics, threshold: float, *, ahead: int = 4
) -> Generator[list[Units], list[float], tuple[Units, float]]:
    """The smallest flagged set that brings the score to the threshold: z falls from 5 by 0.25, k rises by 1.

    Returns it with the limit for the refinement. The search ends before z = 1 is tried, as in the released
    code; then the last set stands, and its own score is the limit.
    """
    candidates = [flagged(found, statistics, 5 - 0.25 * k, k) for k in range(16)]
    for start in range(0, len(candidates), ahead):
        part = candidates[start : start + ahead]
        for units, score in zip(part, (yield part), strict=True):
            if score <= threshold:
                return units, threshold
    return units, score


def refine(units: Units, limit: float) -> Search:
    """Put back whole layers, then single neurons, last layer first, wherever the score stays below."""
    layers = [name for name in reversed(list(units)) if units[name].any()]
    units = yield from _without(units, [Units({name: units[name]}) for name in layers], limit)
    singles = [
        Units.of({name: [i]}, {name: len(units[name])}) for name in layers for i in units.indices[name]
    ]
    return (yield from _without(units, singles, limit))


def _without(units: Units, parts: Sequence[Units], limit: float) -> Search:
    """Greedy: drop each part in turn if the score stays below the limit without it.

    Asks ahead on the guess that the next parts all go; after the first that must stay, the guesses behind
    it are void and are asked again. Decisions are those of asking one by one.
    """
    todo, ahead = list(parts), 4
    while todo:
        trials = []
        for part in todo[:ahead]:
            trials.append((trials[-1] if trials else units) - part)
        gone = [score < limit for score in (yield trials)]
        dropped = gone.index(False) if False in gone else len(gone)
        units = trials[dropped - 1] if dropped else units
        todo = todo[dropped + (False in gone) :]
        ahead = max(1, ahead // 2) if False in gone else min(MOST_AHEAD, 2 * ahead)
    return units


def answer_all(searches: Sequence[Search], ask: Ask, *, progress: bool = False) -> list[Units]:
    """Run searches in step: the questions of all that are still open are answered by one call of `ask`.

    `ask` takes (number of the search, set) pairs and returns a score for each.
    """
    results: list[Units] = [Units({})] * len(searches)
    answers: dict[int, list[float] | None] = dict.fromkeys(range(len(searches)))
    with tqdm(total=len(searches), desc="NeMo", unit="prompt", disable=not progress, leave=False) as bar:
        while answers:
            questions = {}
            for i, answer in answers.items():
                try:
                    questions[i] = searches[i].send(answer)
                except StopIteration as stop:
                    results[i] = stop.value
                    bar.update()
            scores = iter(ask([(i, units) for i, sets in questions.items() for units in sets]))
            answers = {i: [next(scores) for _ in sets] for i, sets in questions.items()}
    return results


def _scores(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    deltas: Tensor,
    rows: list[tuple[int, int, Units]],
    *,
    settings: Nemo,
    batch_size: int | None,
) -> Tensor:
    """How alike each (prompt, seed)'s noise difference stays with units switched off: (rows,)."""
    size, found = batch_size or rows_at_once(model), [torch.zeros(0)]
    for start in range(0, len(rows), size):
        prompts, seeds, units = zip(*rows[start : start + size], strict=True)
        noise = [settings.noise[s] for s in seeds]
        with masked(model.unet, units):
            blocked = noise_differences(model, prompt_embeds[list(prompts)], noise, variant=settings.variant)
        found.append(alike(deltas[list(prompts), list(seeds)], blocked).cpu())
    return torch.cat(found)


def _nothing(found: Mapping[str, Tensor]) -> Search:
    """The search for a prompt that is not memorized: an empty selection of the eligible neurons."""
    return Units({name: torch.zeros_like(a, dtype=torch.bool) for name, a in found.items()})
    yield
