"""The house style: colours that keep their meaning, and what the figures of every kind share."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sized

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

# Okabe and Ito's palette: told apart with any colour vision, and in grey by their lightness.
COLOURS = {
    "memorized": "#D55E00",
    "verbatim": "#D55E00",
    "template": "#56B4E9",  # amber is too near to the red of "verbatim"
    "regular": "#0072B2",
    "generated": "#0072B2",
    "held-out": "#7F7F7F",
    "twin": "#009E73",
    "the twin": "#009E73",
    "testbed": "#D55E00",
    "own image": "#D55E00",
    "nearest of the group": "#56B4E9",
    "as trained": "#D55E00",
    "pruned": "#0072B2",
    "ordinary": "#D55E00",
    "planted": "#CC79A7",
    "one image's triggers": "#D55E00",
    "different images' triggers": "#56B4E9",
    "different memorized prompts": "#000000",
    "regular prompts": "#0072B2",
}
# Where lines lie on each other at 0, dashes and markers tell them apart.
MARKS = {
    "memorized": ("-", "o"),
    "twin": ("--", "s"),
    "held-out": (":", "^"),
    "ordinary": ("-", "o"),
    "planted": ("--", "D"),
    "verbatim": ("-", "o"),
    "template": ("--", "^"),
    "regular": (":", "s"),
}
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "<", "*")
OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#F0E442")
GROUND, INK = "#FBFAF7", "#333333"
SPARE = ("#56B4E9", "#CC79A7", "#009E73", "#E69F00", "#0072B2", "#D55E00", "#000000", "#7F7F7F", "#F0E442")
STYLE = {
    "figure.dpi": 120,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E0D8",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
WIDTH = 7.2  # inches, the width of a page's text


def mark(name: str) -> dict[str, str]:
    """Line style and marker of a target, for a line's keyword arguments."""
    line, marker = MARKS.get(name, ("-", "o"))
    return {"linestyle": line, "marker": marker}


def nth_mark(k: int) -> dict[str, str]:
    """The same for the k-th line of a figure whose lines have no marks of their own."""
    return {"linestyle": LINES[k % len(LINES)], "marker": MARKERS[k % len(MARKERS)]}


def printed(prompt: str) -> str:
    """A prompt as a heading: without the spaces before commas and stops that some captions have."""
    return re.sub(r"\s+(?=[,.;:!?])", "", prompt)


def house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the house style and close the figure, so that a notebook shows the returned value once.

    Without data (an empty table) the figure says so.
    """

    @functools.wraps(draw)
    def styled(data: Sized, **kwargs: object) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(data, **kwargs) if len(data) else nothing()
            plt.close(figure)
        return figure

    return styled


def colour(name: str) -> str:
    """The colour of a sort, model or set; other names get one of the remaining colours, always the same."""
    return COLOURS.get(name) or OTHERS[sum(map(ord, name)) % len(OTHERS)]


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name of one figure: known ones keep theirs, strangers share out what is left."""
    names = list(dict.fromkeys(names))
    known = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [tone for tone in SPARE if tone not in known.values()] or list(SPARE)
    strangers = zip([name for name in names if name not in known], itertools.cycle(free), strict=False)
    return known | dict(strangers)


def error_bars(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Ends of intervals as lengths (2, n) below and above; 0 where an end is not known.

    Clipped at 0, as a value at the edge of its range meets its bound only up to rounding.
    """
    value, low, high = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (value, low, high))
    return np.clip(np.nan_to_num([value - low, high - value]), 0, None)


def nothing() -> Figure:
    """What stands in a figure's place where a model lacks the data for it (a foreign one has no twin)."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8))
    axis.set_axis_off()
    axis.text(0.5, 0.5, "not available for this model and benchmark", ha="center", va="center")
    return figure


def place(figure: Figure, **margins: float) -> None:
    """Fixed margins for grids of images: a long prompt above a row must not squeeze the images."""
    figure.subplots_adjust(**{"left": 0.01, "right": 0.99, "top": 0.99, "bottom": 0.01, **margins})


def legend(axis: Axes, columns: int = 3, **more: object) -> None:
    """Above the axes, where it covers no data."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.3, title=None, **more)
