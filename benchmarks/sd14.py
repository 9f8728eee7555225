"""How fast is the attack on a denoiser of SD v1.4's size? python benchmarks/sd14.py --out FILE

The denoiser is built from SD v1.4's configuration with random weights: the arithmetic is the same, and what
it paints is not looked at. On a CPU the default is the same topology at a quarter of the width, without
compilation, and what counts are the ratios. `plain` is one image at a time with gradients of the weights
(plain.py); each further way adds one thing to the one before. Utilisation is the work that the gradient of an
embedding needs, counted on the meta device, over the time it took and the speed of a matrix product of the
same precision, measured here. Each way runs in a process of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import plain
import torch
from attack import attack_ours, peak_memory
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from reporting import alone
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dori import known
from dori.attack import Attack, initial_embeds
from dori.loading import Defaults, resolve_device
from dori.mitigation.adversarial import Adversarial, adversarial
from dori.mitigation.targets import Retain, Targets
from dori.model import TextToImageModel
from dori.store import commit, machine, versions, write_json
from dori.testbed.paths import TESTBED

TOKENS, FACTOR = 77, 8  # length of a prompt; pixels of a latent's side
SEED = 0  # of weights, images and starts
NARROW = {"sample_size": 32, "block_out_channels": (80, 160, 320, 320), "cross_attention_dim": 192}
NARROW |= {"norm_num_groups": 16}
TINY = {"sample_size": 8, "block_out_channels": (8, 8, 8, 8), "cross_attention_dim": 16, "norm_num_groups": 4}
SIZES = {
    "sd14": known.SD1_UNET,
    "narrow": known.Part(UNet2DConditionModel, NARROW),
    "tiny": known.Part(UNet2DConditionModel, TINY | {"attention_head_dim": 2}),
}
MATRIX, MATRIX_SECONDS = {"cuda": 8192, "cpu": 2048}, 2  # side of the product timed, and for how long
GOALS = {"utilisation": 0.45, "images_per_hour": 1000}  # on one GPU: 500 images in half an hour


@dataclass(frozen=True)
class Way:
    """How one attack is run."""

    batched: bool = True
    half: bool = False
    channels_last: bool = False
    compiled: bool = False


WAYS = {
    "plain": Way(batched=False),
    "batched, weights frozen": Way(),
    "and bfloat16": Way(half=True),
    "and channels last": Way(half=True, channels_last=True),
    "and compiled": Way(half=True, channels_last=True, compiled=True),
}
ROUND = "a round of adversarial fine-tuning"


def make_model(size: str, device: torch.device, way: Way) -> TextToImageModel:
    """A pipeline around the denoiser; autoencoder and text encoder are small, they take no part."""
    torch.manual_seed(SEED)
    unet = SIZES[size].build()
    width, pixels = unet.config.cross_attention_dim, unet.config.sample_size * FACTOR
    tokenizer = CLIPTokenizer.from_pretrained(TESTBED / "model" / "tokenizer", model_max_length=TOKENS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=TOKENS,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=pixels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, clip_sample=False, steps_offset=1)
    unet = unet.to(device, torch.bfloat16 if way.half else torch.float32)
    if way.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    model = TextToImageModel(pipe, defaults=Defaults(7.0, 50, pixels), name=size, device=device)
    if way.compiled:
        model.unet.compile()
    return model


@cache
def work_of_a_row(size: str) -> dict[str, float]:
    """Floating-point operations of one row: forward; with the gradient of the embedding; with that of all
    weights, too; and of the keys and values of cross-attention alone, forward."""
    with torch.device("meta"):
        unet = SIZES[size].build()
        noisy = torch.zeros(1, 4, unet.config.sample_size, unet.config.sample_size)
        y = torch.zeros(1, TOKENS, unet.config.cross_attention_dim, requires_grad=True)
        t = torch.zeros(1)

    def count(*, weights: bool, backward: bool) -> FlopCounterMode:
        unet.requires_grad_(weights)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = unet(noisy, t, encoder_hidden_states=y).sample
            if backward:
                output.sum().backward()
        return counter

    forward = count(weights=False, backward=False)
    by_module = forward.get_flop_counts()
    keys = [by_module[name] for name in by_module if name.endswith(("attn2.to_k", "attn2.to_v"))]
    return {
        "forward": forward.get_total_flops(),
        "embedding": count(weights=False, backward=True).get_total_flops(),
        "weights": count(weights=True, backward=True).get_total_flops(),
        "keys_and_values": sum(sum(one.values()) for one in keys),
    }


def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the median of several."""
    n = MATRIX.get(device.type, MATRIX["cpu"])
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * n**3 / timer.blocked_autorange(min_run_time=MATRIX_SECONDS).median


def attacked(options: argparse.Namespace) -> dict:
    """Seconds of a step and image, utilisation, memory, and the losses, of one way."""
    way, device = WAYS[options.way], resolve_device(options.device)
    model = make_model(options.size, device, way)
    generator = torch.Generator().manual_seed(SEED)
    side, seeds = model.defaults.image_size, list(range(options.images))
    images = torch.rand(len(seeds), 3, side, side, generator=generator)
    starts = initial_embeds(model, "random", prompts=[""] * len(seeds), seeds=seeds)

    def run(steps: int) -> list:
        if not way.batched:
            return plain.attack(model, images, starts, steps=steps, seeds=seeds)
        return attack_ours(model, images, starts, steps=steps, seeds=seeds, at_once=options.at_once)

    run(1)  # the first call allocates, chooses kernels and compiles
    seconds, cpu_seconds, losses = timed(lambda: run(options.steps), device)
    rows = Attack().batch * options.steps * len(seeds)
    speed = work_of_a_row(options.size)["embedding"] * rows / seconds
    peak = matrix_speed(device, model.dtype)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "images_per_hour": 3600 * len(seeds) / (seconds / options.steps * max(Attack().steps)),
        "utilisation": speed / peak,
        "matrix_teraflops": peak / 1e12,
        "mib_peak": peak_memory(model),
        "losses": losses,
    }


def tuned(options: argparse.Namespace) -> dict:
    """Seconds and memory of one round: searches, training steps, the checkpoint at its end."""
    device = resolve_device(options.device)
    model = make_model(options.size, device, Way())
    generator = torch.Generator().manual_seed(SEED)
    size, n = (4, model.unet.config.sample_size, model.unet.config.sample_size), options.at_once
    embeds = initial_embeds(model, "random", prompts=[""] * n, seeds=range(n))
    latents = torch.randn(n, *size, generator=generator).to(device)
    targets = Targets(tuple(map(str, range(n))), ("",) * n, latents, embeds)
    settings = Adversarial(
        epochs=1, at_once=n, steps=options.steps, search=Attack(steps=(options.steps,)), retain=n,
        inits=("prompt", "random"), autocast=device.type == "cuda", checkpointing=options.checkpointing,
    )  # fmt: skip
    kept = Retain(torch.randn(n, *size, generator=generator).to(device), embeds)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        surrogates = list(latents.flip(0)[:, None])
        seconds, cpu_seconds, _ = timed(
            lambda: adversarial(model, targets, surrogates, kept, settings, run_dir=run_dir), device
        )
    about = {"images": n, "steps": options.steps, "mib_peak": peak_memory(model)}
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, **about}


def timed(run: Callable[[], list | None], device: torch.device) -> tuple[float, float, list | None]:
    """Wall time, the process's CPU time, and what `run` returns."""
    started, worked = time.perf_counter(), time.process_time()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - worked, found


def compared(ways: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each way against the plain one: times as fast, also by CPU time, which other programs on the machine
    hardly change; and the largest relative difference of a loss."""
    plain_losses = torch.tensor(ways["plain"]["losses"])
    return {
        way: {
            "times_as_fast": ways["plain"]["seconds"] / one["seconds"],
            "times_as_fast_by_cpu_time": ways["plain"]["cpu_seconds"] / one["cpu_seconds"],
            "losses_apart": float(((torch.tensor(one["losses"]) - plain_losses) / plain_losses).abs().max()),
        }
        for way, one in ways.items()
        if way != ROUND
    }


def show(report: dict) -> None:
    """The tables on the terminal."""
    table = Table(
        "way",
        "seconds",
        "times as fast",
        "by CPU time",
        "images/hour",
        "utilisation",
        "peak GiB",
        "losses apart",
    )
    for way, found in report["compared"].items():
        one = report["ways"][way]
        table.add_row(
            way,
            f"{one['seconds']:.1f}",
            f"{found['times_as_fast']:.2f}",
            f"{found['times_as_fast_by_cpu_time']:.2f}",
            f"{one['images_per_hour']:.1f}",
            f"{100 * one['utilisation']:.1f} %",
            f"{one['mib_peak'] / 1024:.1f}",
            f"{found['losses_apart']:.1g}",
        )
    console, row = Console(width=120), report["work_of_a_row"]
    console.print(table)
    if (done := report["ways"].get(ROUND)) is not None:
        about = f"{done['images']} images, {done['steps']} steps of search and of training"
        console.print(f"{ROUND} ({about}): {done['seconds']:.1f} s, {done['mib_peak'] / 1024:.1f} GiB")
    more, share = row["weights"] / row["embedding"], row["keys_and_values"] / row["forward"]
    console.print(
        f"One row: {row['embedding'] / 1e12:.3g} TFLOP with the gradient of the embedding; with that of the "
        f"weights {more:.2f} times as much. Keys and values of cross-attention are {100 * share:.2f} % of "
        "the forward pass: computing them once for all draws of a step would save less than that."
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=SIZES, help="default: sd14 on a GPU, narrow on a CPU")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=8, help="images in a batch, and of a round")
    parser.add_argument(
        "--steps", type=int, default=5, help="steps that are timed; rates are for the paper's 50"
    )
    parser.add_argument("--checkpointing", action="store_true", help="the round computes activations twice")
    parser.add_argument("--skip", action="append", default=[], choices=[*WAYS, ROUND])
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--way", choices=[*WAYS, ROUND], help="run this way alone and print its record")
    options = parser.parse_args(arguments)
    on_gpu = resolve_device(options.device).type == "cuda"
    options.size = options.size or ("sd14" if on_gpu else "narrow")
    options.skip += [] if on_gpu else ["and compiled"]  # minutes of a C++ compiler for each shape
    return options


def main(arguments: list[str]) -> None:
    """Every way in a process of its own; a table, and with --out a file."""
    options = parse(arguments)
    if options.way:
        json.dump(tuned(options) if options.way == ROUND else attacked(options), sys.stdout)
        return
    ways, started = {}, time.perf_counter()
    for way in [w for w in (*WAYS, ROUND) if w not in options.skip]:
        print(way, file=sys.stderr)
        ways[way] = alone(__file__, *arguments, "--way", way)
    about = {k: v for k, v in vars(options).items() if k not in ("out", "way", "skip")}
    report = {
        "settings": {**about, "seed": SEED},
        "device": str(resolve_device(options.device)),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "goals": GOALS,
        "work_of_a_row": work_of_a_row(options.size),
        "compared": compared(ways),
        "ways": {way: {k: v for k, v in one.items() if k != "losses"} for way, one in ways.items()},
    }
    show(report)
    if options.out:
        write_json(options.out, report)


if __name__ == "__main__":
    main(sys.argv[1:])
