"""Prompt sets with their training images: a file of `id,prompt,image[,kind][,split]`, checked when read."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from dori.errors import DoriError
from dori.fetched import fetch_images, is_address
from dori.images import check_image, stack_images
from dori.promptfiles import KINDS, REQUIRED, read_rows, short
from dori.store import atomic

log = logging.getLogger(__name__)
DEFAULTS = {"kind": "verbatim", "split": "test"}  # a file without these columns lists memorized prompts


class Skipped(NamedTuple):
    """A row that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A validated prompt set; `table` keeps the file's columns and order, indexed by id."""

    name: str
    path: Path
    table: pd.DataFrame
    skipped: tuple[Skipped, ...] = ()  # rows of the file that cannot be used, where that was allowed

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
        return dataclasses.replace(self, table=self.table[keep])

    def only(self, ids: Sequence[str]) -> "Benchmark":
        """The rows with these ids, in their order. Raises DoriError for an id that is not there."""
        lacking = [i for i in ids if i not in self.table.index]
        if lacking:
            raise DoriError(f"{self.path.name} has no row '{lacking[0]}'")
        return dataclasses.replace(self, table=self.table.loc[list(ids)])

    def head(self, n: int | None, *, by: Sequence[str] = ()) -> "Benchmark":
        """The first `n` rows (all for None), or the first `n` of each combination of the columns `by`."""
        if n is None:
            return self
        columns = [c for c in by if c in self.table]
        table = (
            self.table.groupby(columns, sort=False, dropna=False).head(n) if columns else self.table.head(n)
        )
        return dataclasses.replace(self, table=table)


def load_benchmark(
    path: "str | Path | Benchmark", *, strict: bool = True, images: bool = True, again: bool = False
) -> Benchmark:
    """Read and check a benchmark; "testbed" and "regular" name the bundled ones, a Benchmark is itself.

    CSV, .jsonl or .parquet with the columns id, prompt, image, kind, split, or with the names that Wen et
    al., NeMo or Webster give them (`dori.promptfiles`). Images at web addresses are fetched into a cache
    (`dori.fetched`), those that were refused before only with `again`; `image` is then the file, `url` the
    address.

    Raises DoriError with file and line for: a missing or empty file, a missing column, an empty or doubled
    id, an empty prompt, an unknown kind, an image that is not there or cannot be fetched (with `images`).
    With `strict=False` a bad row costs one line of the log and is named in `skipped`; then only a file
    without a good row raises.
    """
    if isinstance(path, Benchmark):
        return path
    path = _resolve(path)
    table, where, wrong = read_rows(path)
    for column, value in DEFAULTS.items():
        if column not in table:
            table[column] = value
    for check in (_wrong_text, _wrong_ids, _wrong_prompts, _wrong_kinds):
        wrong = wrong.where(wrong != "", check(table))
    if images:
        table = _with_fetched(table, wrong == "", again=again)
        wrong = wrong.where(wrong != "", _wrong_images(path, table))
    bad = wrong.index[wrong != ""]
    skipped = [Skipped(table["id"][n], f"{path}, {where[n]}: {short(wrong[n])}") for n in bad]
    if skipped and strict:
        raise DoriError(skipped[0].reason)
    if len(skipped) == len(table):
        raise DoriError(f"none of {len(table)} rows can be used: {skipped[0].reason}")
    for row in skipped:
        log.warning("%s; left out", row.reason)
    return Benchmark(path.stem, path, table[wrong == ""].set_index("id"), tuple(skipped))


def readable(benchmark: Benchmark) -> Benchmark:
    """Without the rows whose image cannot be read, which are named. Raises DoriError if nothing is left."""
    wrong = {}
    for i, image in benchmark.table["image"].items():
        try:
            check_image(benchmark.path.parent / image)
        except DoriError as error:
            wrong[i] = str(error)
            log.warning("%s; left out", error)
    if len(wrong) == len(benchmark):
        raise DoriError(f"none of {len(wrong)} images can be read: {next(iter(wrong.values()))}")
    kept = benchmark.table[~benchmark.table.index.isin(list(wrong))]
    skipped = (*benchmark.skipped, *(Skipped(*item) for item in wrong.items()))
    return dataclasses.replace(benchmark, table=kept, skipped=skipped)


def write_benchmark(benchmark: Benchmark, out: Path) -> Path:
    """Write benchmark.csv and copies of its images, named by their content, into a directory; the CSV's path.

    Such a directory needs neither the web nor a cache. Raises DoriError for one that holds anything else.
    """
    path = out / "benchmark.csv"
    if path.exists() and path.samefile(benchmark.path):
        raise DoriError(f"{path} would be written over; give another directory")
    written_before = path.is_file() and (out / "images").is_dir()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not written_before):
        raise DoriError(f"'{out}' is not empty and holds no benchmark; give another directory")
    (out / "images").mkdir(parents=True, exist_ok=True)
    names = {}
    for i, image in benchmark.table["image"].items():
        source = benchmark.path.parent / image
        kind, content = check_image(source).lower(), source.read_bytes()
        names[i] = f"images/{hashlib.sha256(content).hexdigest()[:24]}.{kind}"
        with atomic(out / names[i]) as temporary:
            temporary.write_bytes(content)
    with atomic(path) as temporary:
        benchmark.table.assign(image=pd.Series(names)).to_csv(temporary, lineterminator="\n")
    return path


def _resolve(path: str | Path) -> Path:
    """A bundled name or a path to an existing file."""
    if str(path) in ("testbed", "regular"):
        from dori.testbed.paths import TESTBED

        path = TESTBED / {"testbed": "memorized.csv", "regular": "regular.csv"}[str(path)]
    path = Path(path).expanduser()
    if not path.is_file():
        raise DoriError(
            f"benchmark '{path}' is not a file; give a CSV, .jsonl or .parquet with the columns "
            f"{', '.join(REQUIRED)}"
        )
    return path


def _reasons(bad: pd.Series, reasons: pd.Series | str) -> pd.Series:
    """The reason where a row is bad, "" where it is not."""
    return pd.Series("", index=bad.index, dtype="str").mask(bad, reasons)


def _wrong_text(table: pd.DataFrame) -> pd.Series:
    bad = ~table[list(REQUIRED)].map(_printable).all(axis=1)
    return _reasons(bad, "text that is none (a NUL, or half a surrogate pair)")


def _printable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _wrong_ids(table: pd.DataFrame) -> pd.Series:
    twice = _reasons(table["id"].duplicated(), "id '" + table["id"] + "' appears twice")
    return twice.mask(table["id"].str.strip() == "", "empty id")


def _wrong_prompts(table: pd.DataFrame) -> pd.Series:
    return _reasons(table["prompt"].str.strip() == "", "empty prompt")


def _wrong_kinds(table: pd.DataFrame) -> pd.Series:
    return _reasons(~table["kind"].isin(KINDS), "kind '" + table["kind"] + f"'; use {', '.join(KINDS)}")


def _with_fetched(table: pd.DataFrame, wanted: pd.Series, *, again: bool) -> pd.DataFrame:
    """The table with the cached file in the place of each wanted row's web address, which goes to `url`.

    Where there is none, `unfetched` says why.
    """
    on_web = wanted & table["image"].map(is_address)
    if not on_web.any():
        return table
    found = fetch_images(table.loc[on_web, "image"], again=again)
    known = table["image"].where(on_web).map(found.get, na_action="ignore")
    failed = known.map(lambda x: x if isinstance(x, str) else "").where(on_web, "").astype("str")
    files = known.map(str).where(on_web & (failed == ""), table["image"])
    url = table["image"].where(on_web, table.get("url", ""))
    return table.assign(image=files.astype("str"), url=url.astype("str"), unfetched=failed)


def _wrong_images(path: Path, table: pd.DataFrame) -> pd.Series:
    """Images that are not there, on this disk or in the web; `unfetched` is taken out of the table."""
    absent = ~table["image"].map(lambda image: _is_file(path.parent, image))
    wrong = _reasons(absent, "image '" + table["image"] + "' does not exist; paths are relative to the file")
    if "unfetched" in table:
        failed = table.pop("unfetched")
        wrong = wrong.mask(failed != "", "image cannot be had (" + failed + "): " + table["image"])
    return wrong


def _is_file(folder: Path, image: str) -> bool:
    try:
        return (folder / image).is_file()
    except OSError:  # a name that is too long for the system
        return False
