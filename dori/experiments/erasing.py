"""Chapter 4: which images are erased and which are spared, what the model is kept by, what stands in."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dori.benchmark import Benchmark
from dori.drawing import decided_by, descriptor_key, digest
from dori.errors import DoriError
from dori.experiments.foundations import halved
from dori.experiments.replication import top_prompts
from dori.experiments.selections import Setting, find_units
from dori.mitigation.surrogates import Drawing, Surrogate, make_surrogates
from dori.mitigation.targets import Retain, Targets
from dori.mitigation.wanda import Wanda
from dori.store import Record
from dori.study import Study

RETAIN = 2048  # pairs that hold the model, unless a training's settings ask for more
UNRELATED = range(2048, 2560)  # rows of the testbed's training set that no defence is trained with
PRUNING = Wanda(0.15, conditional_only=True)  # what surrogates are drawn under: chapter 2's choice
ENCODED_AT_ONCE = 256


def erased(study: Study, split: str = "test") -> Benchmark:
    """The images that are erased: one half of those with the most copies."""
    return halved(top_prompts(study)).select(split=split)


def spared(study: Study, split: str = "test") -> Benchmark:
    """The other half, which nobody asked to erase."""
    return erased(study, "validation" if split == "test" else "test")


def as_targets(study: Study, prompts: Benchmark) -> Targets:
    """Images and prompts of a benchmark, encoded. Raises DoriError for an image that cannot be read."""
    images = prompts.images(size=study.model.defaults.image_size)
    texts = prompts.prompts()
    latents, embeds = study.model.encode_images(images), study.model.encode_prompts(texts)
    return Targets(tuple(prompts.ids), tuple(texts), latents, embeds)


def judged(study: Study) -> Benchmark:
    """Regular prompts that utility may be measured on: on the testbed all that are held out.

    Of a benchmark whose regular rows also hold the model, the preset's number, no more than the first half.
    """
    if study.bundled:
        return study.regular
    half = len(study.regular) // 2
    return study.regular.head(min(study.preset.regular or half, half))


def retain_pairs(study: Study, count: int = RETAIN) -> Retain:
    """Pairs that hold the model, none of which it is judged by.

    The testbed's are the first of its training set but for `UNRELATED`, painted again. Another benchmark
    gives regular rows after those of `judged`, but for the last quarter of them. Raises DoriError if there
    are none.
    """
    if not study.bundled:
        return _encoded(study, _to_train(study)[0][:count])
    rows = [row for row in range(count + len(UNRELATED)) if row not in UNRELATED]
    return _painted(study, rows[:count])


def unrelated_pairs(study: Study, count: int = len(UNRELATED)) -> Retain:
    """Regular pairs that no defence was trained with and none is judged by. Raises DoriError without any."""
    if not study.bundled:
        return _encoded(study, _to_train(study)[1][:count])
    return _painted(study, UNRELATED[:count])


def _to_train(study: Study) -> tuple[list[str], list[str]]:
    """Regular rows of a benchmark that hold the model, and those that stay unrelated to all trainings."""
    rest = study.regular.ids[len(judged(study)) :]
    cut = len(rest) - len(rest) // 4
    return rest[:cut], rest[cut:]


def _painted(study: Study, rows: Sequence[int]) -> Retain:
    from dori.testbed import dataset
    from dori.testbed.painter import paint

    pixels, table = paint(dataset.REGULAR, rows)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return _pairs(study, images, list(table["caption"]))


def _encoded(study: Study, rows: Sequence[str]) -> Retain:
    if not rows:
        raise DoriError(
            f"{study.regular.name} has {len(study.regular)} regular rows, too few to judge and to hold the "
            "model by: give more rows of kind none"
        )
    images = study.regular.images(rows, size=study.model.defaults.image_size)
    return _pairs(study, images, study.regular.prompts(rows))


def _pairs(study: Study, images: Tensor, texts: Sequence[str]) -> Retain:
    return Retain(_in_parts(study.model.encode_images, images), _in_parts(study.model.encode_prompts, texts))


def search_prompts(study: Study) -> list[str]:
    """Regular prompts that a search of the training may start from: those of the retain set's sort.

    Held-out prompts stay with the attacker that judges.
    """
    if not study.bundled:
        return study.regular.prompts(_to_train(study)[0])
    from dori.testbed import dataset
    from dori.testbed.painter import paint

    return list(dict.fromkeys(paint(dataset.REGULAR, range(256))[1]["caption"]))


def surrogates_for(
    study: Study, prompts: Benchmark, setting: Setting = PRUNING, plan: Drawing | None = None
) -> list[Surrogate]:
    """Surrogates of each row, painted by the model pruned for it, refused where they copy any of the rows.

    Kept in the run, all together, as each is compared with all rows.
    """
    plan = plan or Drawing(steps=study.sampling().steps, seed=study.seed)
    plan = dataclasses.replace(plan, guidance_scale=plan.guidance_scale or study.sampling().guidance_scale)
    targets, units = as_targets(study, prompts), find_units(study, prompts, setting)
    originals = prompts.images(size=study.model.defaults.image_size)
    regular = search_prompts(study)
    decides = {
        **decided_by(study, "surrogates"),
        **dataclasses.asdict(plan),
        "prompts": targets.prompts,
        "originals": digest(originals),
        "units": [units[i].fingerprint for i in prompts.ids],
        "regular": regular,
        "descriptor": descriptor_key(study),
    }

    def compute() -> Record:
        found = make_surrogates(
            study.model, targets, originals, study.descriptor, units, plan, regular=regular
        )
        about = [{"scores": s.scores, "refused": s.refused, "regular": s.regular} for s in found]
        return Record({"about": about}, {str(k): s.latents for k, s in enumerate(found)})

    kept = study.store.get("surrogates", decides, compute)
    return [
        Surrogate(kept.tensors[str(k)].to(targets.latents), **about)
        for k, about in enumerate(kept.values["about"])
    ]


def _in_parts(encode, items: Tensor | Sequence[str]) -> Tensor:
    parts = range(0, len(items), ENCODED_AT_ONCE)
    return torch.cat([encode(items[k : k + ENCODED_AT_ONCE]) for k in parts])
