"""`dori locality`: a record per image, the files of a run, and nothing computed twice."""

import json

import pandas as pd
from conftest import one_line

from dori import parallel
from dori.experiments.locality_levels import LEVELS


def test_triggers_of_each_image_are_compared_at_every_level(command, lenient, tmp_path):
    asked = {"id": ["i0", "i1"], "starts": 2}
    code, shown, err = command("locality", **asked)
    assert (code, err) == (0, "")
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["n"], set(summary["levels"])) == (2, set(LEVELS))
    assert summary["triggers"]["random"]["value"] == 1.0
    assert summary["impossible"] == {}
    table, levels = (pd.read_csv(run / f"{name}.csv") for name in ("results", "locality"))
    assert set(table["init"]) == {"random", "regular"}
    assert set(levels["image"]) == set(table["id"]) == {"i0", "i1"}
    assert set(levels["level"]) == set(LEVELS)
    for level in LEVELS:
        assert level in shown
    assert len(list(run.glob("records/locality/*.json"))) == 2
    before = (run / "summary.json").read_bytes()
    assert command("locality", **asked)[0] == 0
    assert json.loads((run / "provenance.json").read_text())["records_computed"] == 0
    assert (run / "summary.json").read_bytes() == before


def test_without_triggers_and_regular_prompts_there_are_figures_for_none(command, benchmark_csv, tmp_path):
    table = pd.read_csv(benchmark_csv)
    table[table["kind"] != "none"].to_csv(benchmark_csv, index=False)
    code, _, err = command("locality", starts=2, id="i1")
    assert code == 0
    assert err.startswith(
        "dori: weights (NeMo): not measured: NeMo compares with regular prompts: give --reg"
    )
    assert err.endswith("dori: no level: they compare triggers, and no image has two that bring it back\n")
    assert err.count("\n") == 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["n"], summary["searches"]) == (1, {"random": 2})
    assert summary["levels"]["embeddings"]["value"] is None
    assert list(summary["impossible"]) == ["weights (NeMo)"]


def test_a_directory_of_another_command_is_left_alone(command):
    assert command("evaluate", seeds=1, steps=1, id="i1")[0] == 0
    assert "holds the results of `dori evaluate`" in one_line(command("locality"))


def test_apart_a_process_is_one_of_one(monkeypatch):
    class Group:
        num_processes, process_index = 2, 1

    monkeypatch.setattr(parallel, "_state", Group)
    assert parallel.mine([1, 2, 3]) == [2]
    with parallel.apart():
        assert parallel.mine([1, 2, 3]) == parallel.missing([1, 2, 3], lambda _: False) == [1, 2, 3]
        parallel.wait()
    assert parallel.count() == 2
