"""How much chapter 2 computes at each preset, and the prunings it chooses among."""

from collections.abc import Mapping
from dataclasses import dataclass

from dori.experiments.selections import Setting
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda

PUBLISHED: tuple[Setting, ...] = (Nemo(), Wanda(0.01), Wanda(0.1))  # those of the paper's table
# The published settings; NeMo by z-score alone, in its own layers and in the up blocks too; Wanda on the half
# of the batch that sees the prompt. Those in the up blocks were added when NeMo in its own layers silenced
# nothing on the validation half.
CANDIDATES: dict[str, tuple[Setting, ...]] = {
    "NeMo": (Nemo(), Nemo(z=1.0), Nemo(z=0.5), Nemo(z=1.0, up=True), Nemo(z=0.5, up=True)),
    "Wanda": (
        Wanda(0.01),
        Wanda(0.1),
        Wanda(0.1, conditional_only=True),
        Wanda(0.15, conditional_only=True),
        Wanda(0.2, conditional_only=True),
    ),
}

# Without NeMo's search, which takes half a minute a prompt: what it switches off is part of what z > 1
# does, but for the most active neurons of each layer. On the test half it is reported all the same.
QUICK = CANDIDATES | {"NeMo": CANDIDATES["NeMo"][1:]}


@dataclass(frozen=True)
class Sizes:
    """What the chapter computes at a preset; None is all there are. Numbers by start follow `attack.INITS`.

    On two cores of a CPU a search of 50 steps takes about five seconds an image, and searches are nearly all
    of the chapter's time.
    """

    candidates: Mapping[str, tuple[Setting, ...]]  #: by method; one is chosen on the validation half
    published: tuple[Setting, ...] = PUBLISHED
    published_on: int | None = None  #: test prompts under a published setting that was not chosen
    seeds: int | None = None  #: images drawn per prompt or embedding
    searched: tuple[int | None, ...] = (None, None, None)  #: images under each chosen pruning
    compared: tuple[int | None, ...] = (None, None, None)  #: of `published_on`, searched for
    controls: tuple[int | None, ...] = (None, None, None)  #: held-out images, and from the prompt the twin's
    budget: int = 50  #: steps of a search
    curve: int | None = None  #: images of each target behind the curve over the budget
    budgets: tuple[int, ...] = (0, 10, 25, 50, 100, 200, 500)
    longer: tuple[int, ...] = (
        50,
        100,
        200,
    )  #: steps of a search from random numbers, if 50 were too few
    limited: int | None = None  #: images of each target behind each limit
    tokens: tuple[int, ...] = (1, 2, 4, 8)
    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)  #: in distances between two prompts
    discrete: int | None = None  #: images put to the search over tokens
    regular: int | None = None  #: regular prompts behind the utility of each pruned model


SIZES = {
    "smoke": Sizes(
        candidates={"NeMo": (Nemo(z=1.0),), "Wanda": (Wanda(0.1),)},
        published=(Wanda(0.01), Wanda(0.1)),
        seeds=2,
        searched=(1, 1, 1),
        compared=(1, 0, 0),
        controls=(1, 1, 1),
        budget=1,
        curve=1,
        budgets=(0, 1),
        longer=(1, 2),
        limited=1,
        tokens=(1, 4),
        radii=(0.5,),
        discrete=1,
        regular=2,
    ),
    "quick": Sizes(
        candidates=QUICK,
        published_on=8,
        seeds=2,
        searched=(16, 4, 3),
        compared=(3, 1, 1),
        controls=(12, 3, 3),
        curve=3,
        limited=3,
        radii=(0.5, 1.0),
        discrete=3,
        regular=32,
    ),
    "full": Sizes(CANDIDATES),
    "paper": Sizes(CANDIDATES),
}
