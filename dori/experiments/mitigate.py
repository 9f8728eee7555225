"""`dori mitigate`: one pruned model for all prompts, saved as a plain diffusers directory."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dori import parallel
from dori.benchmark import Benchmark
from dori.drawing import decided_by, progress, rows_at_once
from dori.errors import DoriError
from dori.experiments.modelfiles import COMMAND, provenance, put, workplace, write_model
from dori.experiments.options import chosen
from dori.experiments.runfiles import left_out
from dori.experiments.selections import Setting, code_name, find_units, named, reference_prompts
from dori.hooks import preserved
from dori.mitigation.nemo import Nemo
from dori.mitigation.units import Units, union
from dori.mitigation.wanda import Wanda, column_norms, wanda_mask
from dori.store import Record, content_key
from dori.study import Study

METHODS = {"nemo": Nemo(), "wanda": Wanda()}


def find_setting(method: str, given: Mapping[str, object]) -> Setting:
    """A method's settings from options; those that are None stay at the paper's. Raises DoriError."""
    return chosen(method, METHODS, given)


def mitigate(study: Study, prompts: Benchmark, setting: Setting, out: Path) -> Units:
    """Switch off one set of units for all prompts and save the model; the study's run is in workplace(out).

    `out` appears whole or not at all, and is left as it is if it holds this very model. Raises DoriError if
    the method finds nothing to switch off.
    """
    decides = {**decided_by(study, code_name(setting)), **named(setting), **dataclasses.asdict(setting)}
    decides |= {"prompts": prompts.prompts(), "regular": study.regular.prompts()}
    decides |= dataclasses.asdict(study.model.defaults)  # of Wanda's norms, and saved
    if provenance(out).get("key") == content_key(decides):
        units = Units.load(out / "units.safetensors")
    else:
        units = joint_units(study, prompts, setting)
        if not units:
            raise DoriError(
                f"{named(setting)['setting']} finds nothing to switch off for {len(prompts)} prompts"
            )
        about = {"key": content_key(decides), **_about(study, prompts, setting, units)}
        if parallel.first():
            write_pruned(study, units, workplace(out) / "model", about)
            put(workplace(out) / "model", out)
        parallel.wait()
    if parallel.first():
        shutil.rmtree(workplace(out), ignore_errors=True)
    return units


def joint_units(study: Study, prompts: Benchmark, setting: Setting) -> Units:
    """One set for all prompts: the union of NeMo's sets, or Wanda's masks from the norms of all prompts.

    What is costly is kept for each prompt, so that an interruption costs those in hand.
    """
    if isinstance(setting, Nemo):
        return union(find_units(study, prompts, setting).values())
    target = _pooled_norms(study, prompts.prompts(), setting)
    reference = _pooled_norms(study, reference_prompts(study, prompts, setting), setting)
    layers = study.model.ffn_layers().items()
    return Units({n: wanda_mask(x.weight, target[n], reference[n], setting.sparsity) for n, x in layers})


def write_pruned(study: Study, units: Units, path: Path, about: Mapping[str, object]) -> None:
    """Save the pipeline with the units zeroed in its weights, and the units beside it."""
    with preserved([study.model.unet]):
        units.bake(study.model.unet)
        write_model(study, path, f"{study.model.name}, {about['setting']}", about)
    units.save(path / "units.safetensors")
    (path / "units.safetensors").chmod(0o644)


def _pooled_norms(study: Study, prompts: Sequence[str], setting: Wanda) -> dict[str, Tensor]:
    """Norms (steps, m) of each layer's input columns over the rows of all prompts together."""
    own, decides = study.model.defaults, {**decided_by(study, "wanda"), **dataclasses.asdict(setting)}
    decides |= {"guidance_scale": own.guidance_scale, "of_steps": own.num_inference_steps}
    del decides["sparsity"], decides["reference"]  # matters of the masks
    keys = {prompt: {**decides, "prompt": prompt} for prompt in prompts}
    missing = parallel.missing(list(keys), lambda p: study.store.find("norms", keys[p]) is not None)
    size, squares = rows_at_once(study), {}
    with progress(len(missing), "Wanda") as bar:
        for part in (missing[k : k + size] for k in range(0, len(missing), size)):
            with study.store.timed("norms"):
                found = column_norms(study.model, study.model.encode_prompts(part), setting, batch_size=size)
                for n, prompt in enumerate(part):
                    norms = Record({}, {k: x[n].clone() for k, x in found.items()})
                    study.store.save("norms", keys[prompt], norms)
            bar.update(len(part))
    parallel.wait()
    for prompt, times in Counter(prompts).items():
        for name, x in study.store.find("norms", keys[prompt]).tensors.items():
            squares[name] = squares.get(name, 0) + times * x.square()
    return {name: x.sqrt().to(study.model.device) for name, x in squares.items()}


def _about(study: Study, prompts: Benchmark, setting: Setting, units: Units) -> dict:
    """What the saved model's provenance says beside versions and machine."""
    return {
        "command": COMMAND,
        **named(setting),
        "settings": dataclasses.asdict(setting),
        "source": {"name": study.model.name, "fingerprint": study.model.fingerprint},
        "benchmark": str(prompts.path),
        "prompts": len(prompts),
        "skipped": left_out(prompts),
        "units": {"count": units.count, "eligible": units.size, "density": units.density},
    }
