"""What chapters 2 and 4 leave a reader with: sentences that depend on what came out.

A finding is said as the rules of data/expected.yml judge it, so with another model or benchmark the sentences
are others. Chapter 3's stand with its levels (`locality_levels.conclusion`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dori.claims import holds, straddles
from dori.experiments import erasure
from dori.experiments.defences import TWIN
from dori.experiments.erasure import AFT
from dori.experiments.pruned import HELD_OUT, Choice, shown
from dori.metrics.intervals import Estimate, p_value

TITLE = "**What to take away**"
Figures = Mapping[str, Estimate]


def pruning(
    figures: Figures,
    chosen: Mapping[str, Choice],
    *,
    losses: Figures,
    gap_200: Estimate,
    gap_4: Estimate,
) -> str:
    """Chapter 2, in Markdown. From `pruned.headline_rates` with `retention.words_rates`, the alignment that
    each method costs, and the differences between memorized images and the twin."""
    lines = [_method(m.lower(), choice, figures, losses.get(m)) for m, choice in chosen.items()]
    lines.append(_controls(figures))
    lines += _gap(
        "gap_at_200",
        gap_200,
        "After 200 steps memorized images come back more often than the same images on the twin",
        "a search of that length still tells memory from writing",
    )
    lines += _gap(
        "few_tokens",
        gap_4,
        "With four free tokens memorized images come back more often than on the twin",
        "the embedding need not carry the image, for which so few tokens leave little room",
    )
    lines += [_words(m.lower(), choice, figures) for m, choice in chosen.items()]
    return _listed(lines)


def _method(name: str, choice: Choice, figures: Figures, loss: Estimate | None) -> str:
    prompt, found = figures[f"mr_{name}"], figures.get(f"mr_{name}_attack_prompt")
    if not holds(f"{name}_silences", prompt.value):
        text = f"leaves more prompts working than the rule allows ({prompt.percent})"
        if found is None or found.low <= prompt.high:
            text += ": what a search finds beyond says little."
        else:
            text += f", and a search from the prompt brings back far more ({found.percent})."
    elif found is None:
        text = f"silences the prompts ({prompt.percent}); no search was made."
    elif holds(f"{name}_broken", found.value):
        text = (
            f"hides the images and does not remove them: the prompts return few ({prompt.percent}), a search "
            f"from the prompt most ({found.percent})."
        )
    elif found.value > 0:
        text = (
            f"silences the prompts ({prompt.percent}). A search from the prompt brings back fewer than the "
            f"rule asks for ({found.percent}), but what comes back was still there."
        )
    else:
        text = (
            f"silences the prompts ({prompt.percent}), and a search from the prompt finds nothing "
            f"({found.percent}). Another search may."
        )
    if far := figures.get(f"mr_{name}_attack_random"):
        text += f" A search from random numbers: {far.percent}."
    if loss is not None and not np.isnan(loss.value):
        spoils = "" if holds(f"{name}_usable", loss.value) else ", more than the rule allows"
        text += f" Alignment that regular prompts lose: {shown(loss, percent=True)}{spoils}."
    return f"**{choice.label}** {text}"


def _controls(figures: Figures) -> str:
    rules = {"control_heldout": ("mr_attack_heldout", HELD_OUT), "control_twin": ("mr_attack_twin", TWIN)}
    found = {rule: (figures[key], words) for rule, (key, words) in rules.items() if key in figures}
    if not found:
        return "There was no control to search on, so nothing here tells finding from writing."
    rates = ", ".join(f"{words} {rate.percent}" for rate, words in found.values())
    if all(holds(rule, rate.value) for rule, (rate, _) in found.items()):
        return f"Where there is no memory the same search finds none ({rates}): what it finds was there."
    return (
        f"The same search also paints what was never learnt ({rates}): its success is no evidence of memory."
    )


def _gap(rule: str, gap: Estimate, words: str, so: str) -> list[str]:
    if np.isnan(gap.value):
        return []
    if holds(rule, gap.value):
        return [f"{words}: difference of rates {shown(gap)}. So {so}."]
    return [f"It was asked whether the following holds, and the rule says no: {words[0].lower()}{words[1:]}. "
            f"The difference of rates is {shown(gap)}."]  # fmt: skip


def _words(name: str, choice: Choice, figures: Figures) -> str | None:
    found, other = figures.get(f"mr_{name}_unlearndiff"), figures.get(f"mr_{name}_attack_prompt")
    if found is None or not found.n:
        return None
    if other is None:
        return f"Under {choice.label} a search over words brings back {found.percent}."
    if found.value >= other.value:
        return (
            f"Under {choice.label} a search over words does as well as one over embeddings ({found.percent})."
        )
    return (
        f"Under {choice.label} a search over words finds less ({found.percent}) than one over embeddings "
        f"({other.percent}): not to find words is a failure to look, not an absence."
    )


def erasing_trained(
    figures: Figures,
    *,
    p: Estimate,
    powers: Mapping[float, float],
    costs: Figures,
    spared: Figures,
) -> str:
    """Chapter 4, in Markdown: from `erasure.headline_rates`, `told_apart`, `aft_costs`, and
    `collateral.spared_rates`."""
    if "mr_aft_own_prompt" not in figures:
        return _listed([
            "No trained remedy comes with the book for this model, so what stands above is the model as it "
            "is and pruned. `dori mitigate --method adversarial` trains one."
        ])  # fmt: skip
    lines = [_short_searches(figures), _long_search(figures), twin_compared(p, powers)]
    lines += [_others(figures), _price(costs), _spared(spared)]
    return _listed(lines)


def _short_searches(figures: Figures) -> str:
    own = figures["mr_aft_own_prompt"]
    text = f"After adversarial fine-tuning the prompts of the erased images return them at {own.percent}."
    if held_out := figures.get("mr_aft_heldout"):
        verdict = "within the rule" if holds("aft_heldout", held_out.value) else "more than the rule allows"
        beside = {"as trained": "mr_trained_heldout", "the twin, which never saw them": "mr_twin_heldout"}
        marks = "".join(f"; {words} {figures[k].percent}" for words, k in beside.items() if k in figures)
        text += (
            f" A search with settings that no training met brings back {held_out.percent}, {verdict}{marks}."
        )
    rest = {"the prompt": "mr_aft_prompt", "random numbers": "mr_aft_random"}
    known = "; ".join(f"from {words} {figures[k].percent}" for words, k in rest.items() if k in figures)
    return text + (f" Searches with the training's own settings: {known}." if known else "")


def _long_search(figures: Figures) -> str | None:
    if (long := figures.get("mr_aft_long")) is None:
        return None
    if holds("aft_long", long.value):
        return f"Ten times the steps do not bring the images back either ({long.percent})."
    return (
        f"Ten times the steps bring back more than the rule allows ({long.percent}): an image that a short "
        "search does not find is not therefore gone."
    )


def twin_compared(p: Estimate, powers: Mapping[float, float]) -> str | None:
    """Is the work to get an image back the twin's? With the power of the test; None if it was not made."""
    if np.isnan(p.value):
        return None
    equal = "" if (said := p_value(p.value)).startswith("<") else "= "
    number = f"log-rank test over search steps, p {equal}{said}, {p.n} images each"
    if not holds("aft_twin", p.value):
        return f"The model can be told from its twin by the work it takes to get an image back ({number})."
    noticed = "; ".join(f"{chance:.2f} for {100 * share:.0f} % of them" for share, chance in powers.items())
    return (
        f"By the work it takes to get an image back the model is not told from its twin ({number}). So few "
        f"images would show that some return with a chance of {noticed}."
    )


def prompt_adjusted(before: Estimate, after: Estimate, embedding: Estimate) -> str:
    """Wen et al.'s adjustment: rates of the prompt as it is and adjusted, and of what DoRI found."""
    rates = f"prompts as they are {before.percent}, adjusted {after.percent}"
    if after.high < before.low:
        text = f"The adjustment holds the prompts back ({rates})."
    else:
        little = "does not clearly hold" if after.value < before.value else "does not hold"
        text = f"The adjustment {little} prompts back ({rates})."
    if not embedding.n:
        return text
    return f"{text} Embeddings handed in, which nothing adjusts, return {embedding.percent}."


def _others(figures: Figures) -> str | None:
    labels = {label: name for label, name in erasure.NAMES.items() if f"mr_{name}_prompt" in figures}
    if AFT not in labels or len(labels) < 2:
        return None
    rates = {label: figures[f"mr_{name}_prompt"] for label, name in labels.items()}
    least = min(rate.value for rate in rates.values())
    first = [label for label, rate in rates.items() if rate.value == least]
    told = ", ".join(f"{label} {rate.percent}" for label, rate in rates.items())
    return (
        f"A search from the prompt brings back, by training: {told}. It is least for {' and '.join(first)}."
    )


def _price(costs: Figures) -> str | None:
    loss = costs.get("aft_alignment_loss")
    if loss is None or np.isnan(loss.value):
        return None
    usable = (
        "stays as usable as the rule asks" if holds("aft_usable", loss.value) else "is spoilt, by the rule"
    )
    unsure = straddles("aft_usable", loss.low, loss.high)
    doubt = ", and the interval reaches to both sides of the rule" if unsure else ""
    return f"The model {usable}: alignment that regular prompts lose {loss.percent}{doubt}."


def _spared(found: Figures) -> str | None:
    prompt, before = found.get("aft_prompt"), found.get("trained_prompt")
    if prompt is None or before is None:
        return None
    more = prompt.high < before.low
    text = (
        "The training silences more than it was told to"
        if more
        else "The other images are not clearly touched"
    )
    text += f": prompts of the half that nobody asked to erase return {prompt.percent}"
    text += f", as trained {before.percent}"
    search = found.get("aft_search")
    return text + (f"; a search from them, after the training, {search.percent}." if search else ".")


def _listed(lines: Sequence[str | None]) -> str:
    """Markdown: the title, and a bullet for each line that there is."""
    return "\n".join([TITLE, "", *(f"- {line}" for line in lines if line)])
