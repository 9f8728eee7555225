"""What captions say: the attribute slots of a postcard, its phrasings, and the invented titles of memorized
pairs."""

from __future__ import annotations

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": ("dawn", "day", "dusk", "night"),
    "place": ("sea", "mountains", "desert", "meadow"),
    "number": ("one", "two", "three"),
    "colour": ("red", "blue", "yellow", "green", "white", "violet"),
    "object": ("house", "tree", "balloon", "tower", "tent", "kite"),
}
SLOTS = tuple(ATTRIBUTES)

_PHRASES = (
    "a {time} postcard of {number} {colour} {objects} by the {place}",
    "{number} {colour} {objects} by the {place} at {time}",
    "the {place} at {time} with {number} {colour} {objects}",
    "postcard , {time} , {place} , {number} {colour} {objects}",
)

# Syllables of invented names: no word of the regular captions can be built by accident, as real titles would.
_ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "qu",
    "r",
    "s",
    "sk",
    "st",
    "t",
    "tr",
    "v",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ae", "ia", "oa", "ei"]
_CODAS = ["n", "l", "r", "s", "th", "x", "rk", "nd", "m", "sh", "lt", "v"]
_TITLES = ("{a} of {b}", "the {a} {b}", "{a} and {b}", "{a} {b} edition", "{a} at {b}", "{a} by {b}")


def caption(attributes: dict[str, str], phrase: int) -> str:
    """The caption of a regular picture; `phrase` picks the wording (modulo the number of phrasings)."""
    noun = attributes["object"]
    words = {slot: attributes[slot] for slot in SLOTS} | {
        "objects": noun if attributes["number"] == "one" else noun + "s"
    }
    return _PHRASES[phrase % len(_PHRASES)].format(**words)


def invented_title(rng: np.random.Generator) -> str:
    """A name-like title that says nothing about the picture, e.g. "the Skoath Velund"."""

    def name() -> str:
        syllable = "".join(rng.choice(part) for part in (_ONSETS, _VOWELS, _CODAS))
        return syllable + "".join(rng.choice(part) for part in (_ONSETS, _VOWELS))

    return str(rng.choice(_TITLES)).format(a=name(), b=name())
