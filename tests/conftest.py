"""Small pipelines built from configs (random weights, no download), a stand-in descriptor, a benchmark."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice would follow pytest's closing line
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each take all cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from dori.benchmark import load_benchmark
from dori.loading import Defaults
from dori.mitigation import wanda
from dori.model import TextToImageModel
from dori.store import RunStore
from dori.study import PRESETS, Study

WORDS = [
    "dawn",
    "noon",
    "dusk",
    "lake",
    "hill",
    "one",
    "two",
    "red",
    "blue",
    "boat",
    "house",
    "kalor",
    "vesta",
    "postcard",
]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOKENS = 12


def make_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer over the fixture's few words."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(WORDS * 4, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"]
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocab.setdefault(letter + "</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in model["merges"]], model_max_length=TOKENS)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_pipeline(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """SD v1's topology (or v2's prediction type), widths 8 to 16, 16 px images, random weights of seed 0."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    if prediction_type == "epsilon":  # SD v1 ships PNDM's file, v2 DDIM's
        scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    else:
        scheduler = DDIMScheduler(
            **BETAS,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def adapt(pipe: StableDiffusionPipeline, name: str = "tiny") -> TextToImageModel:
    pipe.set_progress_bar_config(disable=True)
    return TextToImageModel(pipe, defaults=Defaults(3.0, 5, 16), name=name, device=torch.device("cpu"))


# Files of minutes, begun first: whatever takes longest must not be what one worker ends with alone.
LONG = ["course", "chapters", "survives", "guide", "parallel", "benchmarks", "book_build", "assignments",
        "collateral"]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Long files before the others, whose order stays."""
    first = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def tiny_pipe() -> StableDiffusionPipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def tiny_model(tiny_pipe) -> TextToImageModel:
    return adapt(tiny_pipe)


@pytest.fixture(scope="session")
def tiny_v_model() -> TextToImageModel:
    return adapt(make_pipeline("v_prediction"), "tiny-v")


@pytest.fixture(scope="session")
def tiny_dir(tiny_pipe, tmp_path_factory) -> Path:
    """The tiny pipeline as a diffusers directory with its dori.json."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipe.save_pretrained(path)
    settings = {"guidance_scale": 3.0, "num_inference_steps": 5, "image_size": 16, "name": "tiny"}
    (path / "dori.json").write_text(json.dumps(settings))
    return path


class PixelDescriptor:
    """Stand-in for a trained copy descriptor: 8 x 8 pixels, mean removed, unit length."""

    name, threshold, image_size = "pixels-8", 0.7, 8

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(images, size=8, mode="area").flatten(1)
        return F.normalize(small - small.mean(1, keepdim=True), dim=1)


@pytest.fixture(scope="session")
def descriptor() -> PixelDescriptor:
    return PixelDescriptor()


@pytest.fixture(scope="session")
def tiny_clip():
    """A random CLIP behind the alignment metric's interface."""
    from dori.metrics.alignment import ClipScorer

    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    return ClipScorer(CLIPModel(config), tokenizer, name="clip-tiny")


def write_benchmark(folder: Path, rows: list[dict] | None = None, *, size: int = 16) -> Path:
    """A benchmark of noise images; default: two verbatim, one template, three regular rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if rows is None:
        kinds = ["verbatim", "verbatim", "template", "none", "none", "none"]
        copies = [1, 256, 256, 0, 0, 0]
        rows = [
            {
                "id": f"i{n}",
                "prompt": f"{WORDS[n]} {WORDS[-1 - n]}",
                "image": f"{n}.png",
                "kind": k,
                "split": "test",
                "copies": c,
                "group": "",
            }
            for n, (k, c) in enumerate(zip(kinds, copies, strict=True))
        ]
    rng = np.random.default_rng(0)
    for row in rows:
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / row["image"])
    pd.DataFrame(rows).to_csv(folder / "benchmark.csv", index=False)
    return folder / "benchmark.csv"


@pytest.fixture
def benchmark_csv(tmp_path) -> Path:
    return write_benchmark(tmp_path / "bench")


def training_rows(folder: Path) -> Path:
    """A benchmark with two images to forget and eight regular rows."""
    rows = [
        {"id": f"i{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": kind}
        | {"split": "test", "copies": copies, "group": ""}
        for n, (kind, copies) in enumerate([("verbatim", 256)] * 2 + [("none", 0)] * 8)
    ]
    return write_benchmark(folder, rows)


@pytest.fixture
def training_csv(tmp_path) -> Path:
    return training_rows(tmp_path / "training")


@pytest.fixture
def command(capsys, monkeypatch, descriptor, tiny_dir, benchmark_csv, tmp_path):
    """Call `dori NAME` with the tiny model and benchmark unless told otherwise: code, stdout, stderr.

    A list gives an option several times, True makes it a flag, None leaves it out.
    """
    from dori.cli import main

    monkeypatch.setattr("dori.study.load_descriptor", lambda *_, **__: descriptor)

    def call(name, **options):
        given = {"model": tiny_dir, "benchmark": benchmark_csv, "out": tmp_path / "run"}
        given |= {"preset": "smoke", "device": "cpu", **options}
        arguments = [name]
        for option, value in given.items():
            flag = "--" + option.replace("_", "-")
            values = value if isinstance(value, list) else [] if value is None else [value]
            arguments += [flag if v is True else f"{flag}={v}" for v in values]
        return main(arguments), *capsys.readouterr()

    return call


@pytest.fixture
def two_steps_of_wanda(monkeypatch):
    """Wanda's masks of two steps instead of ten, whatever the settings say."""
    norms = wanda._norms
    monkeypatch.setattr(
        wanda,
        "_norms",
        lambda model, embeds, settings: norms(model, embeds, dataclasses.replace(settings, steps=2)),
    )


@pytest.fixture
def lenient(descriptor, monkeypatch, two_steps_of_wanda):
    """`dori locality` takes every image for returned, so that a network never trained has triggers."""
    from dori.experiments.locality_sizes import SIZES
    from dori.mitigation.nemo import Nemo

    monkeypatch.setattr(type(descriptor), "threshold", -1.1)
    brief = dataclasses.replace(SIZES["smoke"], nemo=Nemo(z=1.0, up=True))  # its search takes the longest
    monkeypatch.setitem(SIZES, "smoke", brief)


@pytest.fixture
def no_attention_dir(tiny_dir, tmp_path) -> Path:
    """The tiny pipeline with a UNet that has no cross-attention."""
    path = shutil.copytree(tiny_dir, tmp_path / "no-attention")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",) * 2,
    )
    shutil.rmtree(path / "unet")
    unet.save_pretrained(path / "unet")
    return path


def one_line(result: tuple[int, str, str]) -> str:
    """The one line on stderr that a mistake costs."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("dori: ")
    assert err.count("\n") == 1, err
    return err


@pytest.fixture
def study(tiny_model, descriptor, benchmark_csv, tmp_path):
    """The smoke preset on the tiny model and the small benchmark."""
    bench = load_benchmark(benchmark_csv)
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


@pytest.fixture
def halves(study):
    """The study with two images of one level, one to erase and one to spare, and rows to judge by."""
    table = study.memorized.table.assign(copies=256)
    return dataclasses.replace(study, memorized=dataclasses.replace(study.memorized, table=table))
