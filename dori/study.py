"""One study: a model, a benchmark, a descriptor, a run directory. Tidy tables out, resumable."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from dori import parallel
from dori.archive import open_archive
from dori.benchmark import Benchmark, load_benchmark
from dori.drawing import Sampling, generate_and_score, noise_seed, progress, stored_images
from dori.errors import DoriError
from dori.metrics.copy import CopyDescriptor, load_descriptor
from dori.metrics.intervals import Estimate
from dori.model import TextToImageModel
from dori.store import RunStore, commit, write_json

__all__ = [  # with what a study's images are drawn by, so that a chapter imports from one place
    "PRESETS",
    "Preset",
    "Sampling",
    "Study",
    "find_preset",
    "generate_and_score",
    "noise_seed",
    "open_study",
    "progress",
    "stored_images",
]


REPEATED = 1 / 25  # share of the shipped measurements that a run makes again


@dataclass(frozen=True)
class Preset:
    """The size of a run; what is sampled, never what is claimed. None means all, or the model's own value."""

    name: str
    seeds: int  #: images per prompt
    steps: int | None  #: DDIM steps
    memorized: int | None  #: verbatim prompts per number of copies
    template: int | None  #: template prompts
    regular: int | None  #: held-out prompts
    sweep_prompts: int  #: prompts of each sort in a sweep
    guidance: tuple[float, ...]  #: guidance scales of the sweep
    step_counts: tuple[int, ...]  #: DDIM steps of the sweep
    detection_regular: int | None  #: regular prompts a detector must leave alone
    attacked: int | None  #: images of each sort for the search of chapter 1 and of the commands

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
class Study:
    """What the experiments of a chapter share."""

    model: TextToImageModel
    memorized: Benchmark
    regular: Benchmark  #: held-out prompts, kind "none"
    descriptor: CopyDescriptor
    store: RunStore
    preset: Preset
    seed: int = 0
    images_at_once: int | None = None  #: None: what fits (drawing.rows_at_once)

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
        return self.on(TextToImageModel.load("twin", device=self.model.device, dtype=self.model.dtype))

    def headline(self, name: str, estimate: Estimate) -> Estimate:
        """Note a headline figure in the run's headlines.json and hand it back for the prose."""
        figures = self.headlines
        known = (None if pd.isna(v) else v for v in estimate)  # NaN is not JSON
        about = {"preset": self.preset.name, "model": self.model.name, "commit": commit()}
        about["cell"] = _cell()
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
        found = self.store.provenance(
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            processes=parallel.count(),
            preset=self.preset.name,
            seed=self.seed,
        )
        self.store.note_touched()
        write_json(self.store.directory / "provenance.json", found)
        return found


def open_study(
    *,
    model: str | Path = "testbed",
    benchmark: str | Path = "testbed",
    preset: str = "quick",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    run_dir: str | Path,
    descriptor: str | Path = "bundled",
    records: str | Path = "none",
) -> Study:
    """Load what a chapter needs from the parameters of its notebook. Cheap checks come before the weights.

    `dtype`: precision of the weights; each has records of its own. `records`: "none", or where measurements
    come from that need not be made again: "shipped" (data/records) or a directory; a share of them
    (`REPEATED`) is made again all the same.
    """
    size = find_preset(preset)
    archive = open_archive(records, share=REPEATED, salt=commit() or "")
    prompts = load_benchmark(benchmark)
    regular = load_benchmark("regular") if str(benchmark) == "testbed" else prompts.select(kind="none")
    store = RunStore(run_dir, archive)
    with store.timed("loading"):
        adapter = TextToImageModel.load(model, device=device, dtype=dtype)
    return Study(
        adapter,
        prompts.select(kind=["verbatim", "template"]),
        regular,
        load_descriptor(descriptor, device=adapter.device),
        store,
        size,
        _whole(seed),
    )


def _cell() -> int | None:
    """Number of the notebook cell in hand, as Jupyter shows it beside the cell; None outside a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return None if shell is None else shell.execution_count


def _whole(seed: int | str) -> int:
    """Parameters given on a command line arrive as text."""
    try:
        return int(seed)
    except ValueError:
        raise DoriError(f"seed '{seed}' is not a whole number") from None
