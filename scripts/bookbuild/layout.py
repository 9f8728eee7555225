"""Where the build reads and writes. Everything it writes lies under `_build/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class BuildError(Exception):
    """A one-line message for people: what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Layout:
    """The folders of one checkout."""

    root: Path

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def pages(self) -> Path:
        return self.root / "book"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def build(self) -> Path:
        return self.root / "_build"

    @property
    def prepared(self) -> Path:
        """Chapters as notebooks, before execution."""
        return self.build / "prepared"

    @property
    def executed(self) -> Path:
        """Chapters after execution, each with a JSON record of its run beside it."""
        return self.build / "executed"

    @property
    def runs(self) -> Path:
        """Run directories of the chapters (dori.store), resumable."""
        return self.build / "runs"

    @property
    def src(self) -> Path:
        """What Sphinx reads: book/* at its root, executed chapters under notebooks/."""
        return self.build / "src"

    @property
    def html(self) -> Path:
        return self.build / "html"

    @property
    def results(self) -> Path:
        return self.build / "results.json"

    def chapters(self, only: str | None = None) -> list[Path]:
        """Chapter sources in reading order; `only` is a prefix such as `01`."""
        found = sorted(self.notebooks.glob("[0-9][0-9]_*.py"))
        if only is None:
            return found
        chosen = [path for path in found if path.stem.startswith(only)]
        if not chosen:
            known = ", ".join(path.stem for path in found) or "none"
            raise BuildError(f"no chapter starts with '{only}' in {self.notebooks}; there are: {known}")
        return chosen
