"""A run survives a NaN, a full disk, SIGKILL at any point, and company in its directory."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import one_line
from safetensors import SafetensorError

from dori import store
from dori.benchmark import load_benchmark
from dori.cli import main
from dori.drawing import noise_seed
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.store import Record, RunStore

ROOT = Path(__file__).parents[1]
FILES = ("results.csv", "summary.json")


def same(one: Path, other: Path) -> bool:
    """Whether two runs say the same but for the last digits, which depend on who was in a batch with whom."""
    tables = [pd.read_csv(run / "results.csv") for run in (one, other)]
    summaries = [pd.json_normalize(json.loads((run / "summary.json").read_text())) for run in (one, other)]
    for pair in (tables, summaries):
        pd.testing.assert_frame_equal(*pair, atol=1e-5, rtol=1e-5)
    return True


def results(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text() for name in FILES}


@pytest.fixture
def nan_for(monkeypatch):
    """Make the model give NaN for an item's images."""

    def patch(item: str) -> None:
        sample, bad = TextToImageModel.sample, {noise_seed(0, item, k) for k in range(8)}

        def broken(model, embeds, seeds, **options):
            images = sample(model, embeds, seeds, **options)
            images[[n for n, seed in enumerate(seeds) if seed in bad]] = torch.nan
            return images

        monkeypatch.setattr(TextToImageModel, "sample", broken)

    return patch


@pytest.mark.parametrize("name", ["evaluate", "attack"])
def test_a_nan_in_one_item_leaves_that_item_out_and_the_others_go_on(command, nan_for, tmp_path, name):
    options = {"steps": 2, "seeds": 2}
    assert command(name, out=tmp_path / "whole", **options)[0] == 0
    nan_for("i1")
    code, out, err = command(name, **options)
    assert code == 0, err
    assert "1 rows skipped" in " ".join(out.split())
    assert err == "dori: i1: an image is not finite; left out\n"
    table, whole = (pd.read_csv(tmp_path / run / "results.csv") for run in ("run", "whole"))
    pd.testing.assert_frame_equal(table, whole[whole["id"] != "i1"].reset_index(drop=True))
    summary, before = (json.loads((tmp_path / r / "summary.json").read_text()) for r in ("run", "whole"))
    assert summary["n"] == before["n"] - 1
    assert summary["skipped"]["rows"] == [{"id": "i1", "reason": "an image is not finite"}]
    first = results(tmp_path / "run")
    assert command(name, **options)[0] == 0
    assert results(tmp_path / "run") == first
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["records_computed"] == 0


def test_a_nan_in_a_score_is_no_image_that_is_not_replicated(command, descriptor, monkeypatch, tmp_path):
    embed = type(descriptor).embed

    def broken(self, images):
        return embed(self, images) * (torch.nan if len(images) == 1 and float(images.sum()) in sums else 1)

    assert command("evaluate")[0] == 0
    bench = load_benchmark(tmp_path / "bench" / "benchmark.csv")
    sums = {float(bench.images(["i2"]).sum())}
    monkeypatch.setattr(type(descriptor), "embed", broken)
    code, _, err = command("evaluate", out=tmp_path / "again")
    assert (code, err) == (0, "dori: i2: a score is not finite; left out\n")


def test_a_model_that_gives_nothing_but_nan_is_one_line(command, nan_for):
    nan_for("i1")
    assert "none of 1 rows can be used: an image is not finite" in command("evaluate", id="i1")[2]


def test_a_gpu_whose_memory_is_full_is_one_line(command, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has …")

    monkeypatch.setattr(TextToImageModel, "sample", full)
    line = one_line(command("evaluate"))
    assert "the GPU's memory is full: --dtype bfloat16" in line
    assert "what was written before is kept" in line


class Full:
    """A disk that is full after so many files."""

    def __init__(self, monkeypatch, room: int) -> None:
        self.room, write, save = room, Path.write_text, store.save_file

        def write_text(path, *args, **options):
            self.take(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)))
            return write(path, *args, **options)

        def save_file(tensors, path):
            self.take(SafetensorError("I/O error: No space left on device (os error 28)"))
            return save(tensors, path)

        monkeypatch.setattr(Path, "write_text", write_text)
        monkeypatch.setattr(store, "save_file", save_file)

    def take(self, error: Exception) -> None:
        self.room -= 1
        if self.room < 0:
            raise error


@pytest.mark.parametrize("room", [0, 1, 2, 3, 9, 27, 28])
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_when_there_is_room(
    command, monkeypatch, tmp_path, room
):
    assert command("evaluate", out=tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        Full(patch, room)
        assert "No space left on device" in one_line(command("evaluate"))
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert command("evaluate")[0] == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small tmpfs; the test above plays a full disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_small_disk_is_one_line_and_what_it_holds_is_whole(command, small_disk, tmp_path):
    line = one_line(command("evaluate", out=small_disk / "run", preset="full", seeds=10, steps=2))
    assert "No space left on device" in line
    assert not list(small_disk.rglob("*.tmp"))
    records = list((small_disk / "run").rglob("records/*/*.json"))
    assert records
    for record in records:
        json.loads(record.read_text())
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert command("evaluate", preset="full", seeds=10, steps=2)[0] == 0


def started(command: str, model: Path, benchmark: Path, out: Path, *more: str, limit: int | None = None):
    """`dori COMMAND` in a process of its own; `limit`: the largest file it may write."""
    words = [f"--model={model}", f"--benchmark={benchmark}", f"--out={out}", "--preset=smoke", "--device=cpu"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "dori", command, *words, *more], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )  # fmt: skip


def test_a_file_that_cannot_grow_is_one_line(tiny_dir, benchmark_csv, tmp_path):
    """The system itself refuses to write an image's record: no stand-in."""
    process = started("evaluate", tiny_dir, benchmark_csv, tmp_path / "run", limit=700)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert err.startswith("dori: ")
    assert err.count("\n") == 1, err
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_killed_anywhere_says_the_same_in_the_end(tiny_dir, benchmark_csv, tmp_path, seed):
    options = [
        f"--model={tiny_dir}",
        f"--benchmark={benchmark_csv}",
        "--preset=smoke",
        "--device=cpu",
        "--steps=3",
    ]
    whole, run, rng = tmp_path / "whole", tmp_path / "run", random.Random(seed)
    assert main(["attack", *options, f"--out={whole}"]) == 0
    total = len(list(whole.rglob("records/*/*.json")))
    process = started("attack", tiny_dir, benchmark_csv, run, "--steps=3")
    until, wanted = time.monotonic() + 200, rng.randrange(1, total)
    while len(list(run.glob("records/*/*"))) < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(rng.random() / 500)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = len(list(run.rglob("records/*/*.json")))
    assert kept > 0
    assert main(["attack", *options, f"--out={run}"]) == 0
    assert same(run, whole)
    computed = json.loads((run / "provenance.json").read_text())["records_computed"]
    assert computed <= total - kept + 1  # one may be damaged


def test_two_runs_in_one_directory_say_what_one_says(tiny_dir, benchmark_csv, tmp_path):
    both = [started("evaluate", tiny_dir, benchmark_csv, tmp_path / "run") for _ in range(2)]
    for process in both:
        assert process.wait(timeout=200) == 0, process.stderr.read()
    options = [f"--model={tiny_dir}", f"--benchmark={benchmark_csv}", "--preset=smoke", "--device=cpu"]
    assert main(["evaluate", *options, f"--out={tmp_path / 'alone'}"]) == 0
    assert same(tmp_path / "run", tmp_path / "alone")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    for record in (tmp_path / "run").rglob("records/*/*.json"):
        json.loads(record.read_text())


def test_a_record_that_two_write_at_once_is_whole_for_a_third(tmp_path):
    """Writers and readers of one key: what is read is always the record, complete."""
    from concurrent.futures import ThreadPoolExecutor

    key, record = {"item": 1}, Record({"size": 10_000}, {"x": torch.arange(10_000)})
    RunStore(tmp_path).save("s", key, record)

    def write(_: int) -> None:
        own = RunStore(tmp_path)
        for _ in range(60):
            own.save("s", key, record)

    def read(_: int) -> set[bool]:
        own = RunStore(tmp_path)
        found = [own.find("s", key) for _ in range(120)]
        return {f is not None and f.values == record.values and f.tensors["x"].equal(record.tensors["x"])
                for f in found}  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, n) for n in range(2)]
        readers = [pool.submit(read, n) for n in range(2)]
        assert [w.result() for w in writers] == [None, None]
        assert set.union(*(r.result() for r in readers)) == {True}


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -100_000, -1])
def test_a_truncated_file_of_weights_is_one_line(command, tiny_dir, tmp_path, kept):
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    file = next((model / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:kept])
    assert "not a whole safetensors file" in one_line(command("evaluate", model=model))


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_units_are_one_line(command, tiny_model, tmp_path, kept):
    widths = {name: layer.out_features for name, layer in tiny_model.value_layers().items()}
    file = tmp_path / "units.safetensors"
    Units.of({name: range(0, width, 2) for name, width in widths.items()}, widths).save(file)
    file.write_bytes(file.read_bytes()[:kept])
    assert "units.safetensors" in one_line(command("attack", units=file, steps=1))
