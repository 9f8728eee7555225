"""The commands on small SDXL and SD3 directories, from prompts to a mended model that loads."""

import json

import pandas as pd
import pytest
from pipelines import make_sd3, make_sdxl

from dori.model import TextToImageModel


@pytest.fixture(scope="module", params=[make_sdxl, make_sd3], ids=["sdxl", "sd3"])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param.__name__
    request.param().save_pretrained(path)
    settings = {"guidance_scale": 3.0, "num_inference_steps": 3, "image_size": 16}
    (path / "dori.json").write_text(json.dumps(settings))
    return path


def test_evaluate_and_attack(command, directory, tmp_path):
    assert command("evaluate", model=directory, seeds=1, out=tmp_path / "e")[0] == 0
    assert len(pd.read_csv(tmp_path / "e" / "results.csv")) == 6
    code, _, err = command("attack", model=directory, seeds=1, steps=[1], batch=1, out=tmp_path / "a")
    assert (code, err) == (0, "")
    found = pd.read_csv(tmp_path / "a" / "results.csv")
    assert len(found) > 0
    assert found["score"].notna().all()


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
