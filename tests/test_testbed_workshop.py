"""`dori testbed train` and `cure`: who starts from what, on which device, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import one_line
from torch import nn

from dori.cli import main
from dori.errors import DoriError
from dori.experiments.curing import SETTINGS
from dori.testbed import autoencoder, denoiser, descriptor, text
from dori.testbed.painter import paint
from dori.testbed.recipe import Recipe
from dori.testbed.train import Workshop
from dori.training import Fit


def test_unknown_part_is_named(tmp_path):
    with pytest.raises(DoriError, match="unknown part 'unet'; the parts are tokenizer"):
        Workshop(tmp_path).make("unet")


def test_model_and_twin_start_from_one_trunk(tmp_path, monkeypatch):
    starts = []

    def moved(stage, unet, *_, **__):
        starts.append({k: v.clone() for k, v in unet.state_dict().items()})
        with torch.no_grad():
            for p in unet.parameters():
                p.add_(1)
        return unet

    monkeypatch.setattr(denoiser, "train", moved)
    monkeypatch.setattr(Workshop, "pairs", lambda self, memorized: None)
    workshop = Workshop(tmp_path, Recipe(unet_channels=(16,) * 4))
    for part in ("trunk", "model", "twin"):
        workshop.make(part)
    _, model, twin = starts
    trunk = workshop.trunk.state_dict()
    assert all(torch.equal(trunk[k], model[k]) and torch.equal(trunk[k], twin[k]) for k in trunk)


class _Placed(Fit):
    """A training of one step on a device that holds no numbers: is everything on it?"""

    def __init__(self, *arguments, **more):
        self.module, self.loss = arguments[1], arguments[2]

    def run(self):
        loss, _ = self.loss(0, np.random.default_rng(0))
        assert loss.device.type == "meta"
        assert {p.device.type for p in self.module.parameters()} == {"meta"}
        return self.module.to_empty(device="cpu")


SMALL = Recipe(
    vae_channels=(8, 8), vae_batch=2, clip_batch=16, descriptor_batch=16, descriptor_dim=8, descriptor_width=8
)


@pytest.mark.parametrize("part", ["vae", "decoder", "clip", "descriptor"])
def test_a_part_is_trained_on_the_device_asked_for_and_comes_back(part, tmp_path, monkeypatch):
    for module in (autoencoder, text, descriptor):
        monkeypatch.setattr(module, "Fit", _Placed)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0)  # there is no number to be had
    images, table = paint(1, range(16))
    if part == "vae":
        found = autoencoder.train(images, SMALL, tmp_path, "meta")
    elif part == "decoder":
        monkeypatch.setattr(nn.Module, "cpu", lambda self: self.to_empty(device="cpu"))
        found = autoencoder.polish(autoencoder.build(SMALL), images, SMALL, tmp_path, "meta")
    elif part == "clip":
        tokenizer = text.train_tokenizer(list(table["caption"]), Recipe(vocabulary=300))
        titled = images[:4], ["the skoath velund"] * 4
        found = text.train_clip((images, table), titled, tokenizer, SMALL, tmp_path, "meta")
    else:  # the contrast picks entries by their values
        monkeypatch.setattr(descriptor, "info_nce", lambda scores, labels, _: (scores * labels).sum())
        found = descriptor.train(images, np.repeat([0, 1], 8), SMALL, tmp_path, "meta")
    assert {p.device.type for p in found.parameters()} == {"cpu"}


def test_a_workshop_hands_its_device_to_every_training(tmp_path, monkeypatch):
    """Each part that is trained is asked for with it."""
    asked = []

    def noted(*arguments, device=None, **_):
        asked.append(device or arguments[-1])
        raise InterruptedError

    for module, name in (
        (autoencoder, "train"),
        (autoencoder, "polish"),
        (text, "train_clip"),
        (descriptor, "train"),
        (denoiser, "train"),
    ):
        monkeypatch.setattr(module, name, noted)
    small = Recipe(regular_images=2, catalogue_images=2, descriptor_captions=1, vae_channels=(8, 8))
    autoencoder.build(small).save_pretrained(tmp_path / "decoder's" / "vae")
    for part in ("vae", "decoder", "clip", "descriptor", "trunk"):
        workshop = Workshop(tmp_path / ("decoder's" if part == "decoder" else part), small, "cuda:3")
        monkeypatch.setattr(workshop, "pairs", lambda memorized: None)
        with pytest.raises(InterruptedError):
            workshop.make(part)
    assert asked == ["cuda:3"] * 5


@pytest.mark.parametrize(("device", "said"), [("gpu", "unknown device 'gpu'"), ("cuda:99", "asked for")])
def test_a_device_that_is_not_there_is_one_line(device, said, tmp_path, capsys):
    code = main(["testbed", "train", f"--device={device}", f"--run-dir={tmp_path / 'run'}"])
    assert said in one_line((code, *capsys.readouterr()))
    assert not (tmp_path / "run").exists()


def test_an_unknown_defence_to_train_is_one_line(tmp_path, capsys):
    code = main(["testbed", "cure", "--only=nope", f"--run-dir={tmp_path / 'run'}", f"--out={tmp_path}"])
    said = one_line((code, *capsys.readouterr()))
    assert "unknown defence 'nope'" in said
    assert all(name in said for name in SETTINGS)
    assert not (tmp_path / "run").exists()
