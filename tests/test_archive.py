"""Records that come with the book: packed, found by what decides them, held back and compared."""

import json
import zipfile

import pytest
import torch

from dori.archive import LIGHT, SHIPPED, TOUCHED, Archive, open_archive, pack
from dori.errors import DoriError
from dori.store import Record, RunStore

ITEMS = [{"item": k, "step": s} for k in range(40) for s in (10, 50)]


def record(k: int, more: float = 0.0) -> Record:
    return Record({"scores": [k + more, 0.5]}, {"embeds": torch.full((2,), float(k))})


@pytest.fixture
def shipped(tmp_path):
    """A directory of records: those of ITEMS, made by a run."""
    store = RunStore(tmp_path / "run")
    for n, decides in enumerate(ITEMS):
        store.save("score", decides, record(n))
    store.note_touched()
    assert pack([tmp_path / "run"], tmp_path / "records" / "one.zip") == len(ITEMS)
    return tmp_path / "records"


def test_a_record_of_the_archive_is_what_was_measured(shipped, tmp_path):
    store = RunStore(tmp_path / "other", Archive(shipped))
    for n, decides in enumerate(ITEMS):
        assert store.has("score", decides)
        found = store.find("score", decides)
        assert found.values == record(n).values
        assert torch.equal(found.tensors["embeds"], record(n).tensors["embeds"])
    assert store.computed == 0
    assert not list((tmp_path / "other").rglob("*.json"))


@pytest.mark.parametrize("decides", [{"item": 0, "step": 11}, {"item": 99, "step": 10}, {"item": 0}])
def test_another_key_finds_nothing(shipped, tmp_path, decides):
    store = RunStore(tmp_path / "other", Archive(shipped))
    assert not store.has("score", decides)
    assert store.find("score", decides) is None
    assert store.find("attack", ITEMS[0]) is None


def test_layers_keep_their_order_wherever_they_are_read_from(tmp_path):
    names = [f"{part}.{k}" for part in ("down_blocks", "mid_block", "up_blocks") for k in range(5)]
    store = RunStore(tmp_path / "run")
    store.save("units", {"item": 1}, Record({}, {n: torch.ones(k + 1) for k, n in enumerate(names)}))
    store.note_touched()
    pack([tmp_path / "run"], tmp_path / "records" / "x.zip")
    for one in (store, RunStore(tmp_path / "other", Archive(tmp_path / "records"))):
        assert list(one.find("units", {"item": 1}).tensors) == names


def test_what_was_measured_again_gives_way_to_what_was_shipped(shipped, tmp_path):
    """Else all that is measured on top of it would have other keys, and none of it would be compared."""
    store = RunStore(tmp_path / "other", Archive(shipped, share=1))
    assert store.find("score", ITEMS[0]) is None
    assert store.save("score", ITEMS[0], record(0, 0.25)).values == record(0).values
    for one in (store, RunStore(tmp_path / "other", Archive(shipped, share=1))):
        assert one.find("score", ITEMS[0]).values == record(0).values
        assert one.repeated()["score"] == [0.25]
        assert not one.shipped
    assert RunStore(tmp_path / "other").find("score", ITEMS[0]).values == record(0, 0.25).values


def test_a_share_is_held_back_by_search_and_by_commit(shipped, tmp_path):
    def missing(share: float, salt: str) -> set[int]:
        store = RunStore(tmp_path / "other", Archive(shipped, share=share, salt=salt))
        gone = [decides for decides in ITEMS if store.find("score", decides) is None]
        assert all(store.has("score", d) == (d not in gone) for d in ITEMS)
        whole = {d["item"] for d in gone}
        assert len(gone) == 2 * len(whole)  # both looks at a search, or none
        return whole

    assert missing(0, "a") == set()
    assert missing(1, "a") == set(range(40))
    some = missing(0.25, "a")
    assert 2 <= len(some) <= 20
    assert some == missing(0.25, "a") != missing(0.25, "b")


def test_what_takes_long_is_held_back_the_more_seldom(shipped):
    """So a share of the time is spent on it, as on the rest, whatever a commit draws."""
    archive = Archive(shipped, share=0.25, salt="a")

    def drawn(passes: int) -> set[int]:
        return {k for k in range(4000) if archive.draws(str(k), passes)}

    whole = drawn(0)
    assert whole == drawn(1) == drawn(LIGHT)
    assert 900 < len(whole) < 1100
    assert drawn(4 * LIGHT) < whole
    assert 200 < len(drawn(4 * LIGHT)) < 300
    assert 10 < len(drawn(40 * LIGHT)) < 45


def test_a_store_asks_for_long_measurements_by_their_passes(shipped, tmp_path):
    store = RunStore(tmp_path / "other", Archive(shipped, share=1, salt="a"))
    assert store.find("score", ITEMS[0]) is None
    found = [store.find("score", d, passes=1000 * LIGHT) for d in ITEMS]
    assert sum(f is None for f in found) < 4
    assert store.get("score", ITEMS[0], lambda: record(9), passes=1000 * LIGHT).values == record(0).values


def test_what_is_measured_again_is_compared(shipped, tmp_path):
    store = RunStore(tmp_path / "other", Archive(shipped, share=1))
    assert store.repeated() == {}
    store.save("score", ITEMS[0], record(0, 0.25))
    store.save("score", ITEMS[1], record(1))
    store.save("score", {"item": "new"}, record(5))  # nothing to compare with
    assert sorted(store.repeated()["score"]) == [0.0, 0.25]
    found = store.provenance()
    assert found["records_computed"] == 3
    assert sorted(found["records_repeated"]["score"]) == [0.0, 0.25]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}, 0.2),  # of 2.5
        ({"a": 0.1}, {"a": 0.3}, 0.2),
        ({"a": "x"}, {"a": "x"}, 0.0),
        ({"a": "x"}, {"a": "y"}, float("inf")),
        ({"a": [1.0]}, {"a": [1.0, 1.0]}, float("inf")),
        ({"a": 1.0}, {"b": 1.0}, float("inf")),
    ],
)
def test_how_far_two_measurements_lie_apart(shipped, tmp_path, ours, theirs, expected):
    first, second = RunStore(tmp_path / "first"), tmp_path / "second"
    first.save("x", {"item": 1}, Record(theirs))
    first.note_touched()
    pack([tmp_path / "first"], second / "x.zip")
    store = RunStore(tmp_path / "third", Archive(second, share=1))
    store.save("x", {"item": 1}, Record(ours))
    assert store.repeated()["x"] == pytest.approx([expected])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (
            torch.tensor([0, 51], dtype=torch.uint8),
            torch.tensor([0, 0], dtype=torch.uint8),
            0.1,
        ),  # 25.5 of 255
        (torch.tensor([True, True, False]), torch.tensor([True, False, False]), 0.5),
        (torch.tensor([False]), torch.tensor([False]), 0.0),
        (torch.tensor([1.0]), torch.tensor([2.0]), 0.0),  # where a search ended is not compared
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), float("inf")),
    ],
)
def test_images_and_masks_are_compared_too(tmp_path, ours, theirs, expected):
    first = RunStore(tmp_path / "first")
    first.save("x", {"item": 1}, Record({}, {"t": theirs}))
    first.note_touched()
    pack([tmp_path / "first"], tmp_path / "shipped" / "x.zip")
    store = RunStore(tmp_path / "second", Archive(tmp_path / "shipped", share=1))
    store.save("x", {"item": 1}, Record({}, {"t": ours}))
    assert store.repeated()["x"] == pytest.approx([expected])


def test_only_what_the_last_run_asked_for_is_packed(tmp_path):
    first = RunStore(tmp_path / "run")
    for n, decides in enumerate(ITEMS):
        first.save("image", decides, record(n))
    again = RunStore(tmp_path / "run")
    again.find("image", ITEMS[5])
    again.note_touched()
    assert pack([tmp_path / "run"], tmp_path / "x.zip") == 1
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        names = archive.namelist()
    assert sorted(n.rsplit(".")[-1] for n in names) == ["json", "safetensors"]


def test_a_record_is_packed_once_and_the_first_file_counts(shipped, tmp_path):
    names = zipfile.ZipFile(shipped / "one.zip").namelist()
    assert pack([tmp_path / "run"], tmp_path / "x.zip", without=names[:2]) == len(ITEMS) - 1
    assert zipfile.ZipFile(tmp_path / "x.zip").namelist() == names[2:]
    other = RunStore(tmp_path / "second")
    other.save("score", ITEMS[0], record(7))
    other.note_touched()
    pack([tmp_path / "second"], shipped / "two.zip")
    assert RunStore(tmp_path / "r", Archive(shipped)).find("score", ITEMS[0]).values == record(0).values


def test_no_record_is_shipped_twice():
    names = [name for path in SHIPPED.glob("*.zip") for name in zipfile.ZipFile(path).namelist()]
    assert names
    assert len(names) == len(set(names))


def test_the_same_records_make_the_same_file(shipped, tmp_path):
    pack([tmp_path / "run"], tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (shipped / "one.zip").read_bytes()


def test_an_unpacked_archive_is_a_run_directory(shipped, tmp_path):
    zipfile.ZipFile(shipped / "one.zip").extractall(tmp_path / "back" / "records")
    store = RunStore(tmp_path / "back")
    assert all(store.find("score", d).values == record(n).values for n, d in enumerate(ITEMS))


def test_mistakes_cost_one_line(tmp_path, shipped):
    with pytest.raises(DoriError, match="no directory of records at"):
        open_archive(tmp_path / "nowhere", share=0, salt="")
    assert open_archive("none", share=0, salt="") is None
    (shipped / "two.zip").write_bytes(b"not a zip file")
    with pytest.raises(DoriError, match=r"two\.zip cannot be read"):
        RunStore(tmp_path / "r", Archive(shipped)).find("score", ITEMS[0])
    with pytest.raises(DoriError, match="holds no finished run"):
        pack([tmp_path / "nowhere"], tmp_path / "x.zip")
    (tmp_path / "run" / TOUCHED).write_text(json.dumps(["score/gone"]))
    with pytest.raises(DoriError, match="score/gone is missing"):
        pack([tmp_path / "run"], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
