"""`dori mitigate` saves a plain diffusers directory that paints what the masks paint, whole or not at all."""

import functools
import json
import shutil

import pandas as pd
import pytest
import torch
from conftest import one_line
from diffusers import StableDiffusionPipeline

from dori.benchmark import load_benchmark
from dori.experiments.selections import reference_prompts
from dori.loading import read_defaults
from dori.mitigation.nemo import activation_statistics, activations, flagged
from dori.mitigation.units import Units, union
from dori.mitigation.wanda import Wanda, wanda
from dori.store import RunStore
from dori.study import PRESETS, Study

PLAIN = ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]
OURS = ["dori.json", "provenance.json", "units.safetensors"]
METHODS = {"nemo": {"z": 1.0}, "wanda": {"sparsity": 0.2, "steps": 2}}


@pytest.fixture
def run(command):
    """Call `dori mitigate`: by NeMo at a fixed z-score unless told otherwise."""
    return functools.partial(command, "mitigate", method="nemo")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mended"


def provenance(out):
    return json.loads((out / "provenance.json").read_text())


def paint(pipe):
    """Images by diffusers alone."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(3)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    return pipe(["dawn postcard", "red lake"], generator=noise, **options).images


@pytest.mark.parametrize("method", METHODS)
def test_diffusers_alone_paints_what_the_masks_paint(run, method, out, tiny_pipe):
    code, shown, err = run(method=method, out=out, **METHODS[method])
    assert (code, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == sorted(PLAIN + OURS)
    units = Units.load(out / "units.safetensors")
    assert str(units.count) in shown
    with units.applied(tiny_pipe.unet):
        masked = paint(tiny_pipe)
    torch.testing.assert_close(paint(StableDiffusionPipeline.from_pretrained(out)), masked, atol=1e-5, rtol=0)
    assert (paint(tiny_pipe) - masked).abs().max() > 1e-3


def test_what_is_saved_says_what_it_is(run, out, benchmark_csv, tiny_model):
    lines = benchmark_csv.read_text().splitlines()
    benchmark_csv.write_text("\n".join([*lines, lines[1]]) + "\n")
    code, _, err = run(z=1.0, out=out)
    assert code == 0
    assert "line 8: id 'i0' appears twice; left out" in err
    settings = json.loads((out / "dori.json").read_text())
    assert read_defaults(out, StableDiffusionPipeline.from_pretrained(out)) == tiny_model.defaults
    assert settings["name"] == "tiny, NeMo z > 1"
    found, units = provenance(out), Units.load(out / "units.safetensors")
    assert found["source"] == {"name": "tiny", "fingerprint": tiny_model.fingerprint}
    assert (found["command"], found["method"], found["prompts"]) == ("mitigate", "NeMo", 3)
    assert found["settings"]["z"] == 1.0
    assert found["units"] == {"count": units.count, "eligible": units.size, "density": units.density}
    assert found["skipped"]["n"] == 1


def test_nemo_switches_off_what_any_prompt_asks_for(run, out, benchmark_csv, tiny_model):
    run(z=1.0, kind="verbatim", out=out)
    bench = load_benchmark(benchmark_csv)
    statistics = activation_statistics(tiny_model, bench.select(kind="none").prompts())
    prompts = bench.select(kind="verbatim").prompts()
    each = [activations(tiny_model, tiny_model.encode_prompts([p])) for p in prompts]
    single = [flagged({n: a[0] for n, a in one.items()}, statistics, 1.0, 0) for one in each]
    assert Units.load(out / "units.safetensors") == union(single)


def test_one_prompt_can_be_mitigated_alone(run, out):
    assert run(z=1.0, id="i1", out=out)[0] == 0
    assert provenance(out)["prompts"] == 1
    assert "no row of id 'i7'" in one_line(run(z=1.0, id=["i1", "i7"], out=out))
    assert "no row of id 'i3'" in one_line(run(z=1.0, id="i3", out=out))  # a regular one


def test_nemo_looks_into_the_up_blocks_where_asked(run, out):
    run(z=1.0, up=True, out=out)
    assert any(name.startswith("up_blocks") for name in Units.load(out / "units.safetensors"))


@pytest.mark.parametrize("reference", ["", "regular"])
def test_wanda_pools_the_norms_of_all_prompts(run, out, benchmark_csv, tiny_model, reference):
    run(method="wanda", sparsity=0.2, steps=2, reference=reference or None, out=out)
    bench, setting = load_benchmark(benchmark_csv), Wanda(0.2, steps=2, reference=reference)
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    study = Study(tiny_model, memorized, regular, None, RunStore(out.parent / "run"), PRESETS["smoke"])
    embeds, others = (
        tiny_model.encode_prompts(prompts)
        for prompts in (memorized.prompts(), reference_prompts(study, memorized, setting))
    )
    (joint,) = wanda(tiny_model, embeds, settings=setting, reference_embeds=others, joint=True)
    assert Units.load(out / "units.safetensors").iou(joint) > 0.999  # rounding may turn a tie


def test_the_same_again_changes_nothing_and_another_setting_replaces_it(run, out):
    run(z=1.0, out=out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run(z=1.0, out=out)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run(z=0.5, out=out)[0] == 0
    assert provenance(out)["settings"]["z"] == 0.5
    assert [p.name for p in out.parent.iterdir() if "mended" in p.name] == ["mended"]


def test_neighbours_of_the_directory_are_left_alone(run, out):
    for name in ("mended.old", "mended.partial"):
        (out.parent / name).mkdir()
    run(z=1.0, out=out)
    run(z=0.5, out=out)
    assert sorted(p.name for p in out.parent.glob("mended*")) == ["mended", "mended.old", "mended.partial"]


@pytest.mark.parametrize("method", METHODS)
def test_a_crash_while_saving_leaves_no_half_model(run, method, out, monkeypatch):
    save = StableDiffusionPipeline.save_pretrained

    def half(pipe, path, **more):
        save(pipe, path, **more)
        (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "save_pretrained", half)
        code, _, err = run(method=method, out=out, **METHODS[method])
    assert code == 130
    assert "goes on from here" in err
    assert not out.exists()
    assert run(method=method, out=out, **METHODS[method])[0] == 0
    assert provenance(out)["records_computed"] == 0
    StableDiffusionPipeline.from_pretrained(out)


def test_two_at_once_are_refused_and_the_first_is_not_disturbed(run, out, monkeypatch):
    save, second = StableDiffusionPipeline.save_pretrained, []

    def busy(pipe, path, **more):
        second.append(run(z=0.5, out=out))
        save(pipe, path, **more)

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", busy)
    assert run(z=1.0, out=out)[0] == 0
    assert "another `dori mitigate` is making" in one_line(second[0])
    assert provenance(out)["settings"]["z"] == 1.0
    assert [p.name for p in out.parent.iterdir() if "mended" in p.name] == ["mended"]


def test_a_directory_of_others_is_left_alone(run, out, tiny_dir, tmp_path):
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    assert "is not empty and was not written by" in one_line(run(z=1.0, out=out))
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert "is the model that is to be mitigated" in one_line(run(z=1.0, out=tiny_dir))
    assert "is a file" in one_line(run(z=1.0, out=out / "thesis.txt"))


def test_the_mended_model_is_not_replaced_by_its_own_mending(run, out):
    run(z=1.0, out=out)
    assert "is the model that is to be mitigated" in one_line(run(z=0.5, model=out, out=out))


def test_an_empty_directory_is_taken(run, out):
    out.mkdir()
    assert run(z=1.0, out=out)[0] == 0


def test_the_saved_model_is_what_an_attack_with_its_units_attacks(run, command, out, tmp_path):
    run(method="wanda", out=out, **METHODS["wanda"])
    units = out / "units.safetensors"
    command("attack", steps="2", units=units, out=tmp_path / "units")
    command("attack", steps="2", model=out, out=tmp_path / "saved")
    tables = [pd.read_csv(tmp_path / name / "results.csv") for name in ("units", "saved")]
    pd.testing.assert_frame_equal(*tables)


def test_a_model_that_is_not_here_leaves_nothing(run, out, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert "is not here" in one_line(run(z=1.0, model=tmp_path / "none", out=out))
    assert sorted(tmp_path.iterdir()) == before


def test_prompts_need_no_images(run, out, benchmark_csv):
    for image in benchmark_csv.parent.glob("*.png"):
        image.unlink()
    assert run(z=1.0, out=out)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hope"}, "unknown method 'hope'; use nemo, wanda"),
        ({"set": "seeds=1"}, "use 2 noises or more"),
        ({"sparsity": 0.1}, "--sparsity is no setting of nemo"),
        ({"method": "wanda", "z": 1.0}, "--z is no setting of wanda"),
        ({"method": "wanda", "sparsity": 2}, "Wanda with sparsity 2.0"),
        ({"method": "wanda", "sparsity": 1e-6}, "finds nothing to switch off"),
        ({"kind": "odd"}, "no prompts of kind odd"),
        ({"regular": "none.csv"}, "none.csv"),
    ],
)
def test_wrong_options(run, out, options, message):
    assert message in one_line(run(out=out, **options))
    assert not out.exists()


def test_nemo_without_regular_prompts(run, out, benchmark_csv):
    table = pd.read_csv(benchmark_csv)
    table[table["kind"] != "none"].to_csv(benchmark_csv, index=False)
    assert "two regular captions" in one_line(run(z=1.0, out=out))
    shutil.copy(benchmark_csv, benchmark_csv.parent / "regular.csv")
    assert run(z=1.0, out=out, regular=benchmark_csv.parent / "regular.csv")[0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_cross_attention(run, out, method, no_attention_dir):
    line = one_line(run(method=method, model=no_attention_dir, out=out))
    assert "no such cross-attention layers" in line


def test_the_bundled_model_is_mitigated_in_seconds(run, out):
    assert run(z=1.0, model="testbed", benchmark="testbed", out=out)[0] == 0
    assert read_defaults(out, StableDiffusionPipeline.from_pretrained(out)).image_size == 64
