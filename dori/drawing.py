"""Draw images and keep them: of prompts, of embeddings that a search found, of pruned models.

A prompt is a trigger without units. Every image is drawn once per run directory, whoever asks for it.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from dori import parallel
from dori.benchmark import Benchmark
from dori.errors import DoriError
from dori.hooks import masked
from dori.images import read_image, to_uint8
from dori.methods import code_of
from dori.metrics.copy import similarity
from dori.metrics.replication import replication_table
from dori.mitigation.units import Units
from dori.model import PIXELS_AT_ONCE
from dori.store import Record

if TYPE_CHECKING:
    from dori.study import Study

log = logging.getLogger(__name__)


class NotFinite(DoriError):
    """A model gave no numbers: that item is left out, the others go on."""


@dataclass(frozen=True)
class Sampling:
    """Everything about drawing images that decides them, besides model, prompt and noise."""

    seeds: int
    guidance_scale: float
    steps: int


@dataclass(frozen=True, eq=False)
class Trigger:
    """What is to give the image of one row, and the units that are off when it is drawn.

    Either a prompt, or an embedding (T, D). An embedding that was computed from others says in `source` how:
    records of its images are found by that, as its last digits differ from machine to machine.
    """

    id: str
    embeds: Tensor | None = None
    units: Units | None = None
    prompt: str | None = None
    source: str = ""


def prompt_trigger(prompts: Benchmark, item: str, units: Units | None = None) -> Trigger:
    """A row's own prompt."""
    return Trigger(item, units=units, prompt=prompts.table.loc[item, "prompt"])


def drawn(
    study: "Study", triggers: Sequence[Trigger], sampling: Sampling
) -> Iterator[tuple[Trigger, Tensor]]:
    """(trigger, images (S, 3, H, W) in [0, 1]) of each, drawn where missing, as rounded as a PNG.

    The noise belongs to the row, so all triggers of one row are drawn from the same. Each trigger of a batch
    has its own units.
    """

    def there(trigger: Trigger) -> bool:
        return all(study.store.has("image", key) for key in image_keys(study, trigger, sampling))

    _draw_lacking(study, parallel.missing(triggers, there), sampling)
    parallel.wait()
    return ((trigger, _kept(study, trigger, sampling)) for trigger in triggers)


def _draw_lacking(study: "Study", triggers: Sequence[Trigger], sampling: Sampling) -> None:
    """Draw what the run directory does not have of these triggers' images."""
    lacking: dict[tuple[int, ...], list[Trigger]] = {}  # numbers of the images -> triggers that lack them
    for trigger in triggers:
        keys = enumerate(image_keys(study, trigger, sampling))
        numbers = tuple(k for k, key in keys if not study.store.has("image", key))
        lacking.setdefault(numbers, []).append(trigger)
    lacking.pop((), None)
    with progress(sum(len(numbers) * len(some) for numbers, some in lacking.items()), "images") as bar:
        for numbers, some in lacking.items():
            _draw(study, some, numbers, sampling, bar=bar)


def stored_images(study: "Study", benchmark: Benchmark, sampling: Sampling) -> Iterator[tuple[str, Tensor]]:
    """(id, images (S, 3, H, W) in [0, 1]) of each row's prompt, drawn where missing."""
    for trigger, images in drawn(study, [prompt_trigger(benchmark, i) for i in benchmark.ids], sampling):
        yield trigger.id, images


def score_triggers(
    study: "Study",
    prompts: Benchmark,
    triggers: Sequence[Trigger],
    sampling: Sampling | None = None,
    *,
    numbered: bool = False,
) -> pd.DataFrame:
    """Images of each trigger against the training image of its row; a row may have any number of triggers.

    Returns a row per image, in the order of the triggers: id, seed, score, replicated, and the benchmark's
    columns but prompt and image; `numbered` adds `trigger`, the number in the list, which tells those of one
    row apart. Rows whose training image cannot be read, and triggers of which an image or a score is not
    finite, are left out, logged, and named in `attrs["skipped"]`. Raises DoriError if nothing is left.
    """
    sampling, skipped, keys = sampling or study.sampling(), {}, {}
    for n, trigger in enumerate(triggers):
        try:
            keys[n] = _score_key(study, prompts, trigger, sampling)
        except DoriError as error:
            skipped[trigger.id] = str(error)
    report(skipped, of=len({trigger.id for trigger in triggers}))
    study.store.ask("score", keys.values())
    todo = parallel.missing(list(keys), lambda n: study.store.find("score", keys[n]) is not None)
    _draw_lacking(study, [triggers[n] for n in todo], sampling)
    for n in todo:
        with study.store.timed("score"):
            study.store.save("score", keys[n], _scored(study, prompts, triggers[n], sampling))
    parallel.wait()
    found = {n: study.store.find("score", key).values for n, key in keys.items()}
    lost = {triggers[n].id: values["failed"] for n, values in found.items() if "failed" in values}
    report(lost, of=len({triggers[n].id for n in found}))
    scores = {n: values["scores"] for n, values in found.items() if "failed" not in values}
    table = replication_table(scores, study.descriptor.threshold).rename(columns={"id": "trigger"})
    table.insert(0, "id", [triggers[n].id for n in table["trigger"]])
    about = prompts.table.drop(columns=["prompt", "image"])
    numbers = table.pop("trigger")
    table = table.merge(about, left_on="id", right_index=True, how="left")
    if numbered:
        table["trigger"] = numbers
    table.attrs["skipped"] = skipped | lost
    return table


def _scored(study: "Study", prompts: Benchmark, trigger: Trigger, sampling: Sampling) -> Record:
    """Scores of a trigger's images, or why there are none: the model's doing, so it would be so again."""
    try:
        images = _kept(study, trigger, sampling)
    except NotFinite as error:
        return Record({"failed": str(error), "id": trigger.id})
    original = prompts.images([trigger.id])
    scores = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[:, 0]
    if not bool(scores.isfinite().all()):
        return Record({"failed": "a score is not finite", "id": trigger.id})
    return Record({"scores": scores.tolist()})


def generate_and_score(
    study: "Study", benchmark: Benchmark, sampling: Sampling | None = None
) -> pd.DataFrame:
    """Images for every prompt, scored against the prompt's training image: as `score_triggers`."""
    return score_triggers(study, benchmark, [prompt_trigger(benchmark, i) for i in benchmark.ids], sampling)


def report(skipped: dict[str, str], *, of: int) -> None:
    """One line of the log for each row that is left out. Raises DoriError if that is all of them."""
    if skipped and len(skipped) == of:
        raise DoriError(f"none of {of} rows can be used: {next(iter(skipped.values()))}")
    for i, reason in skipped.items():
        log.warning("%s: %s; left out", i, reason)


def noise_seed(seed: int, item: str, index: int) -> int:
    """The generator seed of one image: from the run's seed, the item and its number, so no order matters."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{item}/{index}".encode()).digest()[:6], "big")


def rows_at_once(study: "Study") -> int:
    """Images drawn in one batch; on a CPU half of what fits, as an interruption costs the batch in hand."""
    device, pixels = study.model.device.type, study.model.defaults.image_size**2
    share = PIXELS_AT_ONCE[device] // (2 if device == "cpu" else 1)
    return study.images_at_once or max(1, share // pixels)


def progress(total: int, label: str) -> tqdm:
    """One bar with the time left; silent where stderr is no terminal, as in a notebook."""
    return tqdm(
        total=total, desc=label, unit="image", disable=not (sys.stderr.isatty() and total), leave=False
    )


def digest(tensor: Tensor) -> str:
    """sha256 (16 hex digits) of a tensor's values."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def decided_by(study: "Study", *methods: str) -> dict:
    """What decides any result of a study's model that these methods make (`methods.code_of`)."""
    return {**study.model.identity, "version": 1, **code_of(*methods)}  # 1: of the keys, see methods.py


def descriptor_key(study: "Study") -> str:
    """What about the descriptor decides a score: its weights, of one without a fingerprint its name."""
    return getattr(study.descriptor, "fingerprint", study.descriptor.name)


def image_keys(study: "Study", trigger: Trigger, sampling: Sampling) -> list[dict]:
    """All that decides each image of a trigger."""
    decides = {
        **decided_by(study, "sampling"),
        "guidance_scale": sampling.guidance_scale,
        "steps": sampling.steps,
    }
    if trigger.prompt is None:
        decides["embedding"] = trigger.source or digest(trigger.embeds)
    else:  # the text, not what it encodes to: rounding differs by batch and number of threads
        decides["prompt"] = trigger.prompt
    if trigger.units:
        decides["units"] = trigger.units.fingerprint
    return [{**decides, "noise": noise_seed(study.seed, trigger.id, k)} for k in range(sampling.seeds)]


def _score_key(study: "Study", prompts: Benchmark, trigger: Trigger, sampling: Sampling) -> dict:
    """All that decides a trigger's scores: images, training image, descriptor. Raises DoriError."""
    original = read_image(prompts.path.parent / prompts.table.loc[trigger.id, "image"])
    return {
        "images": image_keys(study, trigger, sampling),
        "original": digest(original),
        "descriptor": descriptor_key(study),
        **code_of("scoring"),
    }


def _draw(
    study: "Study",
    triggers: Sequence[Trigger],
    numbers: Sequence[int],
    sampling: Sampling,
    *,
    bar: tqdm | None = None,
) -> None:
    """Draw and store the images of these numbers of each trigger, a batch at a time."""
    rows = rows_at_once(study)
    for ks in _batches(numbers, rows):
        for part in _batches(triggers, max(1, rows // len(ks))):
            with study.store.timed("image"):
                images = _batch(study, part, ks, sampling)
                for n, trigger in enumerate(part):
                    keys = image_keys(study, trigger, sampling)
                    for k, image in zip(ks, images[:, n], strict=True):
                        study.store.save("image", keys[k], _image_record(image))
            if bar is not None:
                bar.update(len(ks) * len(part))


def _image_record(image: Tensor) -> Record:
    """What is kept of an image: its bytes, or the word that it is none."""
    if not bool(image.isfinite().all()):
        return Record({"failed": "not finite"})
    return Record({}, {"image": to_uint8(image)})


def _batch(study: "Study", triggers: Sequence[Trigger], numbers: Sequence[int], sampling: Sampling) -> Tensor:
    """One batch, (S, N, 3, H, W): row r is trigger r mod N, as units of N triggers want it."""
    prompts = [t.prompt for t in triggers if t.prompt is not None]
    encoded = iter(study.model.encode_prompts(prompts)) if prompts else iter(())
    embeds = torch.stack([(t.embeds if t.prompt is None else next(encoded)).to(study.model.unconditional)
                          for t in triggers])  # fmt: skip
    with masked(study.model.unet, [t.units or {} for t in triggers]):
        images = study.model.sample(
            embeds.repeat(len(numbers), 1, 1),
            [noise_seed(study.seed, t.id, k) for k in numbers for t in triggers],
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.steps,
            batch_size=len(triggers) * len(numbers),
        )
    return images.unflatten(0, (len(numbers), len(triggers)))


def _kept(study: "Study", trigger: Trigger, sampling: Sampling) -> Tensor:
    """Images of a trigger from the store; a file that is damaged is drawn again. Raises NotFinite."""
    keys = image_keys(study, trigger, sampling)
    found = [study.store.find("image", key) for key in keys]
    damaged = [k for k, record in enumerate(found) if record is None]
    if damaged:
        _draw(study, [trigger], damaged, sampling)
        found = [study.store.find("image", key) for key in keys]
    if any("image" not in record.tensors for record in found):
        raise NotFinite("an image is not finite")
    return torch.stack([record.tensors["image"] for record in found]).float() / 255


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
