"""Files of prompts as one table of text: CSV, JSON lines, parquet; columns id, prompt, image, kind, split."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dori.errors import DoriError, first_line

REQUIRED = ("id", "prompt", "image")
# What others call a column. Wen et al.: index, caption, url; NeMo: the same, type; Webster: overfit_type.
CALLED = {"id": ("index",), "prompt": ("caption",), "image": ("url",), "kind": ("type", "overfit_type")}
KINDS = ("verbatim", "template", "none")
# VM, TM: NeMo; MV, RV, TV (matching, retrieved and template verbatims), N: Webster, arXiv 2305.08694
CODES = {
    "VM": "verbatim",
    "MV": "verbatim",
    "RV": "verbatim",
    "TM": "template",
    "TV": "template",
    "N": "none",
}
# Columns of results.csv: a benchmark's own of that name is kept as `given_…`.
RESULTS = ("seed", "score", "replicated", "trigger", "init", "steps", "loss", "moved", "cosine", "attacker")
RESULTS += ("text", "target", "limit", "method", "setting", "units", "density")


class Row(NamedTuple):
    """One row: where it stands in the file, its cells, and what is wrong with it (empty for nothing)."""

    where: str
    cells: Mapping[str, str]
    wrong: str = ""


class Rows(NamedTuple):
    """Columns of text (`copies`: whole numbers), where each row stands in the file, what is wrong with it."""

    table: pd.DataFrame
    where: list[str]
    wrong: pd.Series


def read_rows(path: Path) -> Rows:
    """All rows of a file, its columns called id, prompt, image, kind and split.

    Raises DoriError if the file is none of the three kinds, or lacks a column that is needed.
    """
    suffix = path.suffix.lower()
    readers = {".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows}
    columns, rows = readers.get(suffix, _csv_rows)(path)
    twice = [c for n, c in enumerate(columns) if c in columns[:n]]
    if twice:
        raise DoriError(f"{path}: column '{short(twice[0])}' appears twice")
    columns = [c for c in columns if c and not c.startswith("Unnamed:")]  # pandas' own numbering
    cells = {c: [r.cells.get(c, "") for r in rows] for c in columns}
    table = _named(pd.DataFrame(cells, columns=columns, dtype="str"))
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        found = short(", ".join(columns)) or "none"
        raise DoriError(f"{path}: no column {', '.join(missing)}; it has {found}")
    if not rows:
        raise DoriError(f"{path} has a header and no rows")
    if "copies" in table:
        numbers = pd.to_numeric(table["copies"], errors="coerce")
        table["copies"] = numbers.where(numbers.abs() < 2**53, 0).fillna(0).astype(int)
    return Rows(table, [r.where for r in rows], pd.Series([r.wrong for r in rows], dtype="str"))


def short(text: str, length: int = 300) -> str:
    """Text of a file as part of a message: on one line, and cut."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}…"


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Columns called id, prompt, image, kind, split where a file has other names; and our words for kinds."""
    lower = {c.lower(): c for c in reversed(table.columns)}
    for name, others in CALLED.items():
        found = next((lower[o] for o in (name, *others) if o in lower), None)
        if name in table or found is None:
            continue
        if name == "kind" and not table[found].isin([*CODES, *KINDS]).any():
            continue  # a column `type` of something else
        table = table.rename(columns={found: name})
    if "kind" in table:
        table["kind"] = table["kind"].replace(CODES)
    return table.rename(columns={c: f"given_{c}" for c in RESULTS})


def _csv_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Rows of a CSV; semicolons where the header has more of them than commas."""
    text = _text(path)
    if not text.strip():
        raise DoriError(f"{path} is empty; expected a header with {', '.join(REQUIRED)}")
    first = text.lstrip().partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    reader, rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []
    header: list[str] | None = None
    at = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = [c.strip() for c in cells]
            elif cells and len(cells) != len(header):
                wrong = f"{len(cells)} cells where the header has {len(header)}"
                rows.append(Row(f"line {at}", dict(zip(header, cells, strict=False)), wrong))
            elif cells:
                rows.append(Row(f"line {at}", dict(zip(header, cells, strict=True))))
            at = reader.line_num + 1
    except csv.Error as error:
        raise DoriError(f"{path}, line {at}: not a CSV row ({error})") from None
    return header or [], rows


def _json_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Rows of a file with a JSON object on each line."""
    rows = [_json_row(n, line) for n, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    if not rows:
        raise DoriError(f"{path} is empty; expected a JSON object with {', '.join(REQUIRED)} on each line")
    return _columns(r.cells for r in rows), rows


def _json_row(number: int, line: str) -> Row:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(f"line {number}", {}, f"not JSON ({str(error)[:80]})")
    if not isinstance(found, dict):
        return Row(f"line {number}", {}, "not a JSON object")
    return Row(f"line {number}", {str(k): _cell(v) for k, v in found.items()})


def _parquet_rows(path: Path) -> tuple[list[str], list[Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DoriError(f"{path}: parquet is read by pyarrow; run `pip install pyarrow`") from None
    try:
        with ParquetFile(path) as file:
            found = file.read().to_pylist()
            columns = list(file.schema_arrow.names)
    except (ArrowException, OSError, ValueError) as error:
        raise DoriError(f"{path}: not a whole parquet file ({first_line(error)})") from None
    rows = [Row(f"row {n}", {str(k): _cell(v) for k, v in row.items()}) for n, row in enumerate(found, 1)]
    return [str(c) for c in columns], rows


def _columns(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Names in the order in which they come up."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: object) -> str:
    """A scalar as text; nothing, NaN, and what is no scalar (lists, bytes) as an empty cell."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DoriError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
