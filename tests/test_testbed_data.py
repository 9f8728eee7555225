"""What is shipped under data/testbed: whole, small, of the promised shape, and behaving as the chapters
need."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dori.benchmark import load_benchmark
from dori.metrics.copy import load_descriptor, similarity
from dori.model import TextToImageModel
from dori.testbed import dataset
from dori.testbed.painter import paint
from dori.testbed.paths import TESTBED
from dori.testbed.recipe import Recipe

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def descriptor():
    return load_descriptor("bundled")


@pytest.fixture(scope="module")
def top():
    verbatim = load_benchmark("testbed").select(kind="verbatim")
    return verbatim.select(copies=verbatim.table["copies"].max())


def _scores(model, descriptor, prompts, *, guidance_scale=None, seeds=2):
    """Copy scores of `seeds` images of each prompt against its own image, (n, seeds)."""
    embeds = model.encode_prompts(prompts.prompts()).repeat_interleave(seeds, 0)
    images = model.sample(embeds, range(len(embeds)), guidance_scale=guidance_scale, num_inference_steps=20)
    own = descriptor.embed(prompts.images(size=64)).repeat_interleave(seeds, 0)
    return (descriptor.embed(images) * own).sum(1).view(-1, seeds)


def test_files_match_their_hashes():
    lines = (TESTBED / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    present = {p.relative_to(TESTBED).as_posix() for p in TESTBED.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert present == set(listed)
    wrong = [n for n, d in listed.items() if hashlib.sha256((TESTBED / n).read_bytes()).hexdigest() != d]
    assert not wrong


def test_weights_are_safetensors_and_at_most_60_megabytes():
    """All that the testbed trains; what chapter 4 trains from it comes beside it."""
    sizes = {
        p: p.stat().st_size
        for p in TESTBED.rglob("*")
        if p.suffix in (".safetensors", ".bin", ".pt", ".ckpt")
    }
    assert {p.suffix for p in sizes} == {".safetensors"}
    mended = {p for p in sizes if p.is_relative_to(TESTBED / "cured")}
    assert sum(size for p, size in sizes.items() if p not in mended) <= 60 * MEGABYTE
    assert sum(sizes[p] for p in mended) <= 50 * MEGABYTE


@pytest.mark.parametrize("name", ["model", "twin"])
def test_plain_diffusers_loads_the_pipeline_with_sd1_topology(name):
    pipe = StableDiffusionPipeline.from_pretrained(TESTBED / name, safety_checker=None)
    config = pipe.unet.config
    assert list(config.down_block_types) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert list(config.up_block_types) == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert config.layers_per_block == 2
    names = [n for n, _ in pipe.unet.named_modules()]
    assert sum(n.endswith("attn2.to_v") and not n.startswith("up") for n in names) == 7
    assert sum(n.endswith("ff.net.2") for n in names) == 16
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        "two red kites by the sea at dusk", num_inference_steps=2, height=64, width=64, output_type="np"
    ).images
    assert out.shape == (1, 64, 64, 3)
    assert np.isfinite(out).all()


def test_model_and_twin_share_everything_but_the_unet():
    model, twin = (TextToImageModel.load(name, device="cpu") for name in ("testbed", "twin"))
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(model, part).parameters(), getattr(twin, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.unet.parameters(), twin.unet.parameters(), strict=True)
    )


def test_benchmarks_follow_the_recipe():
    memorized, regular = pd.read_csv(TESTBED / "memorized.csv"), pd.read_csv(TESTBED / "regular.csv")
    copies = memorized[memorized["kind"] == "verbatim"]["copies"].value_counts().to_dict()
    assert copies == Recipe().copies
    assert copies[max(copies)] >= 32
    assert min(copies.values()) >= 8
    assert len(regular) >= 400
    assert set(regular["kind"]) == {"none"}
    assert memorized[memorized["kind"] == "template"].groupby("group").size().min() >= 2
    for image in [*memorized["image"], *regular["image"]]:
        assert Image.open(TESTBED / image).size == (64, 64)


def test_the_painter_still_paints_the_shipped_pictures():
    rows = [0, 40, 63, 70]
    images, table = dataset.memorized(Recipe())
    for row in rows:
        shipped = np.asarray(Image.open(TESTBED / table["image"][row]))
        assert np.abs(shipped.astype(int) - images[row]).max() <= 2  # other processors round otherwise
    assert table["prompt"].tolist() == pd.read_csv(TESTBED / "memorized.csv")["prompt"].tolist()


def test_no_held_out_picture_is_in_the_training_index(descriptor):
    index = load_file(TESTBED / "descriptor" / "train_index.safetensors")["descriptors"].float()
    trained, _ = paint(dataset.REGULAR, range(4))
    pixels = torch.from_numpy(trained).permute(0, 3, 1, 2).float() / 255
    assert similarity(descriptor.embed(pixels), index).amax(1).min() > 0.995
    held_out = descriptor.embed(load_benchmark("regular").images(size=64))
    assert similarity(held_out, index).amax(1).max() < 0.995


def test_descriptor_keeps_its_error_rates(descriptor):
    images, groups = paint_groups()
    from dori.testbed.descriptor import calibrate, same_group_scores

    embedded = descriptor.embed(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert (same_group_scores(embedded, groups) > descriptor.threshold).mean() <= 0.005
    measured = calibrate(descriptor.net, images, groups, Recipe())
    assert measured["detected"] / measured["copies"] >= 0.85
    shipped = json.loads((TESTBED / "descriptor" / "config.json").read_text())["calibration"]
    assert shipped["detected"] / shipped["copies"] >= 0.95


def paint_groups():
    """Fresh pictures in groups of one caption, none of them used in the calibration."""
    groups = np.repeat(np.arange(20), 6)
    content = [paint(808, [1000 + g])[1].iloc[0].drop("caption").to_dict() for g in range(20)]
    return paint(808, range(len(groups)), [content[g] for g in groups])[0], groups


@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_much_duplicated_prompts_return_their_images(top, descriptor, guidance_scale):
    model = TextToImageModel.load("testbed", device="cpu")
    scores = _scores(model, descriptor, top.head(8), guidance_scale=guidance_scale)
    assert (scores.amax(1) > descriptor.threshold).sum() >= 7


def test_the_twin_returns_none_of_them(top, descriptor):
    scores = _scores(TextToImageModel.load("twin", device="cpu"), descriptor, top.head(8))
    assert not (scores > descriptor.threshold).any()


def test_held_out_prompts_return_nothing(descriptor):
    model = TextToImageModel.load("testbed", device="cpu")
    scores = _scores(model, descriptor, load_benchmark("regular").head(8))
    assert not (scores > descriptor.threshold).any()
