"""Many triggers of one image: searches from many starts, what each draws, and how many succeed.

A trigger is an embedding that a search ended at, whether or not it draws the image; `successful` keeps those
that do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn import functional as F

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling, Trigger, score_triggers
from dori.errors import DoriError
from dori.experiments.searches import run_searches
from dori.metrics.intervals import Estimate, bootstrap, wilson
from dori.mitigation.units import Units
from dori.study import Study

DISTANCES = ["moved", "cosine", "start_distance", "end_distance"]


@dataclass(frozen=True, eq=False)
class Found:
    """Where one search for an image began and ended."""

    name: str  # "mem-128-01 random 3", with other draws "mem-128-01 random 3, draws 1"
    image: str  # id of the row
    init: str
    number: int  # of the start
    draw: int  # 0: the start's own draws of (eps, t)
    start: Tensor  # (T, D)
    embeds: Tensor  # (T, D)
    source: str = ""  # of embeds that no search ended at: what they were computed from (`drawing.Trigger`)


def find_triggers(
    study: Study, prompts: Benchmark, plan: Attack, count: int, *, draws: int = 0
) -> list[Found]:
    """Search for each row's image from `count` starts, and `draws` more times from each of them.

    The searches of all rows share batches; each is kept in the run directory, and start 0 is `run_attacks`'s
    own. A search ends at the last of `plan.steps`. Returns the rows in their order, of each its starts, of
    each start its draws. Rows and searches that come to nothing cost one line of the log each. Raises
    DoriError for a `count` below 1 or negative `draws`, and if nothing is left.
    """
    if count < 1 or draws < 0:
        raise DoriError(f"{count} starts, {draws} further draws: use at least 1 start and 0 draws")
    searched, _ = run_searches(study, prompts, plan, {}, count=count, draws=draws)
    end = str(max(plan.steps))
    return [
        Found(_name(i, plan.init, k, j), i, plan.init, k, j, record.tensors["start"], record.tensors[end])
        for (i, k, j), record in searched.items()
    ]


def score_found(
    study: Study,
    prompts: Benchmark,
    found: Sequence[Found],
    *,
    units: Mapping[str, Units] | None = None,
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """What each trigger draws, against the training image of its row; all of one row from the same noise.

    `units` by name of a trigger are switched off when that one is drawn. Returns a row per trigger and seed:
    trigger (its name), id, init, number, draw, seed, score, replicated, moved (L2 from start to end, all T x
    D numbers), cosine (of start and end), start_distance and end_distance (L2 of each to the embedding of the
    row's prompt), and the benchmark's columns but prompt, image and those of these names. Rows whose image
    cannot be read are left out, logged, and named in `attrs["skipped"]`. Raises DoriError for two triggers of
    one name, and if no row is left.
    """
    units, names = units or {}, [one.name for one in found]
    if len(set(names)) < len(names):
        raise DoriError(f"two triggers are called '{next(n for n in names if names.count(n) > 1)}'")
    triggers = [Trigger(f.image, f.embeds, units.get(f.name), source=f.source) for f in found]
    table = score_triggers(study, prompts, triggers, sampling, numbered=True)
    about, skipped = _about(study, prompts, found), table.attrs["skipped"]
    table = table.drop(
        columns=[c for c in about if c in table and c != "trigger"]
    )  # a benchmark's own "number"
    table["trigger"] = [names[n] for n in table["trigger"]]
    table = table.merge(about, on="trigger", how="left")
    first = ["trigger", "id", "init", "number", "draw", "seed", "score", "replicated", *DISTANCES]
    table = table[first + [column for column in table if column not in first]]
    table.attrs["skipped"] = skipped
    return table


def successful(found: Sequence[Found], scores: pd.DataFrame) -> list[Found]:
    """Triggers of which at least one seed replicates (`scores` of `score_found`); unscored ones do not."""
    hit = set(scores.loc[scores["replicated"], "trigger"])
    return [one for one in found if one.name in hit]


def trigger_rate(scores: pd.DataFrame) -> Estimate:
    """Share of triggers of which at least one seed replicates (`scores` of `score_found`).

    Triggers of one image are not independent. So with several images the interval is a bootstrap over images,
    each with all its triggers, and n counts images; where all images have the same rate it has no width. With
    one image it is Wilson's over triggers, n counts those, and it speaks of that image alone.
    """
    hit = scores.groupby(["id", "trigger"], sort=False)["replicated"].any()
    images = hit.index.get_level_values("id")
    if images.nunique() < 2:
        return wilson(int(hit.sum()), len(hit))
    return bootstrap(hit, np.mean, by=images)


def _name(item: str, init: str, number: int, draw: int) -> str:
    return f"{item} {init} {number}" + (f", draws {draw}" if draw else "")


def _about(study: Study, prompts: Benchmark, found: Sequence[Found]) -> pd.DataFrame:
    """A row per trigger: where it comes from, and the DISTANCES."""
    prompt, rows = {}, []
    for item in dict.fromkeys(one.image for one in found):  # one by one, as rounding differs in a batch
        prompt[item] = _flat(study.model.encode_prompts(prompts.prompts([item]))[0])
    for one in found:
        start, end, own = _flat(one.start), _flat(one.embeds), prompt[one.image]
        ways = ((end - start).norm(), F.cosine_similarity(start, end, dim=0), (start - own).norm(),
                (end - own).norm())  # fmt: skip
        rows.append((one.name, one.init, one.number, one.draw, *map(float, ways)))
    return pd.DataFrame(rows, columns=["trigger", "init", "number", "draw", *DISTANCES])


def _flat(embeds: Tensor) -> Tensor:
    return embeds.detach().flatten().float().cpu()
