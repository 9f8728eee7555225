"""Look over the built pages without the network: links and anchors lead somewhere, images have words, no
other server is asked for anything.

    python scripts/check_site.py [_build/html]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes a browser fetches by itself on opening a page; a link is fetched only when followed.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOT_FETCHED_RELS = {"canonical", "next", "prev", "search", "index", "author", "license", "alternate"}


@dataclass
class Page(HTMLParser):
    """What one page refers to."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, links, fetched files, and images without alternative text."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if values.get(name))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        rels = set(values.get("rel", "").split())
        if tag in FETCHED and values.get(FETCHED[tag]) and not (tag == "link" and rels & NOT_FETCHED_RELS):
            self.fetched.append(values[FETCHED[tag]])
        if tag == "img" and needs_words(values):
            self.wordless.append(values.get("src", "")[:80])


def needs_words(values: dict[str, str]) -> bool:
    """True for an image without alt text, or with a file name or the notebook's default in its place."""
    alt = values.get("alt")
    if alt is None:
        return True
    return alt.startswith("_images/") or "/_images/" in alt or alt == values.get("src")


def is_outside(address: str) -> bool:
    """True for anything that another server would have to answer."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in {"http", "https"}


def resolve(page: Path, address: str) -> tuple[Path, str]:
    """(file, anchor) that `address` means on `page`."""
    parts = urlsplit(address)
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    return (target / "index.html" if target.is_dir() else target), unquote(parts.fragment)


def is_local_reference(address: str) -> bool:
    """True where a file of the site is meant."""
    return not is_outside(address) and urlsplit(address).scheme in {"", "file"}


def check_page(page: Page, pages: dict[Path, Page], *, allow_outside: bool) -> list[str]:
    """Faults of one page, a line each."""
    faults = [f"image without alternative text: {name}" for name in page.wordless]
    if not allow_outside:
        faults += [f"asks another server: {address}" for address in page.fetched if is_outside(address)]
    for address in filter(is_local_reference, [*page.links, *page.fetched]):
        target, anchor = resolve(page.path, address)
        if not target.exists():
            faults.append(f"leads nowhere: {address}")
        elif anchor and target in pages and anchor not in pages[target].anchors:
            faults.append(f"no such place on the page: {address}")
    return faults


def check_site(root: Path, *, allow_outside: bool = False) -> list[str]:
    """All faults of the site under `root`, each with its page; an empty list is a sound site."""
    root = root.resolve()
    files = sorted(path for path in root.rglob("*.html") if "_static" not in path.parts)
    if not files:
        return [f"{root}: no page was built"]
    pages = {path: Page(path) for path in files}
    return [
        f"{path.relative_to(root)}: {fault}"
        for path, page in pages.items()
        for fault in check_page(page, pages, allow_outside=allow_outside)
    ]


def main(arguments: list[str]) -> int:
    """Print the faults; exit code 1 where there are any."""
    root = Path(arguments[0] if arguments else "_build/html")
    faults = check_site(root)
    for fault in faults:
        print(fault)
    print(f"{root}: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
