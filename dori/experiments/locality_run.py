"""`dori locality`: does what an image's triggers have in common lie in one place? Of any benchmark's images.

The diagnostics are chapter 3's (`locality_levels`). Searches and what they draw are shared by all processes;
then each takes images of its own, and what is found of an image is one record.
"""

import dataclasses
import logging
from collections.abc import Sequence

import pandas as pd

from dori import parallel
from dori.benchmark import Benchmark
from dori.drawing import decided_by, descriptor_key, digest
from dori.errors import DoriError
from dori.experiments.locality_activations import meeting
from dori.experiments.locality_blocks import table as block_table
from dori.experiments.locality_directions import table as direction_table
from dori.experiments.locality_levels import LEVELS, index, per_image
from dori.experiments.locality_sizes import PUBLISHED, WANDA
from dori.experiments.locality_transfer import transfers
from dori.experiments.locality_weights import all_agreements
from dori.experiments.memories import ORDINARY, Memory, sampling, searched, sizes
from dori.experiments.runfiles import about, announce, left_out, plain, write_run
from dori.experiments.triggers import trigger_rate
from dori.store import Record, atomic
from dori.study import Study

NEAR = 3  # images whose triggers an image's are compared with: of all of them, work would grow as the square
LOST = "no search of it came to an end that could be drawn"

log = logging.getLogger(__name__)


def locate(study: Study, prompts: Benchmark, starts: int | None = None) -> dict:
    """Search for triggers of every image, from `starts` of each sort, and compare them at every level.

    Writes results.csv (a row per trigger and image drawn), locality.csv (a row per image and level),
    summary.json and provenance.json. Returns the summary; its `impossible` has the levels that cannot be
    measured here, with reasons, which are logged, too. Raises DoriError if nothing can be searched for.
    """
    study.model.value_layers()  # without cross-attention an embedding changes nothing
    lacking = impossible(study)
    for level, reason in lacking.items() if parallel.first() else ():
        log.warning("%s: not measured: %s", level, reason)
    announce(study, prompts, command="locality")
    size = sizes(study)
    counts = {"random": starts or size.random, "regular": starts or size.regular}
    if not len(study.regular):
        del counts["regular"]
    memories = searched(study, prompts, counts, kind=ORDINARY)
    if parallel.first() and all(len(m.triggers()) < 2 for m in memories):
        log.warning("no level: they compare triggers, and no image has two that bring it back")
    table = pd.concat([m.scores for m in memories], ignore_index=True)
    table.attrs["skipped"] = dict.fromkeys((i for i in prompts.ids if i not in set(table["id"])), LOST)
    levels = _levels(study, memories)
    by_start = {init: plain(trigger_rate(part)) for init, part in table.groupby("init", sort=False)}
    summary = {
        **about(study, prompts, sampling(study), command="locality"),
        "n": len(memories),
        "searches": counts,
        "skipped": left_out(prompts, table),
        "triggers": by_start,
        "levels": {level: plain(index(levels, level)) for level in LEVELS},
        "impossible": lacking,
    }
    if parallel.first():
        with atomic(study.store.directory / "locality.csv") as temporary:
            levels.drop(columns="memory").to_csv(temporary, index=False)
    write_run(study, table, summary)
    return summary


def impossible(study: Study) -> dict[str, str]:
    """Levels that cannot be measured of this model with these prompts, and why."""
    found = {}
    if len(study.regular) < 2:
        found["weights (NeMo)"] = "NeMo compares with regular prompts: give --regular, or rows of kind none"
    try:
        study.model.cross_attention()
    except DoriError as error:
        found |= dict.fromkeys(("one block at a time", "one block's directions"), str(error))
    return found


def _levels(study: Study, memories: Sequence[Memory]) -> pd.DataFrame:
    """`locality_levels.per_image`, an image a record."""
    near = {m.id: _near(memories, n) for n, m in enumerate(memories)}
    keys = {m.id: _key(study, m, near[m.id]) for m in memories}
    study.store.ask("locality", keys.values())
    todo = parallel.missing(memories, lambda m: study.store.find("locality", keys[m.id]) is not None)
    with parallel.apart():
        for m in todo:
            with study.store.timed("locality"):
                rows = _measured(m, near[m.id])[["level", "index"]].astype(object)
                values = {level: None if pd.isna(value) else value for level, value in rows.to_numpy()}
                study.store.save("locality", keys[m.id], Record(values))
    parallel.wait()
    found = {i: study.store.find("locality", key).values for i, key in keys.items()}
    rows = [(level, ORDINARY, i, value) for i, values in found.items() for level, value in values.items()]
    return pd.DataFrame(rows, columns=["level", "memory", "image", "index"]).astype({"index": float})


def _measured(memory: Memory, others: Sequence[Memory]) -> pd.DataFrame:
    """Every index of one image."""
    blocks = [] if memory.study.model.architecture.joint else [memory]  # joint attention has none to switch
    return per_image(
        [memory],
        met=meeting([memory], [memory, *others]),
        agreed=all_agreements([memory]),
        moved=transfers([memory], others=[memory, *others]),
        cut=block_table(blocks),
        less=direction_table(blocks),
    )


def _near(memories: Sequence[Memory], n: int) -> list[Memory]:
    """The next images in the order of the file, round and round."""
    count = min(NEAR, len(memories) - 1)
    return [memories[(n + k) % len(memories)] for k in range(1, count + 1)]


def _key(study: Study, memory: Memory, others: Sequence[Memory]) -> dict:
    """All that decides an image's indices: triggers, those of the others, sizes, settings, descriptor."""
    return {
        **decided_by(study, "locality"),
        "image": memory.id,
        "triggers": [digest(f.embeds) for f in memory.triggers()],
        "others": [digest(f.embeds) for m in others for f in m.triggers()],
        "sizes": dataclasses.asdict(sizes(study)),
        "wanda": [dataclasses.asdict(setting) for setting in (WANDA, PUBLISHED)],
        "regular": study.regular.prompts(),
        "descriptor": descriptor_key(study),
        "threshold": study.descriptor.threshold,
        "sampling": dataclasses.asdict(sampling(study)),
        "seed": study.seed,
    }
