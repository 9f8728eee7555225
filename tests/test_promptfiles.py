"""One loader for CSV, JSON lines and parquet, and for the files of Wen et al., NeMo and Webster."""

import json
import random
from pathlib import Path

import pytest
from conftest import write_benchmark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dori.benchmark import Benchmark, load_benchmark
from dori.errors import DoriError

WEN = [
    {"caption": 'Watch: "Lifted Up"; now', "index": 567947515, "url": "a.png"},
    {"caption": "Café", "index": 964841345, "url": "b.png"},
]
NEMO = """\
;Caption;URL;type;mean_sscd;max_sscd;Index
0;"Watch: ""Lifted Up""; now";a.png;VM;0.86;0.87;567947515
1;Café;b.png;TM;;;964841345
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def test_the_file_of_wen_et_al_is_a_benchmark(folder):
    (folder / "wen.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in WEN), encoding="utf-8")
    bench = load_benchmark(folder / "wen.jsonl")
    assert bench.ids == ["567947515", "964841345"]
    assert bench.prompts() == ['Watch: "Lifted Up"; now', "Café"]
    assert bench.images(size=4).shape == (2, 3, 4, 4)
    assert set(bench.table["kind"]) == {"verbatim"}


def test_the_file_of_nemo_is_a_benchmark_with_its_split(folder):
    (folder / "nemo.csv").write_text(NEMO, encoding="utf-8")
    bench = load_benchmark(folder / "nemo.csv")
    assert bench.ids == ["567947515", "964841345"]
    assert bench.prompts() == ['Watch: "Lifted Up"; now', "Café"]
    assert bench.table["kind"].tolist() == ["verbatim", "template"]
    assert bench.table["max_sscd"].tolist() == ["0.87", ""]


def test_websters_parquet_is_a_benchmark(folder):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "caption": ["one", "two", "three", "four"],
        "url": ["a.png", "b.png", "a.png", "b.png"],
        "index": [3, 1, 2, 4],
        "overfit_type": ["MV", "TV", "RV", "N"],
        "retrieved": [["x"], [], None, ["y", "z"]],
    }
    parquet.write_table(arrow.table(columns), folder / "webster.parquet")
    bench = load_benchmark(folder / "webster.parquet")
    assert bench.ids == ["3", "1", "2", "4"]
    assert bench.table["kind"].tolist() == ["verbatim", "template", "verbatim", "none"]
    (folder / "webster.parquet").write_bytes((folder / "webster.parquet").read_bytes()[:-20])
    with pytest.raises(DoriError, match=r"webster\.parquet: not a whole parquet file"):
        load_benchmark(folder / "webster.parquet")


def test_the_three_formats_say_the_same(folder):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"id": "1", "prompt": "a, b", "image": "a.png", "kind": "none", "copies": 2},
        {"id": "2", "prompt": 'say "so"', "image": "b.png", "kind": "template", "copies": 3},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "x.parquet")
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "x.csv").write_text(
        'id,prompt,image,kind,copies\n1,"a, b",a.png,none,2\n\n2,"say ""so""",b.png,template,3\n'
    )
    one, two, three = (load_benchmark(folder / f"x.{e}").table for e in ("csv", "jsonl", "parquet"))
    assert one.equals(two)
    assert one.equals(three)
    assert one["copies"].tolist() == [2, 3]


def test_bad_rows_are_named_by_their_line_and_the_others_go_on(folder):
    lines = [json.dumps(WEN[0]), "{", "[1]", json.dumps(WEN[1] | {"url": ["a.png"]}), json.dumps(WEN[1])]
    (folder / "wen.jsonl").write_text("\n".join(lines))
    bench = load_benchmark(folder / "wen.jsonl", strict=False)
    assert bench.ids == ["567947515"]
    reasons = [row.reason.split(", ", 1)[1] for row in bench.skipped]
    assert reasons[0].startswith("line 2: not JSON")
    assert reasons[1] == "line 3: not a JSON object"
    assert reasons[2].startswith("line 4: image '' does not exist")
    assert reasons[3] == "line 5: id '964841345' appears twice"


def test_a_line_is_counted_from_where_its_row_begins(folder):
    (folder / "x.csv").write_text('id,prompt,image\n1,"two\nlines",a.png\n2,dawn,none.png\n3,a.png\n')
    bench = load_benchmark(folder / "x.csv", strict=False)
    assert bench.prompts() == ["two\nlines"]
    reasons = [row.reason.split(", ", 1)[1] for row in bench.skipped]
    assert reasons[0].startswith("line 4: image 'none.png' does not exist")
    assert reasons[1] == "line 5: 2 cells where the header has 3"


def test_columns_that_results_have_themselves_are_kept_apart(folder):
    (folder / "x.csv").write_text("id,prompt,image,score,type\n1,dawn,a.png,0.5,photo\n")
    table = load_benchmark(folder / "x.csv").table
    assert table["given_score"].tolist() == ["0.5"]
    assert table["type"].tolist() == ["photo"]  # says nothing about memorization
    assert table["kind"].tolist() == ["verbatim"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "\n", "is empty"),
        ("x.jsonl", '{"id": 1}\n', "no column prompt, image; it has id"),
        ("x.csv", 'id,prompt,image\n1,"never closed,a.png\n', "line 2: not a CSV row"),
        ("x.csv", "id,prompt,image,id\n1,dawn,a.png,2\n", "column 'id' appears twice"),
        ("x.parquet", "no parquet", "x.parquet"),
    ],
)
def test_a_file_that_is_no_benchmark_is_one_line(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(DoriError, match=message) as error:
        load_benchmark(folder / name)
    assert "\n" not in str(error.value)


CHARACTERS = st.sampled_from(
    ['"', "'", ",", ";", "\n", "\r", "\0", "\ufeff", "\u2028", "\ud800", "é", "a", "0", "-", "/"]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "double", "cut", "swap"]),
        st.integers(0, 10**6),
        st.integers(1, 40),
        st.one_of(CHARACTERS, st.text(max_size=5), st.just("x" * 300), st.just("1e400"), st.just("nan")),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, edits) -> bytes:
    for what, place, length, text in edits:
        at = place % (len(data) + 1)
        new = text.encode("utf-8", "surrogatepass")
        rest = data[at + length :]
        if what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "delete":
            data = data[:at] + rest
        elif what == "replace":
            data = data[:at] + new + rest
        elif what == "double":
            data = data[: at + length] + data[at:]
        elif what == "cut":
            data = data[:at]
        else:
            data = data[:at] + bytes(reversed(data[at : at + length])) + rest
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six good rows as CSV and as JSON lines."""
    path = write_benchmark(tmp_path_factory.mktemp("whole"))
    table = load_benchmark(path).table.reset_index()
    table.to_json(path.with_suffix(".jsonl"), orient="records", lines=True)
    return path


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(edits=EDITS, suffix=st.sampled_from([".csv", ".csv", ".jsonl"]), strict=st.booleans())
def test_a_mutated_file_is_a_benchmark_or_one_line(whole, edits, suffix, strict):
    path = whole.parent / f"mutated{suffix}"
    path.write_bytes(mutated(whole.with_suffix(suffix).read_bytes(), edits))
    bench = outcome(path, strict=strict)
    if isinstance(bench, Benchmark):
        check(bench)
    else:
        assert path.name in bench
        assert len(bench.splitlines()) == 1


def outcome(path: Path, *, strict: bool) -> Benchmark | str:
    """The benchmark, or the line that refuses it; anything else is raised."""
    try:
        return load_benchmark(path, strict=strict)
    except DoriError as error:
        return str(error)


def check(bench: Benchmark) -> None:
    """What the rest of the package relies on."""
    assert len(bench)
    assert bench.table.index.is_unique
    assert set(bench.table["kind"]) <= {"verbatim", "template", "none"}
    for i, prompt in zip(bench.ids, bench.prompts(), strict=True):
        assert i.strip()
        assert prompt.strip()
        (i + prompt).encode()
    for image in bench.table["image"]:
        assert (bench.path.parent / image).is_file()
    assert bench.select(kind="verbatim").head(1, by=["copies"]) is not None


def test_mutations_are_not_all_alike(whole):
    """The test above would say nothing if every mutation were refused, or none."""
    rng, outcomes = random.Random(0), set()
    for _ in range(60):
        edits = [("replace", rng.randrange(10**6), 1, "x")]
        path = whole.parent / "again.csv"
        path.write_bytes(mutated(whole.read_bytes(), edits))
        bench = outcome(path, strict=False)
        outcomes.add(len(bench) if isinstance(bench, Benchmark) else 0)
    assert {0, 5, 6} <= outcomes
