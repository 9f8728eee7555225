"""Sphinx extension of the book: no live-kernel loader in the pages, and a place to link to at each cell.

Jupyter Book always loads sphinx-thebe, which puts the address of a CDN into every page; these pages ask no
other server for anything. An executed cell gets the id `cell-N`, N being the number Jupyter shows.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes


def _is_thebe(item: Any) -> bool:
    attributes = getattr(item, "attributes", None) or {}
    name = str(getattr(item, "filename", "") or "")
    return "thebe" in name or "THEBE_JS_URL" in (attributes.get("body") or "")


def _drop_thebe(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [item for item in context.get(kind, []) if not _is_thebe(item)]


def _name_cells(app: Any, doctree: nodes.document) -> None:
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code" and cell.get("exec_count"):
            cell["ids"].append(f"cell-{cell['exec_count']}")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx; late, so that it sees what the theme and the other extensions added."""
    app.connect("doctree-read", _name_cells)
    app.connect("html-page-context", _drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
