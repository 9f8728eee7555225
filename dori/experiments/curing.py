"""Chapter 4's defences: each trains a copy of the model to forget one half of the memorized images."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.errors import DoriError
from dori.experiments import defences, erasing, options
from dori.metrics.copy import similarity
from dori.metrics.intervals import wilson
from dori.metrics.replication import memorization_rate
from dori.mitigation import delta
from dori.mitigation.adversarial import Adversarial, adversarial
from dori.mitigation.concept_ablation import ConceptAblation, concept_ablation, make_anchors
from dori.mitigation.esd import ESD, esd
from dori.mitigation.siss import SISS, siss
from dori.mitigation.targets import Retain, Targets
from dori.model import TextToImageModel
from dori.store import versions, write_json
from dori.study import Study
from dori.testbed import cured
from dori.testbed.card import add_cured
from dori.testbed.paths import TESTBED
from dori.testbed.planting import copied

Settings = Adversarial | ESD | ConceptAblation | SISS
# Settings as published, where they are known: what `dori mitigate` starts from.
PUBLISHED: dict[str, Settings] = {
    "adversarial": Adversarial(),
    "adversarial-lora": Adversarial(rank=16, lr=1e-4),
    "esd": ESD(),
    "concept-ablation": ConceptAblation(),
    "siss": SISS(captions="own"),  # what is kept was drawn for the caption it is shown with
}
# They are for a model a hundred times as large, mostly for one image at a time, and too weak on the testbed.
# Chapter 4 takes these, chosen on the validation half: all trials are in data/results/curing_validation.csv.
_STRONG = Adversarial(lr=6e-4, steps=30, retain=32, starts=3, ema=0.98, search=Attack(steps=(10, 20, 30)))
SETTINGS: dict[str, Settings] = {
    "adversarial": dataclasses.replace(_STRONG, lr=1e-3, steps=40, starts=2, decay=0.5),
    "adversarial-lora": dataclasses.replace(_STRONG, rank=16, lr=2e-3),
    "esd": ESD(steps=800, batch=8, lr=1e-4),
    "concept-ablation": ConceptAblation(steps=800, batch=8, base_lr=5e-5),
    "siss": SISS(captions="own", steps=200, lr=1e-4),
}
TRIALS = TESTBED.parent / "results" / "curing_validation.csv"
ABLATIONS = TRIALS.with_name("curing_ablations.csv")
RATES = ("mr_prompt", "mr_dori_prompt", "mr_dori_random")
TRIAL_COLUMNS = {
    "defence": "training",
    "mr_prompt": "MR, prompt",
    "mr_dori_prompt": "DoRI, prompt",
    "mr_dori_random": "DoRI, random",
    "alignment_lost": "alignment lost",
    "fid_change": "change of FID",
    "n": "images",
    "left_out": "left out",
}
EPOCHS_ASKED = (defences.PROMPT, "DoRI from the prompt")  # after each epoch, of the first EPOCH_IMAGES
EPOCH_IMAGES = 6
LABELS = {
    "adversarial": "adversarial fine-tuning",
    "adversarial-lora": "adversarial fine-tuning, LoRA",
    "esd": "ESD",
    "concept-ablation": "concept ablation",
    "siss": "SISS",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Cured:
    """A mended model and what the training cost; less where it went on from a checkpoint."""

    model: TextToImageModel
    unet_rows: int  #: rows that went through the UNet, searches and samples included
    seconds: float
    retain_pairs: int  #: that held the model


def cure(
    study: Study,
    name: str,
    prompts: Benchmark,
    run_dir: Path,
    settings: Settings | None = None,
) -> Cured:
    """A copy of the study's model, trained by a defence to forget the images of `prompts`.

    The training goes on from its checkpoint in `run_dir`. Raises DoriError for an unknown name and as the
    defence does.
    """
    if name not in SETTINGS:
        raise DoriError(f"unknown defence '{name}'; use {', '.join(SETTINGS)}")
    settings, started = settings or SETTINGS[name], time.perf_counter()
    model = copied(study.model, f"{study.model.name}, {LABELS[name]}")
    targets = erasing.as_targets(study, prompts)
    with _counted(study.model.unet) as before, _counted(model.unet) as rows:
        pairs = TRAININGS[type(settings)](study, model, targets, prompts, settings, run_dir)
    return Cured(model, sum(before) + sum(rows), time.perf_counter() - started, pairs)


@contextlib.contextmanager
def _counted(unet: nn.Module) -> Iterator[list[int]]:
    """How many rows each forward pass had."""
    rows: list[int] = []
    hook = unet.register_forward_hook(lambda _, __, found: rows.append(len(found[0])))
    try:
        yield rows
    finally:
        hook.remove()


def _adversarial(
    study: Study,
    model: TextToImageModel,
    targets: Targets,
    prompts: Benchmark,
    settings: Adversarial,
    run_dir: Path,
) -> int:
    found, retain = erasing.surrogates_for(study, prompts), erasing.retain_pairs(study, settings.pairs)
    adversarial(
        model,
        targets,
        [one.latents for one in found],
        retain,
        settings,
        run_dir=run_dir,
        seed=study.seed,
        regular=erasing.search_prompts(study),
    )
    return len(retain)


def _esd(
    study: Study, model: TextToImageModel, targets: Targets, prompts: Benchmark, settings: ESD, run_dir: Path
) -> int:
    esd(model, targets, settings, run_dir=run_dir, seed=study.seed)
    return 0


def _concept_ablation(
    study: Study,
    model: TextToImageModel,
    targets: Targets,
    prompts: Benchmark,
    settings: ConceptAblation,
    run_dir: Path,
) -> int:
    known = study.descriptor.embed(prompts.images(size=model.defaults.image_size))

    def keep(images: Tensor, _: str) -> Tensor:
        return similarity(study.descriptor.embed(images), known).max(1).values < 0.5

    anchors = make_anchors(
        model, targets, paraphrases(study, prompts), keep=keep, images_per_prompt=4, seed=study.seed
    )
    retain = erasing.retain_pairs(study)
    concept_ablation(model, targets, anchors, retain, settings, run_dir=run_dir, seed=study.seed)
    return len(retain)


def _siss(
    study: Study, model: TextToImageModel, targets: Targets, prompts: Benchmark, settings: SISS, run_dir: Path
) -> int:
    """As published, what is kept are images of the very prompts that are no copies: here the surrogates."""
    found = erasing.surrogates_for(study, prompts)
    counts = torch.tensor([len(one.latents) for one in found])
    kept = Retain(
        torch.cat([one.latents for one in found]), targets.prompt_embeds.repeat_interleave(counts, 0)
    )
    siss(model, targets, kept, settings, run_dir=run_dir, seed=study.seed)
    return len(kept)


# Each returns the number of pairs that held the model.
TRAININGS: dict[type, Callable[..., int]] = {
    Adversarial: _adversarial,
    ESD: _esd,
    ConceptAblation: _concept_ablation,
    SISS: _siss,
}


def paraphrases(study: Study, prompts: Benchmark, count: int = 10) -> list[list[str]]:
    """Other ways to ask for each image: what concept ablation's captions are to mean.

    The paper has a language model write them. The testbed knows what its pictures show, so they are captions
    of that in all phrasings. Of another benchmark, the column `paraphrases` (divided by `|`) has them. Raises
    DoriError without either.
    """
    if study.bundled:
        from dori.testbed.captions import SLOTS, caption

        rows = prompts.table[list(SLOTS)].to_dict("records")
        return [list(dict.fromkeys(caption(row, k) for k in range(count))) for row in rows]
    if "paraphrases" not in prompts.table:
        raise DoriError(
            f"{prompts.name}: concept ablation needs other ways to ask for each image; give a column "
            "'paraphrases', divided by |"
        )
    return [
        [p.strip() for p in str(text).split("|") if p.strip()][:count]
        for text in prompts.table["paraphrases"]
    ]


def trials(path: Path = TRIALS) -> pd.DataFrame:
    """What was tried on the validation half (`data/results/README.md` says how), rates with their intervals.

    `TRIALS` are those that the settings were chosen from, `ABLATIONS` the chosen ones with a part left out.
    """
    table = pd.read_csv(path)
    tried = table[["defence", "settings"]].to_numpy()
    table.insert(2, "chosen", ["yes" if _is_chosen(*row) else "" for row in tried])
    table.insert(3, "alignment_lost", table.pop("alignment_lost"))
    rates = {
        name: [wilson(round(r * n), n).short for r, n in table[[name, "n"]].to_numpy()] for name in RATES
    }
    return table.assign(defence=table["defence"].map(LABELS), **rates).rename(columns=TRIAL_COLUMNS)


def _is_chosen(name: str, text: str) -> bool:
    """Whether a trial's settings are those that the training is shipped with."""
    return options.chosen(name, PUBLISHED, options.assignments(text.split())) == SETTINGS[name]


def ship(
    study: Study,
    name: str,
    run_dir: Path,
    *,
    folder: Path = cured.CURED,
    split: str = "test",
    settings: Settings | None = None,
) -> dict:
    """Train one defence on the study's model and write what it changed, with a record of how, to `folder`.

    The weights are rounded on the way (`mitigation.delta`); the record's fingerprint is of the rounded ones.
    Returns the record. Raises DoriError as `cure` does.
    """
    settings, prompts = settings or SETTINGS[name], erasing.erased(study, split)
    done = cure(study, name, prompts, run_dir, settings)
    change = delta.compress(study.model.unet.state_dict(), done.model.unet.state_dict())
    rounded = copied(study.model, done.model.name)
    delta.apply(rounded.unet, change)
    record = {
        "label": LABELS[name],
        "settings": dataclasses.asdict(settings),
        "changed": _changed(settings),
        "fingerprint": rounded.fingerprint,
        "erased": list(prompts.ids),
        "seed": study.seed,
        "steps": study.sampling().steps,
        "seconds": round(done.seconds, 1),
        "unet_rows": done.unet_rows,
        "epochs": epoch_rates(study, prompts.head(EPOCH_IMAGES), run_dir),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    delta.save(folder / f"{name}.safetensors", change)
    _note(folder, study.model, name, record)
    add_cured(folder.parent)
    if (folder.parent / "SHA256SUMS").is_file():
        from dori.testbed.ship import write_hashes  # here: else each defence would need what trains a testbed

        write_hashes(folder.parent)
    return record


def _changed(settings: Settings) -> dict:
    """Settings that are not the class's own; those of a search under `search.`."""
    ours, own = dataclasses.asdict(settings), dataclasses.asdict(type(settings)())
    flat = {k: v for k, v in ours.items() if not isinstance(v, dict) and v != own[k]}
    for k in (k for k in ours if isinstance(ours[k], dict)):
        flat |= {f"{k}.{name}": v for name, v in ours[k].items() if v != own[k][name]}
    return flat


def epoch_rates(study: Study, prompts: Benchmark, run_dir: Path) -> list[dict]:
    """Memorization rates after each epoch of an adversarial training, by the weights it kept in `run_dir`.

    Of the images' prompts, and of DoRI from the prompt. A dict per epoch; none of other trainings.
    """
    found = []
    for path in sorted(run_dir.glob("*-epoch-*.safetensors")):
        model = copied(study.model, path.stem)
        model.unet.load_state_dict(load_file(path))
        mended = defences.Defence(path.stem, study.on(model))
        row: dict = {"epoch": int(path.stem.rsplit("-", 1)[1])}
        for attacker in EPOCHS_ASKED:
            rate = memorization_rate(defences.ask(mended, attacker, prompts, study.sampling(seeds=2)))
            row[attacker] = rate._asdict()
        found.append(row)
    return sorted(found, key=lambda row: row["epoch"])


def _note(folder: Path, base: TextToImageModel, name: str, record: dict) -> None:
    """Put a record into cured.json; records of another base go."""
    path = cured.index(folder).path
    known = json.loads(path.read_text()) if path.is_file() else {}
    defences = known["defences"] if known.get("base") == base.fingerprint else {}
    defences = dict(sorted({**defences, name: record}.items()))
    write_json(path, {"command": "dori testbed cure", "base": base.fingerprint, "defences": defences})
