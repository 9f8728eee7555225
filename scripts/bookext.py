"""Sphinx extension of the book: no live-kernel loader in the pages, cells to link to, names that agree.

Jupyter Book always loads sphinx-thebe, which puts the address of a CDN into every page; these pages ask no
other server for anything. An executed cell gets the id `cell-N`, N being the number Jupyter shows. Two things
in the HTML of others stand in the way of screen readers. Numbers are set as in print wherever they come from,
with a minus and not torn from their sign or unit. And docstrings, which are plain text with `code` in
backticks, are made safe for reStructuredText; what Python itself says of fields is left out or made readable;
what stands in backticks and has an entry in the reference becomes a link to it.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

MENDED = {  # HTML -> what is put in its place
    '<summary aria-label="Toggle hidden content">': "<summary>",  # its text says more, and says it in view
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # its entries are no listitems
}

WIDE, MANY = 3, 7  # columns
LETTERED = {"notebooks/00_background": "B", "testbed": "T"}  # pages without a chapter's number
UNTORN = 14  # letters of a cell that has one line
TABLE = re.compile(
    r'<table (?:border="\d+" )?class="((?:dataframe )?table)">(\s*<thead>.*?</thead>)(.*?)</table>', re.DOTALL
)
FRAME = re.compile(r'<table border="1" class="dataframe">(.*?)</table>', re.DOTALL)
SHORT = re.compile(r'<span class="pre">([^<]{1,24})</span>')  # words in code that fit a line of a phone
WORDLESS = re.compile(  # tags, and what is code, data or formula
    r'(<(pre|code|script|style)\b.*?</\2>|<(span|div) class="math.*?</\3>|<[^>]*>)', re.DOTALL
)
SET = {  # text -> as it is printed
    r"(?<=\d) %": "\N{NO-BREAK SPACE}%",
    r"\bn = (?=\d)": "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}",
    r"(?<=[≥≤=<>]) (?=[\d−-])|(?<=&[lg]t;) (?=[\d−-])": "\N{NO-BREAK SPACE}",
    r"(?<![\w.–-])-(?=\d)": "\N{MINUS SIGN}",
}
COUNT = re.compile(r"(?<=<td>)\d{4,}(?=</td>)")
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>(?:(?!</?d[dl]>).)*</dd>\s*)+)</dl>", re.DOTALL)


def _is_thebe(item: Any) -> bool:
    attributes = getattr(item, "attributes", None) or {}
    name = str(getattr(item, "filename", "") or "")
    return "thebe" in name or "THEBE_JS_URL" in (attributes.get("body") or "")


def _drop_thebe(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [item for item in context.get(kind, []) if not _is_thebe(item)]


def _mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" not in context:
        return
    body = context["body"]
    for wrong, right in MENDED.items():
        body = body.replace(wrong, right)
    body = COUNT.sub(lambda found: f"{int(found[0]):,}", printed(body))
    body = FRAME.sub(_fitted, body)
    body = TABLE.sub(_with_labels, SHORT.sub(r'<span class="pre short">\1</span>', body))
    if pagename.startswith("api/"):
        body = PARAMETERS.sub(_as_lines, re.sub(r"(?<=<h2>)dori[\w.]*", _divided, body))
    context["body"] = body


def printed(body: str) -> str:
    """HTML whose numbers are set as in `SET`, but in code and formulas."""
    parts, at = [], 0
    for found in WORDLESS.finditer(body):
        parts += [_set(body[at : found.start()]), found[0]]
        at = found.end()
    return "".join([*parts, _set(body[at:])])


def _fitted(found: re.Match[str]) -> str:
    """A cell's dataframe: one row of headings, a short entry on one line, many columns in smaller letters
    (custom.css)."""
    head, sep, rows = found[1].partition("<tbody>")
    head = _one_heading(head)
    columns = max((row.count("<t") for row in re.findall(r"<tr.*?</tr>", rows, re.DOTALL)), default=1) - 1
    rows = re.sub(rf"<t([dh])>(?=[^<]{{1,{UNTORN}}}</t)", r'<t\1 class="untorn">', rows)
    return f'<table class="dataframe{" many" * (columns >= MANY)}">{head}{sep}{rows}</table>'


def _one_heading(head: str) -> str:
    """pandas puts the names of an index in a row of their own below the columns' names; into the gaps above
    with them, where each gap has one."""
    lines = re.findall(r"<tr.*?</tr>", head, re.DOTALL)
    if len(lines) != 2:
        return head
    above, below = (re.findall(r"<th[^>]*>(.*?)</th>", line, re.DOTALL) for line in lines)
    if len(above) != len(below) or any(bool(a) == bool(b) for a, b in zip(above, below, strict=True)):
        return head
    names = "".join(f"<th>{a or b}</th>" for a, b in zip(above, below, strict=True))
    return f"<thead><tr>{names}</tr></thead>"


def _set(text: str) -> str:
    for plain, right in SET.items():
        text = re.sub(plain, right, text)
    return text


def _with_labels(found: re.Match[str]) -> str:
    """A wide table whose cells know their column's name: on a phone each row becomes a card (custom.css)."""
    kinds, head, rows = found.groups()
    names = [
        escape(unescape(re.sub(r"<[^>]*>", "", name)))
        for name in re.findall(r"<th[ >].*?</th>", head, re.DOTALL)
    ]
    if len(names) < WIDE:
        return found[0]
    rows = re.sub(r"<tr.*?</tr>", lambda row: _labelled(row[0], names), rows, flags=re.DOTALL)
    return f'<table class="{kinds} cards">{head}{rows}</table>'


def _labelled(row: str, names: list[str]) -> str:
    following = iter(names)
    return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(following)}"', row)


def _as_lines(found: re.Match[str]) -> str:
    """Parameters, one a line: Sphinx makes a list of definitions that has no terms."""
    lines = found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'<div class="sig-params">{lines}</div>'


def _divided(found: re.Match[str]) -> str:
    """Where the long name of a module may be divided."""
    return re.sub(r"[._]", lambda sign: sign[0] + "<wbr>", found[0])


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
    """Outside of backticks stars, bars, straight quotes, and underscores at a word's end mean themselves, and
    an arrow is one sign."""
    parts = re.split(r"(`[^`]*`)", "\n".join(lines))
    for i, part in enumerate(parts[::2]):
        escaped = re.sub(r"[*|\"']|_(?=\W|$)", lambda found: "\\" + found[0], part)
        parts[2 * i] = re.sub(r"(?<=\s)->(?=\s|$)", "→", escaped)
    lines[:] = "".join(parts).split("\n")


def _sign(
    app: Any, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """`<factory>`, a dataclass's word for a default made anew, is no Python: Sphinx cannot parse it. And a
    protocol is nothing to call."""
    if getattr(obj, "_is_protocol", False):
        return "", returns
    return signature and signature.replace("<factory>", "..."), returns


def _skip(app: Any, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Fields of a NamedTuple that have no words but Python's own; the class's docstring speaks of them."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def _link_names(app: Any, doctree: nodes.document, docname: str) -> None:
    """Names in backticks, as a reader of that place would write them, lead to their entries.

    Small words without a dot are left alone: most of them are parameters.
    """
    objects = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        name, around = literal.astext(), _around(literal)
        if isinstance(literal.parent, nodes.reference) or not re.fullmatch(r"[A-Z]\w*|\w+(\.\w+)+", name):
            continue
        package = [around[-1].rpartition(".")[0]] if around else []
        scopes = [*around, *package, "dori"] if docname.startswith("api/") else []
        names = [name, *(f"{scope}.{name}" for scope in scopes)]
        full = next((n for n in names if n.startswith("dori.") and n in objects), None)
        if full and full not in around:
            entry = objects[full]
            link = make_refnode(app.builder, docname, entry.docname, entry.node_id, literal.deepcopy(), full)
            literal.replace_self(link)


def _letter_numbers(app: Any, env: Any) -> list[str]:
    """Figures and equations of pages that are no numbered chapter: B.1, as chapter 1 has 1.1. By themselves
    they would be numbered on from page to page, and (1) stand beside (1.1)."""
    for page, letter in LETTERED.items():
        for numbers in env.toc_fignumbers.get(page, {}).values():
            numbers.update({name: (letter, n) for n, name in enumerate(numbers, 1)})
    return []


def _around(node: nodes.Node) -> list[str]:
    """Full names of the entries that a node stands in, the inmost first, its module last."""
    found = []
    while node := node.parent:
        if node.tagname == "desc":
            found += [i for i in node.children[0].get("ids", []) if i.startswith("dori")]
        elif node.tagname == "section":
            found += [i.removeprefix("module-") for i in node.get("ids", []) if i.startswith("module-")]
    return found


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx; late, so that it sees what the theme and the other extensions added."""
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-read", _name_cells)
    app.connect("env-get-updated", _letter_numbers, priority=900)
    app.connect("doctree-resolved", _link_names)
    app.connect("html-page-context", _drop_thebe, priority=900)
    app.connect("html-page-context", _mend, priority=900)
    app.connect("html-page-context", _launch_chapters_alone, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
