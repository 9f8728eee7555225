"""The version of each method's code: part of the key of whatever the method makes.

Who changes what a method computes raises its number. Its records of the old code then do not count, nor do
those of whatever calls it; all others are found as before.
"""

from collections.abc import Iterable

VERSIONS = {
    "sampling": 1,  # images from an embedding: noise, schedule, guidance, decoding
    "scoring": 1,  # images against training images
    "utility": 1,  # what regular prompts are measured by
    "dori": 1,
    "unlearndiff": 1,
    "nemo": 1,
    "wanda": 1,
    "surrogates": 1,
    "adversarial": 1,
    "adversarial-lora": 1,
    "esd": 1,
    "concept-ablation": 1,
    "siss": 1,
    "adjustment": 1,
    "detection": 1,
    "relearning": 1,
    "blocks": 1,
    "locality": 2,  # a ceiling for each trigger, one level more
}
# Methods that a method calls, where the key of its result does not have the content of theirs.
CALLS = {
    "utility": ("sampling",),
    "wanda": ("sampling",),
    "surrogates": ("sampling", "scoring"),
    "adversarial": ("dori", "surrogates", "wanda"),
    "adversarial-lora": ("adversarial",),
    "esd": ("sampling",),
    "concept-ablation": ("sampling", "scoring"),
    "siss": ("surrogates", "wanda"),
    "adjustment": ("sampling", "scoring"),
    "detection": ("sampling",),
    "relearning": ("dori", "sampling", "scoring"),
    "blocks": ("sampling", "scoring"),
    "locality": ("blocks", "nemo", "wanda"),
}


def code_of(*methods: str) -> dict[str, dict[str, int]]:
    """What a key says of the code behind a result of these methods; KeyError for one without a version.

    Nothing where all are at version 1: so it was when the first records were made.
    """
    raised = {name: VERSIONS[name] for name in sorted(_behind(methods)) if VERSIONS[name] > 1}
    return {"code": raised} if raised else {}


def _behind(methods: Iterable[str]) -> set[str]:
    """These methods and all that they call."""
    return {name for method in methods for name in (method, *_behind(CALLS.get(method, ())))}
