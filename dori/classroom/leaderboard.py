"""A defence against an attacker that it was not made for: what is left of the images, and of the model.

A defence is a function `defend(model, prompts)`: it is given a copy of the model and the images to hide, and
changes the copy's UNet in place, or returns the units to switch off for good.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from dori.benchmark import Benchmark
from dori.classroom.room import Room
from dori.errors import DoriError
from dori.experiments import erasing
from dori.experiments.defences import PRUNED, TRAINED, TWIN
from dori.experiments.erasure import heldout_loss
from dori.experiments.fragility import attack_table
from dori.metrics.replication import best_scores, memorization_rate
from dori.mitigation.units import Units
from dori.mitigation.wanda import wanda
from dori.model import TextToImageModel
from dori.study import Study
from dori.testbed import cured
from dori.testbed.planting import copied

Defend = Callable[[TextToImageModel, Benchmark], Units | None]
MOST_LOST = 0.2  # a model whose held-out loss rose by more than this share is broken, not defended


def defended(room: Room, prompts: Benchmark, defend: Defend, label: str = "yours") -> Study:
    """The study on a copy of the model that `defend` has changed; the model itself stays as it is.

    Only the weights of the UNet count: they are taken over into a fresh copy, so that hooks and changed
    classes stay behind. Raises DoriError for a defence that changes the model outside its UNet, leaves
    weights that are not finite or of another network, or returns something else than units or None.
    """
    base, before = room.study.model, room.weights
    given = copied(base, label)
    given.unet.requires_grad_(True)
    units = defend(given, prompts)
    if room.weights != before:
        raise DoriError(f"'{label}' changed the model it was not given, or its text encoder or autoencoder")
    if isinstance(units, Units):
        units.bake(given.unet)
    elif units is not None:
        raise DoriError(f"'{label}' returned a {type(units).__name__}; return Units or None")
    mine = copied(base, label)
    try:
        mine.unet.load_state_dict(given.unet.state_dict())
    except RuntimeError as error:
        raise DoriError(f"'{label}' left another network: {str(error).splitlines()[0]}") from None
    if not all(bool(p.isfinite().all()) for p in mine.unet.parameters()):
        raise DoriError(f"'{label}' left weights that are not finite")
    return room.study.on(mine)


def prune_jointly(model: TextToImageModel, prompts: Benchmark) -> Units:
    """The reference defence: Wanda at the book's setting, one set of weights for all prompts."""
    embeds = model.encode_prompts(prompts.prompts())
    return wanda(model, embeds, settings=erasing.PRUNING, joint=True)[0]


def references(room: Room, prompts: Benchmark) -> dict[str, Study]:
    """The rows to compare with: those that the size names, and mended models shipped for these images."""
    makes = {
        TRAINED: lambda: room.study,
        PRUNED: lambda: defended(room, prompts, prune_jointly, PRUNED),
        TWIN: lambda: room.study.twin,
    }
    found = {name: makes[name]() for name in room.size.references}
    if TWIN in found and cured.index().is_base(room.study.model):
        for which, record in cured.index().records().items():
            if set(prompts.ids) <= set(record["erased"]):
                found[record["label"]] = room.study.on(cured.cured_model(room.study.model, which))
    return found


def judge(room: Room, study: Study, prompts: Benchmark) -> dict[str, object]:
    """One row: `prompt` and `attack` (rates), `score` (mean best score under attack), `loss` (held-out).

    The attacker searches as chapter 4's held-out one does: another start, optimiser and step size than the
    attacks that students are shown.
    """
    attacked = attack_table(study, prompts, room.size.heldout, sampling=room.sampling)
    return {
        "prompt": memorization_rate(room.scores(prompts, study=study)),
        "attack": memorization_rate(attacked),
        "score": float(best_scores(attacked).mean()),
        "loss": utility_loss(room, study),
    }


def utility_loss(room: Room, study: Study) -> float:
    """Denoising loss on held-out pairs; the same pairs and noise for every model."""
    return heldout_loss(study, room.heldout(room.size.losses), draws=4)


def board(rows: Mapping[str, Mapping[str, object]], *, trained: float) -> pd.DataFrame:
    """Rows of `judge` by name, best first: rank, prompt, attack, score, lost, counts.

    `lost` is by which share a model's held-out loss is above `trained`, that of the model as trained.

    A model that lost more than MOST_LOST is placed after all others and has no rank. The others are placed by
    the rate under attack, then by the score under attack; rows that agree in both share a rank.
    """
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["prompt", "attack", "score", "loss"])
    table["lost"] = table.pop("loss").astype(float) / trained - 1
    table["counts"] = table["lost"] <= MOST_LOST
    table["rate"] = [r.value for r in table["attack"]]
    table = table.sort_values(["counts", "rate", "score"], ascending=[False, True, True], kind="stable")
    places = pd.Series(list(zip(table["rate"], table["score"], strict=True)), index=table.index)
    ranks = places[table["counts"]].rank(method="min") if table["counts"].any() else pd.Series(dtype=float)
    table.insert(0, "rank", ranks.reindex(table.index))
    return table.drop(columns="rate")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`board` for reading: rates with intervals and n."""
    return pd.DataFrame(
        {
            "rank": ["–" if np.isnan(r) else f"{r:.0f}" for r in table["rank"]],
            "rate, own prompt": [r.cell for r in table["prompt"]],
            "rate, held-out search": [r.cell for r in table["attack"]],
            "best score, held-out search": [f"{s:.2f}" for s in table["score"]],
            "held-out loss": [f"{100 * x:+.1f} %" for x in table["lost"]],
        },
        index=table.index,
    )


def compete(room: Room, prompts: Benchmark, some: Mapping[str, Study]) -> pd.DataFrame:
    """The board of some defended models (`defended`) and of the references."""
    trained = utility_loss(room, room.study)
    models = {**some, **references(room, prompts)}
    return board({name: judge(room, study, prompts) for name, study in models.items()}, trained=trained)
