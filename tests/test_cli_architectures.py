"""The commands on small SDXL and SD3 directories, from prompts to a mended model that loads."""

import json

import pandas as pd
import pytest
from conftest import one_line
from pipelines import make_sd3, make_sdxl

from dori.experiments.locality_levels import LEVELS
from dori.model import TextToImageModel


@pytest.fixture(scope="module", params=[make_sdxl, make_sd3], ids=["sdxl", "sd3"])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param.__name__
    request.param().save_pretrained(path)
    settings = {"guidance_scale": 3.0, "num_inference_steps": 3, "image_size": 16}
    (path / "dori.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_evaluate_and_attack(command, directory, tmp_path, dtype):
    options = {"model": directory, "seeds": 1, "dtype": dtype}
    assert command("evaluate", **options, out=tmp_path / "e")[0] == 0
    drawn = pd.read_csv(tmp_path / "e" / "results.csv")
    assert (len(drawn), drawn["score"].notna().all()) == (6, True)
    code, _, err = command("attack", **options, steps=[1], batch=1, out=tmp_path / "a")
    assert (code, err) == (0, "")
    found = pd.read_csv(tmp_path / "a" / "results.csv")
    assert len(found) == 4
    assert found["score"].notna().all()
    assert (found["moved"] > 0).all()


def test_a_search_for_words_says_why_it_cannot(command, directory):
    assert "words for one text encoder" in one_line(command("attack", model=directory, method="unlearndiff"))


def test_locality_measures_what_the_architecture_has(command, directory, lenient, tmp_path):
    """In half precision, which more can go wrong in."""
    code, shown, err = command("locality", model=directory, id=["i0", "i1"], starts=2, dtype="float16")
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped"]["n"] == 0
    measured = [level for level in LEVELS if summary["levels"][level]["value"] is not None]
    lacking = list(LEVELS[-2:]) if "sd3" in directory.name else []  # text and image share one attention
    assert measured == [level for level in LEVELS if level not in lacking]
    assert list(summary["impossible"]) == lacking
    assert err.count("\n") == len(lacking)
    assert not lacking or "one block at a time: not measured: model" in err
    for level in LEVELS:
        assert level in shown


@pytest.mark.parametrize(
    ("method", "options"), [("nemo", {"z": 1.0}), ("wanda", {"sparsity": 0.2, "steps": 1})]
)
def test_a_mitigated_model_is_a_plain_directory_of_the_same_kind(
    command, directory, tmp_path, method, options
):
    out = tmp_path / "mended"
    code, _, err = command("mitigate", method=method, model=directory, out=out, **options)
    assert (code, err) == (0, "")
    before, after = (TextToImageModel.load(path, device="cpu") for path in (directory, out))
    layers = before.value_layers() if method == "nemo" else before.ffn_layers()
    changed = [n for n, p in before.unet.named_parameters() if not p.equal(after.unet.get_parameter(n))]
    assert changed
    assert {name.rpartition(".")[0] for name in changed} <= set(layers)
    assert type(after.pipe) is type(before.pipe)
    assert after.defaults == before.defaults


BRIEF = [f"{name}=1" for name in ("epochs", "steps", "search.steps")]
TRAININGS = {
    "adversarial": [*BRIEF, "at-once=2", "retain=2"],
    "adversarial-lora": [*BRIEF, "at-once=2", "retain=2"],
    "esd": ["steps=1"],
    "concept-ablation": ["steps=1"],
    "siss": ["steps=1"],
}


@pytest.mark.parametrize("method", TRAININGS)
def test_a_training_saves_a_model_of_the_same_kind_or_says_why_not(
    command, directory, training_csv, tmp_path, method
):
    pd.read_csv(training_csv).assign(paraphrases="red boat|blue boat").to_csv(training_csv, index=False)
    options = {"model": directory, "benchmark": training_csv, "set": TRAININGS[method]}
    if (method, directory.name) == ("esd", "make_sd3"):  # it trains cross-attention alone, as published
        assert "no cross-attention that could be told another text" in one_line(
            command("mitigate", method=method, **options)
        )
        return
    assert command("mitigate", method=method, **options)[0] == 0
    before, after = (TextToImageModel.load(path, device="cpu") for path in (directory, tmp_path / "run"))
    assert type(after.pipe) is type(before.pipe)
    assert after.fingerprint != before.fingerprint
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["unet_rows"] > 0
