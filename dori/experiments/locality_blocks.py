"""Chapter 3, a causal diagnostic: take the trigger away from one block at a time.

What embeddings or activations have in common says what goes together. What the image needs is seen when it is
taken away: one block of cross-attention reads the empty prompt while all others read the trigger.
"""

from collections.abc import Sequence

import pandas as pd

from dori.drawing import decided_by, digest, noise_seed
from dori.experiments.memories import Memory, sampling, sizes
from dori.experiments.triggers import Found
from dori.hooks import reading
from dori.metrics.copy import similarity
from dori.store import Record

WITHOUT, ALONE = "this block reads nothing", "only this block reads the trigger"


def blocks(memory: Memory) -> list[str]:
    """The cross-attention layers by name, in the order of a forward pass."""
    return [name.removesuffix(".to_v") for name in memory.study.model.value_layers(up=True)]


def table(memories: Sequence[Memory]) -> pd.DataFrame:
    """Copy scores of triggers of which one block reads the empty prompt, or all blocks but one.

    A row per memory, trigger, block and way: memory, image, trigger, layer, how, score (best seed), replicated.
    """
    rows = []
    for memory in memories:
        for found in memory.triggers(n=sizes(memory.study).blocked):
            for layer in blocks(memory):
                for how in (WITHOUT, ALONE):
                    score = max(_scores(memory, found, layer, how))
                    hit = score > memory.study.descriptor.threshold
                    rows.append((memory.kind, memory.id, found.name, layer, how, score, hit))
    columns = ["memory", "image", "trigger", "layer", "how", "score", "replicated"]
    return pd.DataFrame(rows, columns=columns)


def needed(found: pd.DataFrame) -> pd.DataFrame:
    """Share of triggers that stop when a block reads nothing, and that still work when it alone reads them: a
    row per memory, image and layer."""
    keys = ["memory", "image", "layer"]
    rates = found.pivot_table("replicated", keys, "how", "mean", sort=False).astype(float)
    return pd.DataFrame({"stopped without": 1 - rates[WITHOUT], "enough alone": rates[ALONE]}).reset_index()


def indices(found: pd.DataFrame) -> pd.DataFrame:
    """The index of this diagnostic: the share of triggers stopped without the most needed block, less the mean
    of that share over the other blocks.

    1: there is one block that no trigger can do without, and all can do without any other; 0: no block is
    needed, or all are needed alike. A row per memory and image: memory, image, layer, index.
    """
    rows = []
    for key, part in needed(found).groupby(["memory", "image"], sort=False):
        stopped = part.set_index("layer")["stopped without"]
        best = stopped.idxmax()
        rows.append((*key, best, float(stopped[best] - stopped.drop(best).mean())))
    return pd.DataFrame(rows, columns=["memory", "image", "layer", "index"])


def _scores(memory: Memory, found: Found, layer: str, how: str) -> list[float]:
    """Copy scores of the images drawn, one per seed; kept in the run."""
    study, drawn = memory.study, sampling(memory.study)
    original = memory.prompts.images(size=study.model.defaults.image_size)
    decides = {**decided_by(study), "embedding": digest(found.embeds), "layer": layer, "how": how,
               "guidance_scale": drawn.guidance_scale, "steps": drawn.steps, "original": digest(original),
               "descriptor": getattr(study.descriptor, "fingerprint", study.descriptor.name),
               "noise": [noise_seed(study.seed, memory.id, k) for k in range(drawn.seeds)]}  # fmt: skip

    def compute() -> Record:
        silent = [layer] if how == WITHOUT else [name for name in blocks(memory) if name != layer]
        embeds = found.embeds.to(study.model.unconditional).repeat(drawn.seeds, 1, 1)
        with reading(study.model.unet, silent, study.model.unconditional):
            images = study.model.sample(
                embeds,
                decides["noise"],
                guidance_scale=drawn.guidance_scale,
                num_inference_steps=drawn.steps,
            )
        vectors = study.descriptor.embed(images), study.descriptor.embed(original)
        return Record({"scores": similarity(*vectors)[:, 0].tolist()})

    return study.store.get("block", decides, compute).values["scores"]


def spread_of_need(found: pd.DataFrame) -> pd.DataFrame:
    """By kind of memory: how many blocks a trigger cannot do without, and how many are enough alone (means)."""
    per = found.assign(stopped=~found["replicated"]).groupby(
        ["memory", "image", "trigger", "how"], sort=False
    )
    counts = per.agg(stopped=("stopped", "sum"), works=("replicated", "sum")).reset_index()
    without, alone = (counts[counts["how"] == how].groupby("memory", sort=False) for how in (WITHOUT, ALONE))
    shown = {"triggers": without.size(), "blocks needed": without["stopped"].mean()}
    return pd.DataFrame({**shown, "blocks enough alone": alone["works"].mean()})
