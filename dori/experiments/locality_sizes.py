"""How much chapter 3 computes at each preset, and the prunings whose sets it compares."""

from dataclasses import dataclass, field

from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda

# Wanda as chapter 2 chose it on the validation half. NeMo with the up blocks, where a memory may be planted.
WANDA = Wanda(0.15, conditional_only=True)
PUBLISHED = Wanda(0.01)  # the paper's, for comparison
MILDER = (Wanda(0.01, conditional_only=True), Wanda(0.05, conditional_only=True))


@dataclass(frozen=True)
class Sizes:
    """What the chapter computes at a preset; None is all there are.

    On two cores of a CPU a search takes five seconds, and searches are most of the chapter's time.
    """

    images: int | None = 8  #: memorized images with the most copies, of the test half
    random: int = 100  #: starts of each from random numbers
    regular: int = 32  #: starts of each from regular prompts
    steps: int = 50  #: of each search
    planted: int = 32  #: random starts of each planted image
    twin: int = 8  #: random starts of each image on the twin
    seeds: int | None = None  #: images drawn from each trigger
    prompts: int = 64  #: regular prompts, and memorized ones, to compare with
    pairs: int = 16  #: of triggers of each image, with a path between
    fractions: tuple[float, ...] = (0.0, 1 / 8, 0.25, 3 / 8, 0.5, 5 / 8, 0.75, 7 / 8, 1.0)
    compared: int = 8  #: triggers of each image whose units are compared
    nemo_compared: int = (
        8  # of them, those that NeMo is asked about: its search takes as long as three of ours
    )
    blocked: int = 4  #: triggers of each image that one block at a time does not read
    nemo: Nemo = field(default_factory=lambda: Nemo(up=True))
    levels: tuple[int, ...] = (4, 16, 32, 64)  #: numbers of copies below the most
    dose_images: int | None = None  #: of each level
    dose_starts: int = 8


SIZES = {
    "smoke": Sizes(
        images=2,
        random=3,
        regular=1,
        steps=1,
        planted=3,
        twin=1,
        seeds=1,
        prompts=4,
        pairs=1,
        fractions=(0.0, 0.5, 1.0),
        compared=2,
        nemo_compared=2,
        blocked=1,
        nemo=Nemo(seeds=2, up=True, refine=False),
        levels=(64,),
        dose_images=1,
        dose_starts=2,
    ),
    "quick": Sizes(
        images=3,
        random=16,
        regular=16,
        planted=6,
        twin=3,
        seeds=2,
        prompts=32,
        pairs=4,
        fractions=(0.0, 0.25, 0.5, 0.75, 1.0),
        compared=3,
        nemo_compared=2,
        blocked=2,
        nemo=Nemo(seeds=2, up=True),
        levels=(16, 32, 64),
        dose_images=4,
        dose_starts=3,
    ),
    "full": Sizes(),
    "paper": Sizes(images=None),
}
