"""Prompt sets with their training images: a CSV of `id,prompt,image[,kind][,split]`, checked when read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from dori.errors import DoriError
from dori.images import stack_images

REQUIRED = ("id", "prompt", "image")
KINDS = ("verbatim", "template", "none")
DEFAULTS = {"kind": "verbatim", "split": "test"}  # a file without these columns lists memorized prompts


@dataclass(frozen=True)
class Benchmark:
    """A validated prompt set; `table` keeps the file's columns and order, indexed by id."""

    name: str
    path: Path
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        """Ids in the file's order."""
        return list(self.table.index)

    def prompts(self, ids: Sequence[str] | None = None) -> list[str]:
        """Prompts of `ids` (all by default)."""
        return list(self.table["prompt"] if ids is None else self.table.loc[list(ids), "prompt"])

    def images(self, ids: Sequence[str] | None = None, *, size: int | None = None) -> Tensor:
        """Training images of `ids` as (B, 3, H, W) in [0, 1]. Raises DoriError for an unreadable file."""
        rows = self.table if ids is None else self.table.loc[list(ids)]
        return stack_images([self.path.parent / image for image in rows["image"]], size=size)

    def select(self, **where: object) -> "Benchmark":
        """Rows whose columns have these values; a list means any of them: select(copies=[64, 256])."""
        keep = pd.Series(True, index=self.table.index)
        for column, wanted in where.items():
            if column not in self.table:
                raise DoriError(
                    f"{self.path.name} has no column '{column}'; it has {', '.join(self.table.columns)}"
                )
            keep &= self.table[column].isin(wanted if isinstance(wanted, list | tuple | set) else [wanted])
        return Benchmark(self.name, self.path, self.table[keep])

    def head(self, n: int | None, *, by: Sequence[str] = ()) -> "Benchmark":
        """The first `n` rows (all for None), or the first `n` of each combination of the columns `by`."""
        if n is None:
            return self
        columns = [c for c in by if c in self.table]
        table = (
            self.table.groupby(columns, sort=False, dropna=False).head(n) if columns else self.table.head(n)
        )
        return Benchmark(self.name, self.path, table)


def load_benchmark(path: str | Path) -> Benchmark:
    """Read and check a benchmark; "testbed" and "regular" name the bundled ones.

    Raises DoriError with file and line for: a missing or empty file, a missing column, an empty or doubled
    id, an empty prompt, an unknown kind, an image that is not there.
    """
    path = _resolve(path)
    table = _read_table(path)
    for column, value in DEFAULTS.items():
        if column not in table:
            table[column] = value
    for check in (_check_ids, _check_prompts, _check_kinds, _check_images):
        check(path, table)
    return Benchmark(path.stem, path, table.set_index("id", drop=True))


def _resolve(path: str | Path) -> Path:
    """A bundled name or a path to an existing file."""
    if str(path) in ("testbed", "regular"):
        from dori.testbed.paths import TESTBED

        path = TESTBED / {"testbed": "memorized.csv", "regular": "regular.csv"}[str(path)]
    path = Path(path).expanduser()
    if not path.is_file():
        raise DoriError(
            f"benchmark '{path}' is not a file; give a CSV with the columns {', '.join(REQUIRED)}"
        )
    return path


def _read_table(path: Path) -> pd.DataFrame:
    """Columns as text except `copies`; empty cells stay empty strings."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except pd.errors.EmptyDataError:
        raise DoriError(f"{path} is empty; expected a header with {', '.join(REQUIRED)}") from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise DoriError(f"{path}: not a UTF-8 CSV ({error})") from None
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise DoriError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise DoriError(f"{path} has a header and no rows")
    if "copies" in table:
        table["copies"] = pd.to_numeric(table["copies"], errors="coerce").fillna(0).astype(int)
    return table


def _first(path: Path, bad: pd.Series, message: str) -> None:
    """Raise for the first row where `bad` holds; rows count as lines of the file, the header being line 1."""
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise DoriError(f"{path}, line {row + 2}: {message}")


def _check_ids(path: Path, table: pd.DataFrame) -> None:
    _first(path, table["id"].str.strip() == "", "empty id")
    twice = table["id"].duplicated()
    _first(path, twice, f"id '{table['id'][twice].iloc[0] if twice.any() else ''}' appears twice")


def _check_prompts(path: Path, table: pd.DataFrame) -> None:
    _first(path, table["prompt"].str.strip() == "", "empty prompt")


def _check_kinds(path: Path, table: pd.DataFrame) -> None:
    odd = ~table["kind"].isin(KINDS)
    _first(path, odd, f"kind '{table['kind'][odd].iloc[0] if odd.any() else ''}'; use {', '.join(KINDS)}")


def _check_images(path: Path, table: pd.DataFrame) -> None:
    web = table["image"].str.match(r"https?://")
    _first(path, web, "images at web addresses are not fetched yet; download them and give paths")
    absent = ~table["image"].map(lambda image: (path.parent / image).is_file())
    name = table["image"][absent].iloc[0] if absent.any() else ""
    _first(path, absent, f"image '{name}' does not exist; paths are relative to the CSV")
