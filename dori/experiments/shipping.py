"""The defences that come with the testbed: each trained on one half of the images, and how it was made."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from dori.benchmark import Benchmark
from dori.experiments import curing, defences, erasing
from dori.metrics.replication import memorization_rate
from dori.mitigation import delta
from dori.model import TextToImageModel
from dori.store import versions, write_json
from dori.study import Study
from dori.testbed import cured
from dori.testbed.card import add_cured
from dori.testbed.planting import copied

EPOCHS_ASKED = (defences.PROMPT, "DoRI from the prompt")  # after each epoch, of the first EPOCH_IMAGES
EPOCH_IMAGES = 6


def ship(
    study: Study,
    name: str,
    run_dir: Path,
    *,
    folder: Path = cured.CURED,
    split: str = "test",
    settings: curing.Settings | None = None,
) -> dict:
    """Train one defence on the study's model and write what it changed, with a record of how, to `folder`.

    The weights are rounded on the way (`mitigation.delta`); the record's fingerprint is of the rounded ones.
    Returns the record. Raises DoriError as `curing.cure` does.
    """
    settings, prompts = settings or curing.SETTINGS[name], erasing.erased(study, split)
    done = curing.cure(study, name, prompts, run_dir, settings)
    change = delta.compress(study.model.unet.state_dict(), done.model.unet.state_dict())
    rounded = copied(study.model, done.model.name)
    delta.apply(rounded.unet, change)
    record = {
        "label": curing.LABELS[name],
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


def _changed(settings: curing.Settings) -> dict:
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
    others = known["defences"] if known.get("base") == base.fingerprint else {}
    records = dict(sorted({**others, name: record}.items()))
    write_json(path, {"command": "dori testbed cure", "base": base.fingerprint, "defences": records})
