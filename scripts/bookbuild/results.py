"""`_build/results.json`, every headline figure of the book in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bookbuild.layout import BuildError, Layout
from dori.claims import show_figure

FIELDS = ("value", "low", "high", "n", "preset", "model", "commit", "cell")  # cell: its number in the chapter
Figures = dict[str, dict[str, dict[str, Any]]]  # chapter -> name -> figure


def read_headlines(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> figure, as a chapter noted them in its run directory (`dori.study.Study.headline`)."""
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BuildError(f"{path}: not valid JSON ({error})") from error
    for name, figure in entries.items():
        if missing := set(FIELDS) - set(figure):
            raise BuildError(f"{path}: '{name}' has no {' and no '.join(sorted(missing))}")
    return entries


def gather(records: list[dict[str, Any]]) -> Figures:
    """Headline figures of all executed chapters; the background chapter explains and has none."""
    return {record["chapter"]: record["figures"] for record in records if record["figures"]}


def write(layout: Layout, figures: Figures) -> None:
    """Write `_build/results.json`."""
    text = json.dumps(figures, indent=2, sort_keys=True, ensure_ascii=False)
    layout.results.write_text(text + "\n", encoding="utf-8")


def show(figure: Mapping[str, Any], rule: float | None = None, name: str = "") -> str:
    """`0.97 [0.91, 1.00], n = 32`: a figure with what is known about its precision, not to be mistaken for
    the number of its rule.
    """
    text = " ".join(filter(None, show_figure(figure, rule, name)))
    if figure.get("n") is not None:
        text += f", n = {figure['n']}"
    return text
