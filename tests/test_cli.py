"""Bad input costs one line on stderr and exit code 2; good input writes the files of contract 4."""

import json
import shutil

import pandas as pd
import pytest
import torch

from dori.cli import main
from dori.model import TextToImageModel


@pytest.fixture
def run(capsys, monkeypatch, descriptor, tiny_dir, benchmark_csv, tmp_path):
    """Call `dori evaluate` with the tiny model and benchmark unless told otherwise: code, stdout, stderr."""
    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)

    def call(*more, **options):
        given = {
            "model": tiny_dir,
            "benchmark": benchmark_csv,
            "out": tmp_path / "run",
            "preset": "smoke",
            "device": "cpu",
        }
        arguments = [f"--{name}={value}" for name, value in {**given, **options}.items() if value is not None]
        code = main(["evaluate", *arguments, *more])
        return code, *capsys.readouterr()

    return call


def one_line(result):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("dori: ")
    assert err.count("\n") == 1, err
    return err


def test_evaluate_writes_results_summary_and_provenance(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert len(table) == 6 * 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["threshold"] == 0.7
    assert summary["by_kind"]["verbatim"]["mr"]["n"] == 2
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["versions"]["torch"]
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


@pytest.mark.parametrize("text", ["", "id,prompt,image\n", "id,caption,image\na,b,c\n"])
def test_an_empty_or_odd_benchmark(run, tmp_path, text):
    (tmp_path / "b.csv").write_text(text)
    assert "b.csv" in one_line(run(benchmark=tmp_path / "b.csv"))


def test_doubled_ids(run, benchmark_csv):
    lines = benchmark_csv.read_text().splitlines()
    benchmark_csv.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert "line 8: id 'i0' appears twice" in one_line(run())


def test_an_unreadable_image(run, benchmark_csv):
    (benchmark_csv.parent / "3.png").write_bytes(b"no picture")
    assert "3.png: not a readable image" in one_line(run())


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
