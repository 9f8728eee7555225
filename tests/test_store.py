"""Records survive, are found again, and are computed once."""

import json

import pytest
import torch

from dori.errors import DoriError
from dori.store import Record, RunStore, atomic, content_key


def test_a_record_is_found_again_with_its_tensors(tmp_path):
    decides = {"model": "m", "seed": 1}
    RunStore(tmp_path).save("stage", decides, Record({"score": 0.5}, {"x": torch.arange(4)}))
    found = RunStore(tmp_path).find("stage", dict(reversed(decides.items())))
    assert found.values == {"score": 0.5}
    assert torch.equal(found.tensors["x"], torch.arange(4))


def test_whatever_decides_the_result_is_in_the_key():
    assert content_key({"seed": 1}) != content_key({"seed": 2})
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})


def test_a_broken_computation_leaves_the_others_and_computes_no_item_twice(tmp_path):
    calls = []

    def compute(item):
        if item == 2 and calls.count(2) == 0:
            calls.append(item)
            raise KeyboardInterrupt
        calls.append(item)
        return Record({"item": item})

    def run():
        store = RunStore(tmp_path)
        return [store.get("s", {"item": i}, lambda i=i: compute(i)).values["item"] for i in range(4)]

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == [0, 1, 2, 3]
    assert calls == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("damage", ["json", "tensors", "no tensors"])
def test_a_damaged_record_is_computed_again(tmp_path, damage):
    store = RunStore(tmp_path)
    store.save("s", {"i": 1}, Record({"a": 1}, {"x": torch.zeros(100)}))
    json_file, tensor_file = next(tmp_path.rglob("*.json")), next(tmp_path.rglob("*.safetensors"))
    if damage == "json":
        json_file.write_text(json_file.read_text()[:20])
    elif damage == "tensors":
        tensor_file.write_bytes(tensor_file.read_bytes()[:50])
    else:
        tensor_file.unlink()
    assert store.find("s", {"i": 1}) is None


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def write():
        with atomic(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_provenance_names_versions_machine_and_time(tmp_path):
    found = json.loads(json.dumps(RunStore(tmp_path).provenance(model="tiny")))
    assert found["versions"]["torch"]
    assert found["machine"]["cores"] > 0
    assert found["wall_seconds"] >= 0
    assert found["model"] == "tiny"


def test_a_run_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DoriError, match="cannot be made"):
        RunStore(tmp_path / "file" / "run")
