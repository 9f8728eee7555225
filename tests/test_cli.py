"""Bad input costs one line on stderr and exit code 2; good input writes the files of contract 4."""

import functools
import json
import shutil

import pandas as pd
import pytest
import torch
from conftest import one_line

from dori.cli import main
from dori.model import TextToImageModel


@pytest.fixture
def run(command):
    """Call `dori evaluate`."""
    return functools.partial(command, "evaluate")


SKIPPED = ("line 8: id 'i0' appears twice", "line 9: empty prompt", "3.png: not a readable image")


def test_evaluate_writes_results_summary_and_provenance(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert len(table) == 6 * 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["threshold"] == 0.7
    assert summary["by_kind"]["verbatim"]["mr"]["n"] == 2
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert found["versions"]["torch"]
    assert (found["processes"], found["dtype"]) == (1, "float32")
    assert "MR" in out


def test_evaluate_again_computes_nothing_and_says_the_same(run, tmp_path, monkeypatch):
    run()
    before = (tmp_path / "run" / "results.csv").read_bytes(), (tmp_path / "run" / "summary.json").read_bytes()
    monkeypatch.setattr(TextToImageModel, "sample", None)
    assert run()[0] == 0
    assert before == (
        (tmp_path / "run" / "results.csv").read_bytes(),
        (tmp_path / "run" / "summary.json").read_bytes(),
    )


def test_seeds_steps_and_guidance_override_the_preset(run, tmp_path):
    assert run(seeds=1, steps=3, guidance=1)[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["seeds"], summary["steps"], summary["guidance_scale"]) == (1, 3, 1.0)


def test_a_missing_benchmark(run, tmp_path):
    assert "none.csv" in one_line(run(benchmark=tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; expected a header with id, prompt, image"),
        ("id,prompt,image\n", "has a header and no rows"),
        ("id,words,image\na,b,c\n", "no column prompt; it has id, words, image"),
    ],
)
def test_an_empty_or_odd_benchmark(run, tmp_path, text, said):
    path = tmp_path / "odd.csv"
    path.write_text(text)
    assert said in one_line(run(benchmark=path)).split(str(path))[1]


def test_bad_rows_cost_a_line_each_and_the_others_go_on(run, benchmark_csv, tmp_path):
    lines = benchmark_csv.read_text().splitlines()
    benchmark_csv.write_text("\n".join([*lines, lines[1], lines[2].replace("i1,noon vesta", "i9,")]) + "\n")
    (benchmark_csv.parent / "3.png").write_bytes(b"no picture")
    code, out, err = run()
    assert code == 0
    assert "3 rows skipped" in " ".join(out.split())
    for reason, line in zip(SKIPPED, err.splitlines(), strict=True):
        assert line.startswith("dori: ")
        assert reason in line
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["n"], summary["skipped"]["n"]) == (5, 3)
    assert [row["id"] for row in summary["skipped"]["rows"]] == ["i0", "i9", "i3"]
    assert set(pd.read_csv(tmp_path / "run" / "results.csv")["id"]) == {"i0", "i1", "i2", "i4", "i5"}


def test_a_benchmark_without_a_readable_image(run, benchmark_csv):
    for image in benchmark_csv.parent.glob("*.png"):
        image.write_bytes(b"no picture")
    code, _, err = run()
    assert code == 2
    assert "none of 6 rows can be used" in err


def test_a_directory_of_another_command_is_refused(run, command):
    assert run()[0] == 0
    assert "holds the results of `dori evaluate`" in one_line(command("attack"))


def test_a_model_that_is_not_here(run, tmp_path):
    assert "is not here" in one_line(run(model=tmp_path / "none"))


def test_a_model_without_unet(run, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "unet")
    assert "no UNet" in one_line(run(model=tmp_path / "m"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(run, tiny_dir, tmp_path, part):
    shutil.copytree(tiny_dir, tmp_path / "m")
    file = next((tmp_path / "m" / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole safetensors file" in one_line(run(model=tmp_path / "m"))


def test_weights_of_another_shape(run, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "m")
    config = tmp_path / "m" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 5'))
    assert "cannot be loaded" in one_line(run(model=tmp_path / "m"))


def test_a_pickle_is_refused(run, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    assert "not read" in one_line(run(model=tmp_path / "model.ckpt"))


def test_an_unknown_preset(run):
    assert "unknown preset 'huge'" in one_line(run(preset="huge"))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta"])
def test_an_unknown_device(run, device):
    assert "unknown device" in one_line(run(device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent(run):
    assert "asked for" in one_line(run(device="cuda"))


@pytest.mark.parametrize(
    "options", [{"seeds": "many"}, {"seeds": 0}, {"steps": 5000}, {"out": None}, {"colour": "red"}]
)
def test_wrong_options(run, options):
    one_line(run(**options))


def test_an_unknown_command(capsys):
    assert main(["evalute"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_descriptor_that_is_not_here(run, monkeypatch, tmp_path):
    from dori.metrics.copy import load_descriptor

    monkeypatch.setattr("dori.study.load_descriptor", load_descriptor)
    assert "none.pt" in one_line(run(descriptor=tmp_path / "none.pt"))


def test_a_run_directory_that_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in one_line(run(out=tmp_path / "file"))
