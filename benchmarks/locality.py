"""How long do 100 triggers of one image take, and what do summaries of activations cost? --out FILE

Each way runs in a process of its own, so that its peak of memory is its own. Triggers are timed on a few and
a few steps, and extrapolated to the experiment's: both numbers are printed. Memory: the peak with 32 and with
128 embeddings should be the same. Error: distances between summaries against those between the activations.
Where other programs run, read the CPU time, with OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from attack import peak_memory, top_prompts
from reporting import alone
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dori.attack import PAPER, Attack, dori_attack, initial_embeds
from dori.hooks import recorded
from dori.locality.activations import (
    MEASURES,
    MID,
    OUTPUT,
    activation_sketches,
    centred_gram,
    ffn_output,
    first_step,
    positions,
)
from dori.locality.distances import pairs, pairwise
from dori.model import TextToImageModel
from dori.store import commit, write_json

EXPERIMENT = {"triggers": 100, "steps": max(PAPER.steps)}  # of one image


def starts(model: TextToImageModel, count: int) -> Tensor:
    """Random embeddings, from which the experiment's searches start: (count, T, D)."""
    return initial_embeds(model, "random", prompts=[], seeds=range(count))


def attack(model: TextToImageModel, options: argparse.Namespace) -> dict:
    """Search `count` triggers of one image, so many `at_once`, and time it."""
    prompt, embeds = top_prompts(1), starts(model, options.count)
    latents = model.encode_images(prompt.images(size=model.defaults.image_size))
    plan, n = Attack(steps=(options.steps,)), min(options.at_once, options.count)
    start, worked = time.perf_counter(), time.process_time()
    for first in range(0, options.count, n):
        seeds = range(first, min(first + n, options.count))
        part = embeds[seeds.start : seeds.stop]
        dori_attack(model, latents.expand(len(part), -1, -1, -1), part, plan, seeds=seeds)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}


def memory(model: TextToImageModel, options: argparse.Namespace) -> dict:
    """Summarise what `count` embeddings activate: MiB before and at peak, seconds, MiB kept."""
    embeds, before, start = starts(model, options.count), peak_memory(model), time.perf_counter()
    found = activation_sketches(model, embeds, seed=0, batch_size=options.at_once)
    kept = sum(x.numel() * x.element_size() for x in [*found.flat.values(), *found.gram.values()])
    whole = sum(x.numel() * x.element_size() for x in activations(model, embeds[:1]).values())
    return {
        "seconds": time.perf_counter() - start,
        "mib_before": before,
        "mib_peak": peak_memory(model),
        "mib_kept": kept / 2**20,
        "mib_of_all_activations": options.count * whole / 2**20,
    }


@torch.no_grad()
def activations(model: TextToImageModel, embeds: Tensor) -> dict[str, Tensor]:
    """What `activation_sketches` summarises, whole: name -> (n, positions, features)."""
    n, step = len(embeds), first_step(model)
    latents, t = model.initial_latents([0]).expand(n, -1, -1, -1), torch.full((n,), step)
    with (
        recorded(model.unet, [*model.value_layers(up=True), MID]) as outputs,
        recorded(model.unet, model.ffn_layers(), inputs=True) as taken,
        recorded(model.unet, model.ffn_layers()) as given,
    ):
        eps = model.as_epsilon(model.predict(latents, t, embeds), latents, t)
    given = {ffn_output(name): calls for name, calls in given.items()}
    found = {name: calls[0] for name, calls in (outputs | taken | given).items()}
    return {name: positions(x) for name, x in (found | {OUTPUT: eps}).items()}


def errors(model: TextToImageModel, options: argparse.Namespace) -> dict:
    """Relative errors of distances between summaries: of pairs, and of a layer's mean over its pairs."""
    embeds = starts(model, options.count)
    found, whole = activation_sketches(model, embeds, seed=0), activations(model, embeds)
    report = {}
    for measure in MEASURES:
        each, means = [], []
        for name, x in whole.items():
            exact = pairs(pairwise(centred_gram(x), "cosine") if measure == "CKA" else pairwise(x, measure))
            if np.isfinite(exact).all():  # CKA of a single position is undefined
                near = pairs(found.distances(name, measure))
                each.append(np.abs(near / exact - 1))
                means.append(abs(near.mean() / exact.mean() - 1))
        each = np.concatenate(each)
        report[measure] = {
            "pair_median": float(np.median(each)),
            "pair_95_percent_below": float(np.quantile(each, 0.95)),
            "layer_mean_worst": float(max(means)),
        }
    return report


WORK: dict[str, Callable[[TextToImageModel, argparse.Namespace], dict]] = {
    "attack": attack,
    "memory": memory,
    "errors": errors,
}


def work(options: argparse.Namespace) -> dict:
    """One piece of work in this process."""
    model = TextToImageModel.load(options.model, device=options.device)
    with torch.no_grad():  # the first call allocates and chooses kernels
        model.predict(model.initial_latents([0]), torch.zeros(1, dtype=torch.long), model.unconditional)
    return WORK[options.work](model, options)


def measured(options: argparse.Namespace, arguments: list[str]) -> dict[str, dict]:
    """Every piece of work in a process of its own."""

    def run(name: str, count: int, at_once: int) -> dict:
        print(f"{name}, {count} triggers, {at_once} at once", file=sys.stderr)
        more = ["--work", name, "--count", str(count), "--at-once", str(at_once)]
        return alone(__file__, *arguments, *more)

    few = options.batch
    return {
        "attack, batch 1": {"triggers": 2, **run("attack", 2, 1)},
        "attack, chosen batch": {"triggers": few, **run("attack", few, few)},
        **{f"summaries, {n} triggers": run("memory", n, 32) for n in (32, 128)},
        "errors": run("errors", options.exact, 32),
    }


def compared(found: Mapping[str, dict], *, steps: int) -> dict[str, dict]:
    """Rates for the whole experiment, extrapolated by its steps, and what more triggers cost in memory."""
    scale, rates = EXPERIMENT["steps"] / steps, {}
    for way in ("batch 1", "chosen batch"):
        one = found[f"attack, {way}"]
        rates[way] = {
            "timed": f"{one['triggers']} triggers, {steps} steps, {one['seconds']:.1f} s",
            "triggers_per_minute": 60 * one["triggers"] / (scale * one["seconds"]),
            "triggers_per_cpu_minute": 60 * one["triggers"] / (scale * one["cpu_seconds"]),
            "minutes_for_100": EXPERIMENT["triggers"] * scale * one["seconds"] / one["triggers"] / 60,
        }
    few, many = (found[f"summaries, {n} triggers"] for n in (32, 128))
    times = rates["chosen batch"]["triggers_per_minute"] / rates["batch 1"]["triggers_per_minute"]
    more = {
        "mib_more_at_peak": many["mib_peak"] - few["mib_peak"],
        "mib_more_kept": many["mib_kept"] - few["mib_kept"],
        "mib_more_if_all_were_kept": many["mib_of_all_activations"] - few["mib_of_all_activations"],
    }
    return {"attack": {**rates, "times_as_fast": times}, "memory, 128 against 32": more}


def show(report: Mapping) -> None:
    """The numbers on the terminal."""
    console = Console()
    table = Table("work", "what", "value")
    for part in (report["measured"], report["compared"]):
        for name, values in part.items():
            for key, value in values.items():
                for sub, v in value.items() if isinstance(value, Mapping) else [("", value)]:
                    label = f"{key} {sub}".strip().replace("_", " ")
                    table.add_row(name, label, f"{v:,.3g}" if isinstance(v, float) and v < 100 else _text(v))
    console.print(table)


def _text(value: float | str) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; the defaults take a minute or two on two cores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="attack steps that are timed")
    parser.add_argument("--batch", type=int, default=16, help="triggers searched in one call")
    parser.add_argument("--exact", type=int, default=16, help="embeddings behind the errors")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--work", choices=WORK, help="do this alone and print its record")
    parser.add_argument("--count", type=int, default=2, help="triggers, with --work")
    parser.add_argument("--at-once", type=int, default=32, help="triggers in a batch, with --work")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.work:
        json.dump(work(options), sys.stdout)
        return
    found = measured(options, arguments)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "work", "count", "at_once")}
    about = {"settings": settings, "cores": os.cpu_count(), "torch": torch.__version__, "commit": commit()}
    report = {**about, "measured": found, "compared": compared(found, steps=options.steps)}
    show(report)
    if options.out:
        write_json(options.out, report)


if __name__ == "__main__":
    main(sys.argv[1:])
