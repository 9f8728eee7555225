"""Benchmarks in, or one line with file and row."""

import pytest
import torch
from conftest import write_benchmark

from dori.benchmark import load_benchmark
from dori.errors import DoriError


def rows(**change):
    row = {"id": "a", "prompt": "red boat", "image": "a.png"}
    return [row, {"id": "b", "prompt": "dawn", "image": "b.png", **change}]


def test_a_benchmark_keeps_order_kinds_and_copies(benchmark_csv):
    bench = load_benchmark(benchmark_csv)
    assert bench.ids == [f"i{n}" for n in range(6)]
    assert bench.select(kind="none").ids == ["i3", "i4", "i5"]
    assert bench.select(kind=["verbatim", "template"], copies=256).ids == ["i1", "i2"]
    assert bench.head(1, by=["kind"]).ids == ["i0", "i2", "i3"]


def test_images_come_as_tensors_in_the_order_asked(benchmark_csv):
    bench = load_benchmark(benchmark_csv)
    two = bench.images(["i3", "i0"])
    assert two.shape == (2, 3, 16, 16)
    assert torch.equal(two[1], bench.images(["i0"])[0])
    assert bench.images(size=8).shape == (6, 3, 8, 8)


def test_rows_are_taken_by_id_in_the_order_asked(benchmark_csv):
    bench = load_benchmark(benchmark_csv)
    some = bench.only(["i4", "i1"])
    assert some.ids == ["i4", "i1"]
    assert some.prompts() == bench.prompts(["i4", "i1"])
    assert len(bench.only([])) == 0
    with pytest.raises(DoriError, match=r"benchmark\.csv has no row 'i9'"):
        bench.only(["i1", "i9"])


def test_three_columns_are_enough(tmp_path):
    bench = load_benchmark(write_benchmark(tmp_path, rows()))
    assert bench.table["kind"].tolist() == ["verbatim"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, r"line 3: id 'a' appears twice"),
        ({"id": ""}, r"line 3: empty id"),
        ({"prompt": " "}, r"line 3: empty prompt"),
        ({"kind": "odd"}, r"line 2: kind ''"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    with pytest.raises(DoriError, match=message):
        load_benchmark(write_benchmark(tmp_path, rows(**change)))


@pytest.mark.parametrize(
    ("image", "message"), [("c.png", "'c.png' does not exist"), ("ftp://x.org/a.png", "does not exist")]
)
def test_an_image_that_is_not_here_is_named(tmp_path, image, message):
    path = write_benchmark(tmp_path, rows())
    path.write_text(path.read_text().replace("b.png", image))
    with pytest.raises(DoriError, match=f"line 3: .*{message}"):
        load_benchmark(path)


@pytest.mark.parametrize(
    "text", ["", "id,prompt,image\n", "id,text,image\n1,a,b\n", "id,prompt,image\n\x00\xff", '"']
)
def test_a_file_that_is_no_benchmark_is_one_line(tmp_path, text):
    (tmp_path / "b.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DoriError, match=r"b\.csv"):
        load_benchmark(tmp_path / "b.csv")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_named(tmp_path, content):
    bench = load_benchmark(write_benchmark(tmp_path, rows()))
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DoriError, match=r"b\.png: not a readable image"):
        bench.images()


def test_a_missing_benchmark_says_what_is_wanted(tmp_path):
    with pytest.raises(DoriError, match="id, prompt, image"):
        load_benchmark(tmp_path / "none.csv")


def test_bad_rows_are_left_out_where_that_is_allowed_and_named(tmp_path, caplog):
    more = [
        {"id": "a", "prompt": "noon", "image": "c.png"},
        {"id": "d", "prompt": "", "image": "d.png"},
        {"id": "e", "prompt": "dusk", "image": "e.png"},
    ]
    path = write_benchmark(tmp_path, rows() + more)
    (tmp_path / "e.png").unlink()
    bench = load_benchmark(path, strict=False)
    assert bench.ids == ["a", "b"]
    assert bench.prompts() == ["red boat", "dawn"]
    assert [row.id for row in bench.skipped] == ["a", "d", "e"]
    reasons = [row.reason for row in bench.select(kind="verbatim").head(1).skipped]
    assert [r.removeprefix(f"{path}, ") for r in reasons] == [
        "line 4: id 'a' appears twice",
        "line 5: empty prompt",
        "line 6: image 'e.png' does not exist; paths are relative to the file",
    ]
    assert [r.message for r in caplog.records] == [f"{reason}; left out" for reason in reasons]


def test_images_need_not_be_there_for_a_method_that_reads_none(tmp_path):
    path = write_benchmark(tmp_path, rows())
    (tmp_path / "a.png").unlink()
    assert load_benchmark(path, images=False).ids == ["a", "b"]


def test_a_file_of_bad_rows_alone_is_refused(tmp_path):
    path = write_benchmark(tmp_path, rows(kind="odd"))
    with pytest.raises(DoriError, match=r"none of 2 rows can be used: .*line 2: kind ''"):
        load_benchmark(path, strict=False)
