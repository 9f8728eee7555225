"""Chapter 3's cards: one trigger at a glance, for the figure in which a reader picks image and trigger."""

from collections.abc import Sequence

import pandas as pd

from dori.drawing import Trigger, drawn
from dori.experiments.locality_sizes import WANDA
from dori.experiments.locality_weights import units_of
from dori.experiments.memories import Memory, sampling
from dori.experiments.triggers import Found
from dori.mitigation.nemo import activations

SHOWN = 2  # triggers of each start on cards
WORDS = {"random": "random numbers", "regular": "a regular prompt"}  # where a search began
Card = dict


def cards(memories: Sequence[Memory]) -> dict[str, dict[str, Card]]:
    """By image and trigger: what `plots.trigger_card` shows, and `alt`, the same in a sentence.

    Of each image the first triggers from random numbers and from regular prompts, as many as all images have.
    """
    some = [m for m in memories if m.triggers("random") or m.triggers("regular")]
    number = {i: min((len(m.triggers(i, SHOWN)) for m in some), default=0) for i in WORDS}
    return {
        m.id: {
            f"{WORDS[i]}, {k + 1}": _card(m, m.triggers(i)[k]) for i, n in number.items() for k in range(n)
        }
        for m in some
        if sum(number.values())
    }


def limits(found: dict[str, dict[str, Card]]) -> tuple[float, float]:
    """Upper ends of the axes of activations and units, shared by all cards."""
    every = [card for some in found.values() for card in some.values()]
    pairs = (("activations", "value"), ("units", "units"))
    return tuple(1.05 * max((c[key][column].max() for c in every), default=1) for key, column in pairs)


def _card(memory: Memory, found: Found) -> Card:
    study = memory.study
    [(_, generated)] = drawn(study, [Trigger(memory.id, found.embeds)], sampling(study))
    scored = memory.scores[memory.scores["trigger"] == found.name]
    inside = activations(study.model, found.embeds[None].to(study.model.device), up=True)
    moved = float(scored["moved"].iloc[0])
    return {
        "image": memory.prompts.images(size=study.model.defaults.image_size)[0],
        "generated": generated,
        "scores": scored["score"].tolist(),
        "note": f"moved {moved:.1f} (L2), now {float(scored['end_distance'].iloc[0]):.1f} from the prompt",
        "activations": pd.DataFrame(
            [(n, float(a.norm())) for n, a in inside.items()], columns=["layer", "value"]
        ),
        "units": units_of(study, [found], WANDA)[found.name].table(),
        "alt": f"Training image {memory.id}, what a trigger found from {WORDS[found.init]} paints, with copy "
        f"scores {', '.join(f'{x:.2f}' for x in scored['score'])}; bars for activations and units by layer.",
    }
