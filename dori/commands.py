"""The commands that run a model: `dori evaluate`, `attack`, `locality` and `mitigate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dori.terminal import (
    attack_table,
    console,
    evaluation_table,
    locality_table,
    trained_table,
    units_table,
)

if TYPE_CHECKING:  # torch and diffusers load with the first command that needs them
    from dori.benchmark import Benchmark
    from dori.study import Study

ModelOption = Annotated[
    str, typer.Option(help="a name of `dori models`, a diffusers directory, a .safetensors file or a Hub id")
]
BenchmarkOption = Annotated[
    str, typer.Option(help="CSV, .jsonl or .parquet of id,prompt,image[,kind][,split]; testbed or regular")
]
PresetOption = Annotated[str, typer.Option(help="smoke, quick, full or paper: prompts, seeds and steps")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
DtypeOption = Annotated[
    str, typer.Option(help="precision of the weights: float32, bfloat16 or float16; scores move a little")
]
IdOption = Annotated[list[str] | None, typer.Option("--id", help="these rows only", show_default="preset")]
RunOption = Annotated[Path, typer.Option(help="run directory; a second run computes only what is missing")]
RegularOption = Annotated[
    str | None, typer.Option(help="CSV of prompts that are not memorized", show_default="rows of kind none")
]
DescriptorOption = Annotated[
    str, typer.Option(help="bundled, sscd (fetched once), or SSCD's TorchScript file or https://…#sha256=…")
]
SeedOption = Annotated[int, typer.Option(help="seed of the run's noise")]
SeedsOption = Annotated[int | None, typer.Option(min=1, help="images per prompt", show_default="preset")]


def evaluate(
    context: typer.Context,
    out: RunOption,
    model: ModelOption = "testbed",
    benchmark: BenchmarkOption = "testbed",
    *,
    item: IdOption = None,
    preset: PresetOption = "paper",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    descriptor: DescriptorOption = "bundled",
    seed: SeedOption = 0,
    seeds: SeedsOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps", show_default="preset, else the model's")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="guidance scale; 1: no guidance", show_default="the model's")
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="alignment with the prompts by a CLIP: a directory, a Hub id, or bundled"),
    ] = None,
    fid: Annotated[
        str | None,
        typer.Option(
            help="FID and KID of kind none by: inception (fetched once), its file, https://…#sha256=…, or "
            "clip (the bundled one's features)"
        ),
    ] = None,
) -> None:
    """Draw images for every prompt, score them against the training images, write results and summary."""
    from dori.experiments.evaluate import check_fidelity
    from dori.experiments.evaluate import evaluate as run
    from dori.experiments.options import pick_prompts
    from dori.experiments.runfiles import claim
    from dori.metrics.alignment import ClipScorer
    from dori.metrics.fidelity import load_features

    prompts, picked = pick_prompts(benchmark, preset, ids=item)
    check_fidelity(picked, fid)
    claim(out, "evaluate")
    study = _study(context, prompts, out)
    on = study.model.device
    summary = run(
        study,
        picked,
        study.sampling(seeds=seeds, guidance_scale=guidance, steps=steps),
        clip=ClipScorer.load(clip, device=on) if clip else None,
        features=load_features(fid, device=on) if fid else None,
    )
    _report(study, summary, evaluation_table(summary))


def attack(
    context: typer.Context,
    out: RunOption,
    model: ModelOption = "testbed",
    benchmark: BenchmarkOption = "testbed",
    *,
    method: Annotated[str, typer.Option(help="dori, or unlearndiff: words before the caption")] = "dori",
    init: Annotated[
        str | None,
        typer.Option(help="dori: start at prompt, random, regular or between", show_default="prompt"),
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(help="dori: attack steps; several as 10,25,50 or option by option", show_default="50"),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="learning rate of the optimiser", show_default="as published")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="dori: adam, adamax, nadam or rmsprop", show_default="adam")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="dori: draws of noise and timestep at each step", show_default="8")
    ] = None,
    free_tokens: Annotated[
        int | None,
        typer.Option(help="dori: positions that may move, first after BOS", show_default="all, BOS too"),
    ] = None,
    radius: Annotated[
        float | None, typer.Option(help="dori: greatest L2 distance from the start", show_default="no limit")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(help="unlearndiff: timesteps visited", show_default="preset, else 50")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="unlearndiff: iterations on each", show_default="preset, else 40")
    ] = None,
    units: Annotated[
        Path | None, typer.Option(help="units.safetensors to switch off in the model for all images")
    ] = None,
    regular: RegularOption = None,
    item: IdOption = None,
    preset: PresetOption = "paper",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    descriptor: DescriptorOption = "bundled",
    seed: SeedOption = 0,
    seeds: SeedsOption = None,
) -> None:
    """Search for triggers that bring each training image back, draw what they give, and score it."""
    from dori.experiments.attack import attack as run
    from dori.experiments.attack import find_plan, pruned
    from dori.experiments.options import pick_prompts, whole_numbers
    from dori.experiments.runfiles import claim

    given = {"init": init, "steps": whole_numbers(steps), "lr": lr, "batch": batch, "radius": radius}
    given |= {"free_tokens": free_tokens, "timesteps": timesteps, "iterations": iterations}
    given |= {"optimizer": optimizer}
    plan = find_plan(method, preset, given)
    prompts, picked = pick_prompts(benchmark, preset, ids=item, attacked=True)
    claim(out, "attack")
    study = _study(context, prompts, out, regular)
    study = pruned(study, units) if units else study
    summary = run(study, picked, plan, study.sampling(seeds=seeds))
    _report(study, summary, attack_table(summary))


def locality(
    context: typer.Context,
    out: RunOption,
    model: ModelOption = "testbed",
    benchmark: BenchmarkOption = "testbed",
    *,
    starts: Annotated[
        int | None,
        typer.Option(min=1, help="searches from random numbers, and from prompts", show_default="preset"),
    ] = None,
    regular: RegularOption = None,
    item: IdOption = None,
    preset: PresetOption = "paper",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    descriptor: DescriptorOption = "bundled",
    seed: SeedOption = 0,
) -> None:
    """Search for many triggers of each image, and say how much they have in common at every level."""
    from dori.experiments.locality_run import locate
    from dori.experiments.options import pick_prompts
    from dori.experiments.runfiles import claim

    kinds = ["verbatim", "template"]
    prompts, picked = pick_prompts(benchmark, preset, kinds=kinds, ids=item, attacked=True)
    claim(out, "locality")
    study = _study(context, prompts, out, regular)
    summary = locate(study, picked, starts)
    _report(study, summary, locality_table(summary))


def mitigate(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="directory of the mitigated model; appears whole or not at all")],
    method: Annotated[
        str,
        typer.Option(
            help="pruning: nemo, wanda; training: adversarial, adversarial-lora, esd, concept-ablation, siss"
        ),
    ],
    model: ModelOption = "testbed",
    benchmark: BenchmarkOption = "testbed",
    *,
    kind: Annotated[
        list[str] | None, typer.Option(help="kinds of prompts to mitigate", show_default="verbatim, template")
    ] = None,
    item: IdOption = None,
    z: Annotated[float | None, typer.Option(help="nemo: a fixed z-score", show_default="a search")] = None,
    up: Annotated[bool | None, typer.Option("--up", help="nemo: look into the up blocks, too")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="wanda: greatest share of a row at each step", show_default="0.01")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="wanda: DDIM steps whose masks are united", show_default="10")
    ] = None,
    conditional_only: Annotated[
        bool | None, typer.Option("--conditional-only", help="wanda: leave out guidance's other half")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="wanda: regular, to compare with", show_default="the empty prompt")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting of the method, as in `--set lr=1e-5`; may be repeated"),
    ] = None,
    regular: RegularOption = None,
    preset: PresetOption = "paper",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    descriptor: DescriptorOption = "bundled",
    seed: SeedOption = 0,
) -> None:
    """Prune one set of units for all prompts, or train the model, and save it as a diffusers directory."""
    from dori import parallel
    from dori.experiments import curing, mending, mitigate
    from dori.experiments.modelfiles import check_target, held, workplace
    from dori.experiments.options import assignments, pick_prompts

    given = {"z": z, "up": up, "sparsity": sparsity, "steps": steps, "conditional_only": conditional_only}
    given |= {"reference": reference} | assignments(settings)
    trained, out = method in curing.SETTINGS, out.expanduser().resolve()
    setting = (mending.find_training if trained else mitigate.find_setting)(method, given)
    if trained:
        mending.check_dtype(dtype)
    check_target(out, model)
    kinds = kind or ["verbatim", "template"]
    prompts, picked = pick_prompts(benchmark, preset, kinds=kinds, ids=item, images=trained)
    with held(out):
        study = _study(context, prompts, workplace(out), regular)
        if trained:
            done = mending.mend(study, picked, method, setting, out)
            table = trained_table(done)
        else:
            found = mitigate.mitigate(study, picked, setting, out)
            table = units_table(found, f"{study.model.name}, prompts: {len(picked)}")
    if parallel.first():
        console.print(table)
        console.print(f"{out}: {len(picked.skipped)} rows skipped")


def _study(context: typer.Context, prompts: Benchmark, run_dir: Path, regular: str | None = None) -> Study:
    """The study that a command's options ask for: those that all commands with a model have."""
    from dori.experiments.options import study_of

    shared = ("model", "preset", "device", "dtype", "descriptor", "seed")
    return study_of(prompts, regular, run_dir=run_dir, **{name: context.params[name] for name in shared})


def _report(study: Study, summary: dict, table: Table) -> None:
    """The table, and where its files are; from one process of several."""
    from dori import parallel

    if not parallel.first():
        return
    console.print(table)
    where, skipped = study.store.directory / "summary.json", summary["skipped"]["n"]
    console.print(f"{where}: {study.store.computed} records computed in this run, {skipped} rows skipped")
