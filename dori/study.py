"""One study: a model, a benchmark, a descriptor, a run directory. Tidy tables out, resumable."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from dori.benchmark import Benchmark, load_benchmark
from dori.errors import DoriError
from dori.images import read_image, to_uint8
from dori.metrics.copy import CopyDescriptor, load_descriptor, similarity
from dori.metrics.intervals import Estimate
from dori.metrics.replication import replication_table
from dori.model import PIXELS_AT_ONCE, TextToImageModel
from dori.store import Record, RunStore, commit, write_json

VERSION = 1  # of sampling and scoring; raised when results change, so that old records do not count


@dataclass(frozen=True)
class Preset:
    """The size of a run; what is sampled, never what is claimed. None means all, or the model's own value."""

    name: str
    seeds: int  # images per prompt
    steps: int | None  # DDIM steps
    memorized: int | None  # verbatim prompts per number of copies
    template: int | None  # template prompts
    regular: int | None  # held-out prompts
    sweep_prompts: int  # prompts of each sort in a sweep
    guidance: tuple[float, ...]  # guidance scales of the sweep
    step_counts: tuple[int, ...]  # DDIM steps of the sweep
    detection_regular: int | None  # regular prompts a detector must leave alone
    attacked: int | None  # images of each sort that a search starts on

    def pick(self, prompts: Benchmark) -> Benchmark:
        """The first prompts of each number of copies and of each other kind, in the order of the file."""
        verbatim = prompts.select(kind="verbatim").head(self.memorized, by=["copies"])
        template = prompts.select(kind="template").head(self.template)
        regular = prompts.select(kind="none").head(self.regular)
        kept = prompts.table.index.isin([*verbatim.ids, *template.ids, *regular.ids])
        return dataclasses.replace(prompts, table=prompts.table[kept])


PRESETS = {
    p.name: p
    for p in (
        Preset("smoke", 2, 5, 2, 2, 4, 2, (1.0, 3.0), (2, 5), 8, 1),
        Preset("quick", 4, 25, 32, 16, 64, 6, (1.0, 3.0, 5.0, 8.0), (5, 10, 25, 50), 256, 8),
        Preset(
            "full",
            10,
            None,
            None,
            None,
            256,
            16,
            (1.0, 2.0, 3.0, 5.0, 7.0, 10.0),
            (5, 10, 25, 50, 100),
            None,
            None,
        ),
        Preset(
            "paper", 10, 50, None, None, None, 32, (1.0, 3.0, 5.0, 7.0, 10.0), (10, 25, 50, 100), None, None
        ),
    )
}


def find_preset(name: str) -> Preset:
    """A preset by name. Raises DoriError for an unknown one."""
    if name not in PRESETS:
        raise DoriError(f"unknown preset '{name}'; use {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Sampling:
    """Everything about drawing images that decides them, besides model, prompt and noise."""

    seeds: int
    guidance_scale: float
    steps: int


@dataclass(frozen=True)
class Study:
    """What the experiments of a chapter share."""

    model: TextToImageModel
    memorized: Benchmark
    regular: Benchmark  # held-out prompts, kind "none"
    descriptor: CopyDescriptor
    store: RunStore
    preset: Preset
    seed: int = 0
    images_at_once: int | None = None  # None: one prompt's seeds on a CPU, what fits on a GPU

    def sampling(
        self, *, seeds: int | None = None, guidance_scale: float | None = None, steps: int | None = None
    ) -> Sampling:
        """Settings of this study, some replaced: the preset's seeds and steps, the model's own guidance."""
        own = self.model.defaults
        return Sampling(
            seeds or self.preset.seeds,
            float(own.guidance_scale if guidance_scale is None else guidance_scale),
            steps or self.preset.steps or own.num_inference_steps,
        )

    def on(self, model: TextToImageModel) -> "Study":
        """The same study of another model: same prompts, same noise."""
        return dataclasses.replace(self, model=model)

    @property
    def bundled(self) -> bool:
        """Whether the prompts are the testbed's: then twin, training set and captions are known."""
        from dori.testbed.paths import TESTBED

        return self.memorized.path.parent.resolve() == TESTBED.resolve()

    @cached_property
    def twin(self) -> "Study | None":
        """The study on the testbed's twin, which never saw the memorized pairs; None for other benchmarks."""
        if not self.bundled:
            return None
        return self.on(TextToImageModel.load("twin", device=self.model.device))

    def headline(self, name: str, estimate: Estimate) -> Estimate:
        """Note a headline figure in the run's headlines.json (contract 7) and hand it back for the prose."""
        figures = self.headlines
        known = (None if pd.isna(v) else v for v in estimate)  # NaN is not JSON
        about = {"preset": self.preset.name, "model": self.model.name, "commit": commit()}
        figures[name] = {**dict(zip(Estimate._fields, known, strict=True)), **about}
        write_json(self.store.directory / "headlines.json", figures)
        return estimate

    @property
    def headlines(self) -> dict[str, dict]:
        """Headline figures noted so far, by name."""
        path = self.store.directory / "headlines.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def finish(self) -> dict:
        """Write the run's provenance.json and hand it back."""
        found = self.store.provenance(device=str(self.model.device), preset=self.preset.name, seed=self.seed)
        write_json(self.store.directory / "provenance.json", found)
        return found


def open_study(
    *,
    model: str | Path = "testbed",
    benchmark: str | Path = "testbed",
    preset: str = "quick",
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path,
    descriptor: str | Path = "bundled",
) -> Study:
    """Load what a chapter needs from its parameters (contract 5). Cheap checks come before the weights."""
    size = find_preset(preset)
    prompts = load_benchmark(benchmark)
    regular = load_benchmark("regular") if str(benchmark) == "testbed" else prompts.select(kind="none")
    store = RunStore(run_dir)
    adapter = TextToImageModel.load(model, device=device)
    return Study(
        adapter,
        prompts.select(kind=["verbatim", "template"]),
        regular,
        load_descriptor(descriptor, device=adapter.device),
        store,
        size,
        _whole(seed),
    )


def _whole(seed: int | str) -> int:
    """Parameters given on a command line arrive as text."""
    try:
        return int(seed)
    except ValueError:
        raise DoriError(f"seed '{seed}' is not a whole number") from None


def noise_seed(seed: int, item: str, index: int) -> int:
    """The generator seed of one image: from the run's seed, the item and its number, so no order matters."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{item}/{index}".encode()).digest()[:6], "big")


def generate(study: Study, benchmark: Benchmark, sampling: Sampling, *, label: str = "images") -> None:
    """Sample every image of the benchmark that the run directory lacks, and store each."""
    todo = [
        (i, prompt, k)
        for i, prompt in zip(benchmark.ids, benchmark.prompts(), strict=True)
        for k in range(sampling.seeds)
        if not study.store.has("image", _image_key(study, i, prompt, k, sampling))
    ]
    with progress(len(todo), label) as bar:
        for part in _batches(todo, _images_at_once(study, sampling)):
            images = study.model.sample(
                study.model.encode_prompts([prompt for _, prompt, _ in part]),
                [noise_seed(study.seed, i, k) for i, _, k in part],
                guidance_scale=sampling.guidance_scale,
                num_inference_steps=sampling.steps,
                batch_size=len(part),
            )
            for (i, prompt, k), image in zip(part, to_uint8(images), strict=True):
                study.store.save(
                    "image", _image_key(study, i, prompt, k, sampling), Record({}, {"image": image})
                )
            bar.update(len(part))


def stored_images(study: Study, benchmark: Benchmark, sampling: Sampling) -> Iterator[tuple[str, Tensor]]:
    """(id, images (S, 3, H, W) in [0, 1]) of each row, sampled where missing, as rounded as a PNG."""
    generate(study, benchmark, sampling)
    for i in benchmark.ids:
        row = dataclasses.replace(benchmark, table=benchmark.table.loc[[i]])
        images = _read_images(study, row, sampling)
        if None in images:  # damaged files: generate() saw them, reading removed them
            generate(study, row, sampling)
            images = _read_images(study, row, sampling)
        yield i, torch.stack([record.tensors["image"] for record in images]).float() / 255


def generate_and_score(study: Study, benchmark: Benchmark, sampling: Sampling | None = None) -> pd.DataFrame:
    """Images for every prompt, scored against the prompt's training image.

    Returns a row per image: id, seed, score, replicated, and the benchmark's columns but prompt and image.
    """
    sampling = sampling or study.sampling()
    keys = {i: _score_key(study, benchmark, i, sampling) for i in benchmark.ids}
    missing = [i for i in benchmark.ids if study.store.find("score", keys[i]) is None]
    if missing:
        part = dataclasses.replace(benchmark, table=benchmark.table.loc[missing])
        for i, images in stored_images(study, part, sampling):
            original = read_image(benchmark.path.parent / benchmark.table.loc[i, "image"])[None]
            scores = similarity(study.descriptor.embed(images), study.descriptor.embed(original))[:, 0]
            study.store.save("score", keys[i], Record({"scores": scores.tolist()}))
    scores = {i: study.store.find("score", keys[i]).values["scores"] for i in benchmark.ids}
    table = replication_table(scores, study.descriptor.threshold)
    about = benchmark.table.drop(columns=["prompt", "image"])
    return table.merge(about, left_on="id", right_index=True, how="left")


def progress(total: int, label: str) -> tqdm:
    """One bar with the time left; silent where stderr is no terminal, as in a notebook."""
    return tqdm(
        total=total, desc=label, unit="image", disable=not (sys.stderr.isatty() and total), leave=False
    )


def _read_images(study: Study, row: Benchmark, sampling: Sampling) -> list[Record | None]:
    """Stored images of a benchmark of one row, by seed."""
    (item,), (prompt,) = row.ids, row.prompts()
    keys = [_image_key(study, item, prompt, k, sampling) for k in range(sampling.seeds)]
    return [study.store.find("image", key) for key in keys]


def _image_key(study: Study, item: str, prompt: str, index: int, sampling: Sampling) -> dict:
    """All that decides one image."""
    return {
        **study.model.identity,
        "version": VERSION,
        "prompt": prompt,
        "noise": noise_seed(study.seed, item, index),
        "guidance_scale": sampling.guidance_scale,
        "steps": sampling.steps,
    }


def _score_key(study: Study, benchmark: Benchmark, item: str, sampling: Sampling) -> dict:
    """All that decides an item's scores: its images, its training image's bytes, the descriptor's weights."""
    row = benchmark.table.loc[item]
    original = (benchmark.path.parent / row["image"]).read_bytes()
    images = [_image_key(study, item, row["prompt"], k, sampling) for k in range(sampling.seeds)]
    return {
        "images": images,
        "original": hashlib.sha256(original).hexdigest()[:16],
        "descriptor": getattr(study.descriptor, "fingerprint", study.descriptor.name),
    }


def _images_at_once(study: Study, sampling: Sampling) -> int:
    """On a CPU one prompt at a time, so that an interruption costs one; on a GPU as many as fit."""
    if study.images_at_once:
        return study.images_at_once
    if study.model.device.type == "cpu":
        return sampling.seeds
    return max(1, PIXELS_AT_ONCE[study.model.device.type] // study.model.defaults.image_size**2)


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
