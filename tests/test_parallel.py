"""Two processes of `accelerate launch` do what one does, also where one of them is killed half-way."""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import training_rows, write_benchmark
from safetensors.torch import load_file

from dori import parallel
from dori.cli import main
from dori.errors import DoriError

LAUNCH = (
    "accelerate.commands.launch --multi_gpu --num_machines=1 --num_processes=2 --mixed_precision=no "
    "--dynamo_backend=no"
)
ATTACK = ["attack", "--steps=3", "--batch=2", "--init=random"]
EVALUATION, LOCALITY = ["evaluate", "--clip=bundled", "--fid=clip"], ["locality", "--starts=1"]
TRAINING = ["mitigate", "--method=adversarial", "--set=epochs=2", "--set=steps=10", "--set=at-once=2",
            "--set=retain=4", "--set=lr=1e-3", "--set=search.steps=2"]  # fmt: skip


def options(tiny_dir: Path, benchmark_csv: Path, out: Path) -> list[str]:
    return [
        f"--model={tiny_dir}",
        f"--benchmark={benchmark_csv}",
        f"--out={out}",
        "--preset=smoke",
        "--device=auto",
    ]


def launched(arguments: list[str]) -> subprocess.Popen:
    """Two processes of one thread each."""
    command = [sys.executable, "-m", *LAUNCH.split(), f"--main_process_port={free_port()}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def scores(run: Path, *by: str) -> pd.Series:
    return pd.read_csv(run / "results.csv").set_index(["id", *by, "seed"])["score"]


def workers(launcher: int) -> list[int]:
    """Children of the launcher."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in found]


def test_two_processes_attack_as_one_and_go_on_after_a_kill(tiny_dir, benchmark_csv, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main([*ATTACK, *options(tiny_dir, benchmark_csv, alone)]) == 0
    process = launched(["-m", "dori", *ATTACK, *options(tiny_dir, benchmark_csv, both)])
    until = time.monotonic() + 120
    while (
        not list(both.glob("records/attack/*.json")) and process.poll() is None and time.monotonic() < until
    ):
        time.sleep(0.02)
    one_of, *others = workers(process.pid)
    assert len(others) == 1
    os.kill(one_of, signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0, said
    assert not (both / "summary.json").exists()
    again = launched(["-m", "dori", *ATTACK, *options(tiny_dir, benchmark_csv, both)])
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert said.count("records computed in this run") == 1  # one of the two speaks
    assert scores(both).index.tolist() == scores(alone).index.tolist()
    pd.testing.assert_series_equal(scores(both), scores(alone), atol=1e-3, rtol=0)
    one, two = (json.loads((run / "summary.json").read_text()) for run in (alone, both))
    assert one["by_kind"].keys() == two["by_kind"].keys()
    assert one["n"] == two["n"]
    said = json.loads((both / "provenance.json").read_text())
    assert said["processes"] == 2
    assert {"loading", "attack", "image", "score"} <= said["stage_seconds"].keys()
    assert len(list((both / "seconds").glob("*.json"))) == 4, "two processes, and two more"


@pytest.fixture(scope="module")
def runs(tiny_dir, tmp_path_factory) -> dict[str, list[Path]]:
    """Run directories by command: of one process, and of two that do all commands in turn."""
    folder = tmp_path_factory.mktemp("parallel")
    bench, training = write_benchmark(folder / "bench"), training_rows(folder / "training")
    found, both = {}, []
    for words, rows in ((EVALUATION, bench), (TRAINING, training), (LOCALITY, bench)):
        found[words[0]] = one, two = [folder / f"{words[0]}-{n}" for n in (1, 2)]
        assert main([*words, *options(tiny_dir, rows, one)]) == 0
        both.append([*words, *options(tiny_dir, rows, two)])
    (folder / "commands.json").write_text(json.dumps(both))
    process = launched([str(Path(__file__).with_name("in_turn.py")), str(folder / "commands.json")])
    said = " ".join(process.communicate(timeout=300)[0].split())
    assert process.returncode == 0, said
    assert said.count("records computed in this run") == 2, "evaluate and locality: one of the two speaks"
    return found


def test_two_processes_evaluate_as_one(runs):
    alone, both = runs["evaluate"]
    assert len(scores(alone)) == 12
    pd.testing.assert_series_equal(scores(both), scores(alone), atol=1e-3, rtol=0)
    one, two = (json.loads((run / "summary.json").read_text()) for run in (alone, both))
    assert one["by_kind"] == two["by_kind"]
    assert one["fidelity"]["fid"] == pytest.approx(two["fidelity"]["fid"], abs=1e-3)
    computed = json.loads((both / "provenance.json").read_text())["records_computed"]
    assert computed == 9, "half of 12 images and 6 scores"


def test_two_processes_train_as_one(runs, tiny_dir):
    alone, both = runs["mitigate"]
    assert json.loads((both / "provenance.json").read_text())["processes"] == 2
    curves = [
        pd.read_csv(run / "training.csv")[["step", "loss", "adversarial", "retain"]] for run in (alone, both)
    ]
    pd.testing.assert_frame_equal(*curves, atol=1e-3, rtol=0)
    before, one, two = (
        load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (tiny_dir, alone, both)
    )
    moved = sum(float((one[k] - before[k]).abs().sum()) for k in one)
    apart = sum(float((one[k] - two[k]).abs().sum()) for k in one)
    assert moved > 0
    assert apart < 0.01 * moved


def test_two_processes_locate_as_one(runs):
    alone, both = runs["locality"]
    counts = [len(list(run.glob("records/*/*.json"))) for run in (alone, both)]
    assert counts[0] == counts[1] > 0
    tables = [pd.read_csv(run / "locality.csv") for run in (alone, both)]
    pd.testing.assert_frame_equal(*tables, atol=1e-2, rtol=0)
    pd.testing.assert_series_equal(scores(both, "trigger"), scores(alone, "trigger"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("items", [[], [1], [1, 2, 3, 4, 5]])
def test_shares_are_apart_and_leave_nothing_out(items, monkeypatch):
    found = []
    for k in range(3):
        monkeypatch.setattr(parallel, "number", lambda k=k: k)
        monkeypatch.setattr(parallel, "count", lambda: 3)
        found += parallel.mine(items)
    assert sorted(found) == items


@pytest.mark.parametrize("done", [{0, 2, 4, 6}, set(range(8)), set()])
def test_what_is_missing_is_shared_evenly(done, monkeypatch):
    """Also where the process that did its share looks last, when others have begun."""
    monkeypatch.setattr(parallel, "count", lambda: 2)
    seen, sent, shares, items = {f"i{n}" for n in done}, [], [], [f"i{n}" for n in range(8)]
    monkeypatch.setattr(parallel, "_from_first", lambda places: sent.append(places) or sent[0])
    for k in range(2):
        monkeypatch.setattr(parallel, "number", lambda k=k: k)
        shares.append(parallel.missing(items, seen.__contains__))
        seen.update(shares[-1])
    assert sorted(shares[0] + shares[1]) == [i for n, i in enumerate(items) if n not in done]
    assert len(shares[0]) == len(shares[1])


def test_processes_wait_for_one_another_longer_than_torch_would(monkeypatch):
    asked = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "PartialState", lambda **options: asked.update(options) or "a group")
    assert parallel._state.__wrapped__() == "a group"
    assert asked["timeout"] >= datetime.timedelta(hours=1)


def test_more_processes_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 3)
    with pytest.raises(DoriError, match="3 processes for 2 rows a step"):
        parallel.rows_of(2)


def test_one_process_needs_no_group():
    assert parallel.count() == 1
    assert parallel.first()
    assert parallel.device() is None
    assert parallel.gathered([1, 2]) == [1, 2]
    assert torch.equal(parallel.summed(torch.ones(2)), torch.ones(2))
