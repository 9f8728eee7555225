"""Sphinx extension of the book: no live-kernel loader in the pages, cells to link to, names that agree.

Jupyter Book always loads sphinx-thebe, which puts the address of a CDN into every page; these pages ask no
other server for anything. An executed cell gets the id `cell-N`, N being the number Jupyter shows. Two things
in the HTML of others stand in the way of screen readers. And docstrings, which are plain text with `code` in
backticks, are made safe for reStructuredText; what Python itself says of fields is left out or made readable.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

MENDED = {  # HTML -> what is put in its place
    '<summary aria-label="Toggle hidden content">': "<summary>",  # its text says more, and says it in view
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # its entries are no listitems
}


def _is_thebe(item: Any) -> bool:
    attributes = getattr(item, "attributes", None) or {}
    name = str(getattr(item, "filename", "") or "")
    return "thebe" in name or "THEBE_JS_URL" in (attributes.get("body") or "")


def _drop_thebe(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [item for item in context.get(kind, []) if not _is_thebe(item)]


def _mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    for wrong, right in MENDED.items():
        if "body" in context:
            context["body"] = context["body"].replace(wrong, right)


def _launch_chapters_alone(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """The landing page is a notebook of the build's making: no repository has it, so nothing can open it."""
    if pagename == app.config.root_doc:
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [b for b in buttons if b.get("label") != "launch-buttons"]


def _name_cells(app: Any, doctree: nodes.document) -> None:
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code" and cell.get("exec_count"):
            cell["ids"].append(f"cell-{cell['exec_count']}")


def _plain(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Stars, bars and underscores at a word's end mean themselves, outside of backticks."""
    parts = re.split(r"(`[^`]*`)", "\n".join(lines))
    parts[::2] = [re.sub(r"[*|]|_(?=\W|$)", lambda found: "\\" + found[0], part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _sign(
    app: Any, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """`<factory>`, a dataclass's word for a default made anew, is no Python: Sphinx cannot parse it."""
    return signature and signature.replace("<factory>", "..."), returns


def _skip(app: Any, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Fields of a NamedTuple that have no words but Python's own; the class's docstring speaks of them."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx; late, so that it sees what the theme and the other extensions added."""
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-read", _name_cells)
    app.connect("html-page-context", _drop_thebe, priority=900)
    app.connect("html-page-context", _mend, priority=900)
    app.connect("html-page-context", _launch_chapters_alone, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
