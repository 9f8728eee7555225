"""The landing page: a notebook made of book/index.md and the interactive figure of an executed chapter.

Nothing is executed: output and widget state are those that the chapter left.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import nbformat
import yaml

from bookbuild.layout import BuildError, Layout
from bookbuild.pictures import chapter_figure

SOURCE = "02_pruning_fragility"
TAG = "landing"  # of the cell whose widget is shown
STILL = "fig-stages-wanda"  # a figure of the same chapter, for readers without scripts
MARK = "<!-- interactive figure -->"  # where in index.md it stands
VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
LINKS = {"LinkModel", "DirectionalLinkModel"}  # nobody refers to them; they refer to what they link


def make_landing(layout: Layout) -> None:
    """Turn the staged index.md into index.ipynb with the figure at its mark.

    Before the chapter has run, the page stays Markdown and the mark is taken out. Raises BuildError where the
    chapter has no such cell.
    """
    page, executed = layout.src / "index.md", layout.executed / f"{SOURCE}.ipynb"
    text = page.read_text(encoding="utf-8")
    if MARK not in text:
        raise BuildError(f"book/index.md has no line '{MARK}'")
    if not executed.exists():
        page.write_text(text.replace(MARK, ""), encoding="utf-8")
        return
    chapter = nbformat.read(executed, nbformat.NO_CONVERT)
    source, view, state = find_widget(chapter, executed.stem)
    above, below = text.split(MARK)
    front, above = split_front_matter(above)
    figure = nbformat.v4.new_code_cell(
        source,  # of the chapter; a cell without would be left out
        metadata={"tags": ["remove-input"]},
        outputs=[display(view), display(without_scripts(executed))],
    )
    cells = [nbformat.v4.new_markdown_cell(above), figure, nbformat.v4.new_markdown_cell(below)]
    for number, cell in enumerate(cells):
        cell["id"] = f"landing-{number}"
    metadata = {**front, "kernelspec": chapter.metadata["kernelspec"], "widgets": {STATE: state}}
    page.unlink()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), page.with_suffix(".ipynb"))


def find_widget(chapter: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Source, output data and widget state of the cell tagged `landing`, without other figures' models."""
    for cell in chapter.cells:
        if TAG in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if VIEW in output.get("data", {}):
                    whole = chapter.metadata["widgets"][STATE]
                    kept = reachable(whole["state"], output.data[VIEW]["model_id"])
                    return cell.source, dict(output.data), {**whole, "state": kept}
    raise BuildError(f"{name} has no cell tagged '{TAG}' that shows a widget, which the landing page needs")


def reachable(models: dict[str, Any], root: str) -> dict[str, Any]:
    """The models that `root` is made of, and the links between them."""
    kept: set[str] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        kept.add(name)
        text = json.dumps(models[name])
        waiting += [other for other in models if other not in kept and f"IPY_MODEL_{other}" in text]
    for name, model in models.items():
        linked = json.dumps(model["state"]) if model["model_name"] in LINKS else ""
        if linked and any(f"IPY_MODEL_{other}" in linked for other in kept):
            kept.add(name)
    return {name: model for name, model in models.items() if name in kept}


def without_scripts(executed: Path) -> dict[str, str]:
    """The still figure, shown where scripts are off."""
    picture = chapter_figure(executed, STILL)
    if picture is None:
        return {"text/html": ""}
    data = base64.b64encode(picture).decode()
    alt = html.escape(
        "Rows of four small images: a training image, what the model paints as trained, what it paints after "
        "pruning, and what the pruned model paints from an embedding that a search found, with copy scores.",
        quote=True,
    )
    return {"text/html": f'<noscript><img src="data:image/png;base64,{data}" alt="{alt}"></noscript>'}


def display(data: dict[str, Any]) -> nbformat.NotebookNode:
    """One output of a cell."""
    return nbformat.v4.new_output("display_data", data)


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """(front matter, rest) of a page; {} where there is none."""

    if not text.startswith("---\n"):
        return {}, text
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest
