"""How much faster than the plain way are the attack and NeMo's search? python benchmarks/attack.py --out FILE

Each way runs in a process of its own, so that its peak of memory is its own, on the same images, prompts
and noise. The plain ways (plain.py) follow published code; `lean` is the plain search without its waste. Both
must come to the same results, or the comparison is void: the report says so. Where other programs run, read
the CPU time, with OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import plain
import torch
from reporting import alone
from rich.console import Console
from rich.table import Table

from dori.attack import Attack, dori_attack
from dori.benchmark import Benchmark, load_benchmark
from dori.mitigation.nemo import Nemo, activation_statistics, nemo
from dori.mitigation.signature import calibrate
from dori.model import TextToImageModel
from dori.store import commit, write_json

ASKED = {"attack": 3.0, "NeMo": 8.0}  # times as fast as the plain way
Task = Callable[[], list]  # what is timed; returns what must agree


def top_prompts(count: int) -> Benchmark:
    """Bundled verbatim prompts, those with the most copies."""
    prompts = load_benchmark("testbed").select(kind="verbatim")
    return prompts.select(copies=prompts.table["copies"].max()).head(count)


def attack_task(attack: Callable, model: TextToImageModel, options: argparse.Namespace) -> Task:
    """Attack the images from their prompts."""
    prompts = top_prompts(options.images)
    images, embeds = prompts.images(size=model.defaults.image_size), model.encode_prompts(prompts.prompts())
    return lambda: attack(model, images, embeds, steps=options.steps, seeds=range(len(images)))


def attack_ours(model: TextToImageModel, images, embeds, *, steps: int, seeds, at_once: int = 16) -> list:
    """As the experiments do it: many images in one batch, weights frozen."""
    losses = []
    for part in (slice(a, a + at_once) for a in range(0, len(images), at_once)):
        latents, plan = model.encode_images(images[part]), Attack(steps=(steps,))
        losses += dori_attack(model, latents, embeds[part], plan, seeds=seeds[part]).losses.tolist()
    return losses


def nemo_task(search: Callable, model: TextToImageModel, options: argparse.Namespace) -> Task:
    """Search for each prompt's neurons; statistics and threshold belong to the model and are not timed."""
    embeds = model.encode_prompts(top_prompts(options.prompts).prompts())
    settings = Nemo(seeds=options.noises)
    statistics = activation_statistics(model, load_benchmark("regular").prompts())
    find = partial(search, model, embeds, statistics, threshold=options.threshold, settings=settings)
    return lambda: [units.indices for units in find()]


def threshold_task(model: TextToImageModel, options: argparse.Namespace) -> Task:
    """NeMo's threshold, in a process of its own as it takes memory that the search does not."""
    embeds = model.encode_prompts(load_benchmark("regular").head(options.calibration).prompts())
    return lambda: [calibrate(model, embeds, Nemo(seeds=options.noises).noise)]


WAYS: dict[str, Callable[[TextToImageModel, argparse.Namespace], Task]] = {
    "attack, plain": partial(attack_task, plain.attack),
    "attack, ours": partial(attack_task, attack_ours),
    "NeMo, plain": partial(nemo_task, plain.nemo),
    "NeMo, lean": partial(nemo_task, partial(plain.nemo, wasteful=False)),
    "NeMo, ours": partial(nemo_task, nemo),
    "NeMo, threshold": threshold_task,
}


def work(options: argparse.Namespace) -> dict:
    """Run one way in this process: seconds, calls and rows of the UNet, MiB before and at peak, results."""
    model = TextToImageModel.load(options.model, device=options.device)
    with torch.no_grad():  # the first call allocates and chooses kernels
        model.predict(model.initial_latents([0]), torch.zeros(1, dtype=torch.long), model.unconditional)
    run, rows = WAYS[options.way](model, options), []
    model.unet.register_forward_pre_hook(lambda _, taken: rows.append(len(taken[0])))
    before, start, worked = peak_memory(model), time.perf_counter(), time.process_time()
    results = run()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
    found |= {"calls": len(rows), "rows": sum(rows)}
    found |= {"mib_before": before, "mib_peak": peak_memory(model), "threads": torch.get_num_threads()}
    return found | {"results": results}


def peak_memory(model: TextToImageModel) -> float:
    """Peak memory of this process so far, MiB: the device's where there is one, else resident."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def measured(arguments: list[str]) -> dict[str, dict]:
    """Every way in a process of its own."""

    def run(way: str, *more: str) -> dict:
        print(way, file=sys.stderr)
        return alone(__file__, *arguments, "--way", way, *more)

    threshold = run("NeMo, threshold")["results"][0]
    return {way: run(way, "--threshold", str(threshold)) for way in WAYS if way != "NeMo, threshold"}


def compared(ways: Mapping[str, dict], *, images: int, prompts: int) -> dict[str, dict]:
    """Ratios, rates, and whether the results agree."""
    seconds, cpu = ({way: one[k] for way, one in ways.items()} for k in ("seconds", "cpu_seconds"))
    losses = [torch.tensor(ways[f"attack, {w}"]["results"]) for w in ("plain", "ours")]
    sets = [ways[f"NeMo, {w}"]["results"] for w in ("plain", "lean", "ours")]
    attack = {
        "times_as_fast": seconds["attack, plain"] / seconds["attack, ours"],
        "times_as_fast_by_cpu_time": cpu["attack, plain"] / cpu["attack, ours"],
        "asked": ASKED["attack"],
        "images_per_minute": {w: 60 * images / seconds[f"attack, {w}"] for w in ("plain", "ours")},
        "largest_difference_of_losses": float(((losses[0] - losses[1]) / losses[0]).abs().max()),
    }
    search = {
        "times_as_fast": seconds["NeMo, plain"] / seconds["NeMo, ours"],
        "times_as_fast_by_cpu_time": cpu["NeMo, plain"] / cpu["NeMo, ours"],
        "times_as_fast_as_lean": seconds["NeMo, lean"] / seconds["NeMo, ours"],
        "asked": ASKED["NeMo"],
        "seconds_per_prompt": {w: seconds[f"NeMo, {w}"] / prompts for w in ("plain", "lean", "ours")},
        "same_sets": [a == b == c for a, b, c in zip(*sets, strict=True)],
        "neurons": [sum(map(len, one.values())) for one in sets[2]],
    }
    return {"attack": attack, "NeMo": search}


def show(report: Mapping) -> None:
    """The tables on the terminal."""
    table = Table(
        "way", "seconds", "CPU seconds", "UNet calls", "rows", "rows/s", "peak MiB", "MiB while running"
    )
    for way, one in report["ways"].items():
        rate, more = one["rows"] / one["seconds"], one["mib_peak"] - one["mib_before"]
        cells = (one["seconds"], one["cpu_seconds"], one["calls"], one["rows"], rate, one["mib_peak"], more)
        table.add_row(way, *(f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" for v in cells))
    console = Console()
    console.print(table)
    for name, found in report["compared"].items():
        console.print(f"{name}: {found['times_as_fast']:.1f} times as fast; asked for {found['asked']:g}")
        for key, value in found.items():
            if key not in ("times_as_fast", "asked"):
                console.print(f"  {key.replace('_', ' ')}: {value}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; the defaults take some minutes on two cores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=16, help="images to attack")
    parser.add_argument("--steps", type=int, default=50, help="attack steps")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of NeMo's search")
    parser.add_argument("--noises", type=int, default=Nemo().seeds, help="noises of NeMo's search")
    parser.add_argument("--calibration", type=int, default=64, help="held-out prompts behind its threshold")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--way", choices=WAYS, help="run this way alone and print its record")
    parser.add_argument("--threshold", type=float, default=0.0, help="NeMo's, with --way")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.way:
        json.dump(work(options), sys.stdout)
        return
    ways = measured(arguments)
    found = compared(ways, images=options.images, prompts=options.prompts)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "way", "threshold")}
    about = {"settings": settings, "cores": os.cpu_count(), "torch": torch.__version__, "commit": commit()}
    records = {way: {k: v for k, v in one.items() if k != "results"} for way, one in ways.items()}
    report = {**about, "ways": records, "compared": found}
    show(report)
    if options.out:
        write_json(options.out, report)


if __name__ == "__main__":
    main(sys.argv[1:])
