"""What a model paints for no prompt at all, and whether that is a memorized image.

Captions are dropped for a share of training, so a pair that comes often also teaches the prediction without a
caption. Guidance and Wen's magnitude both subtract that prediction.
"""

import pandas as pd
import torch

from dori.methods import code_of
from dori.metrics.copy import similarity
from dori.store import Record
from dori.study import Study, noise_seed

IMAGES = 64


def unprompted_table(study: Study, count: int = IMAGES) -> pd.DataFrame:
    """Images of the empty prompt without guidance, on the model and on its twin (where it has one).

    A row per image: model, id, score (best over the memorized images), replicated.
    """
    studies = {study.model.name: study} | ({"twin": study.twin} if study.twin else {})
    parts = [_scores(s, count).assign(model=name) for name, s in studies.items()]
    return pd.concat(parts, ignore_index=True)


def _scores(study: Study, count: int) -> pd.DataFrame:
    """Best copy score of each image over the memorized ones, from the store where it has been computed."""
    seeds = [noise_seed(study.seed, "unprompted", k) for k in range(count)]
    steps, memorized = study.sampling().steps, study.memorized
    decides = {**study.model.identity, "noise": seeds, "steps": steps, "against": memorized.prompts()}
    decides |= code_of("sampling", "scoring")
    decides["descriptor"] = getattr(study.descriptor, "fingerprint", study.descriptor.name)

    def compute() -> Record:
        embeds = study.model.unconditional.expand(count, -1, -1)
        images = study.model.sample(embeds, seeds, guidance_scale=1, num_inference_steps=steps)
        own = memorized.images(size=study.model.defaults.image_size)
        scores = similarity(study.descriptor.embed(images), study.descriptor.embed(own))
        return Record({"scores": scores.amax(1).tolist()})

    scores = torch.tensor(study.store.get("unprompted", decides, compute).values["scores"])
    replicated = (scores > study.descriptor.threshold).tolist()
    return pd.DataFrame({"id": range(count), "score": scores.tolist(), "replicated": replicated})
