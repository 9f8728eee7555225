"""Chapter 3, a causal diagnostic: take the trigger away from one block at a time.

What embeddings or activations have in common says what goes together. What an image needs is seen when it is
taken away: one block of cross-attention reads the empty prompt while all others read the trigger.
"""

from collections.abc import Sequence

import pandas as pd

from dori.drawing import decided_by, digest, noise_seed
from dori.experiments.memories import Memory, ends, sampling, sizes
from dori.experiments.triggers import Found
from dori.hooks import layer_label, reading
from dori.metrics.copy import similarity
from dori.store import Record


def blocks(memory: Memory) -> list[str]:
    """The cross-attention layers by name, in the order of a forward pass."""
    return memory.study.model.cross_attention()


def table(memories: Sequence[Memory]) -> pd.DataFrame:
    """Copy scores of triggers that one block does not read: it reads the empty prompt.

    A row per memory, trigger and block: memory, image, trigger, layer, score (best seed), replicated.
    """
    rows = []
    for memory in memories:
        found = memory.triggers(n=sizes(memory.study).blocked)
        for layer in blocks(memory) if found else ():
            for trigger, scores in zip(found, _scores(memory, found, layer), strict=True):
                hit = max(scores) > memory.study.descriptor.threshold
                rows.append((memory.kind, memory.id, trigger.name, layer, max(scores), hit))
    return pd.DataFrame(rows, columns=["memory", "image", "trigger", "layer", "score", "replicated"])


def stopped(found: pd.DataFrame) -> pd.DataFrame:
    """Share of triggers that stop when a block does not read them: memory, image, layer, stopped."""
    keys = ["memory", "image", "layer"]
    rates = 1 - found.groupby(keys, sort=False)["replicated"].mean().astype(float)
    return rates.rename("stopped").reset_index()


def indices(found: pd.DataFrame) -> pd.DataFrame:
    """The index of this diagnostic: how much more needed the most needed block is than the others.

    The share of triggers stopped without that block, less the mean of the share over the others. 1: there is
    one block that no trigger can do without, and all can do without any other. 0: no block is needed, or all
    alike. A row per memory and image: memory, image, layer, index.
    """
    rows = []
    for key, part in stopped(found).groupby(["memory", "image"], sort=False):
        shares = part.set_index("layer")["stopped"]
        best = shares.idxmax()
        rows.append((*key, best, float(shares[best] - shares.drop(best).mean())))
    return pd.DataFrame(rows, columns=["memory", "image", "layer", "index"])


def needed(found: pd.DataFrame) -> pd.DataFrame:
    """By image: triggers, the most needed block, and how many of the blocks a trigger cannot do without."""
    count = (
        (~found["replicated"]).groupby([found["memory"], found["image"], found["trigger"]], sort=False).sum()
    )
    by_image = count.groupby(level=[0, 1], sort=False)
    most = indices(found).set_index(["memory", "image"])
    shown = {"triggers": by_image.size(), "blocks needed": by_image.mean()}
    names = _most_needed(found).where(most["index"] > 0, "none")
    return pd.DataFrame({**shown, "most needed": names, "index": most["index"]})


def _most_needed(found: pd.DataFrame) -> pd.Series:
    """By memory and image: the block that stops most triggers, or all that stop as many."""
    shares = stopped(found)
    most = shares.groupby(["memory", "image"])["stopped"].transform("max")
    best = shares[shares["stopped"] == most].assign(block=lambda t: t["layer"].map(layer_label))
    return best.groupby(["memory", "image"], sort=False)["block"].agg(" and ".join)


def _scores(memory: Memory, found: Sequence[Found], layer: str) -> list[list[float]]:
    """Copy scores of each trigger's images, one per seed; drawn together, kept in the run."""
    study, drawn = memory.study, sampling(memory.study)
    original = memory.prompts.images(size=study.model.defaults.image_size)
    noise = [noise_seed(study.seed, memory.id, k) for k in range(drawn.seeds)]
    decides = {**decided_by(study, "blocks"), "embeddings": [digest(f.embeds) for f in found], "layer": layer,
               "guidance_scale": drawn.guidance_scale, "steps": drawn.steps, "noise": noise,
               "original": digest(original), "descriptor": study.descriptor.name,
               "weights": getattr(study.descriptor, "fingerprint", "")}  # fmt: skip

    def compute() -> Record:
        embeds = ends(found).to(study.model.unconditional).repeat_interleave(drawn.seeds, 0)
        with reading(study.model.unet, [layer], study.model.tokens(study.model.unconditional)):
            images = study.model.sample(
                embeds,
                noise * len(found),
                guidance_scale=drawn.guidance_scale,
                num_inference_steps=drawn.steps,
            )
        scores = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[:, 0]
        return Record({"scores": scores.view(len(found), -1).tolist()})

    return study.store.get("block", decides, compute).values["scores"]
