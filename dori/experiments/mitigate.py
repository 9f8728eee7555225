"""`dori mitigate`: one pruned model for all prompts, saved as a plain diffusers directory (contract 3)."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dori.benchmark import Benchmark
from dori.drawing import decided_by, progress, rows_at_once
from dori.errors import DoriError
from dori.experiments.options import chosen
from dori.experiments.runfiles import left_out
from dori.experiments.selections import Setting, find_units, named, reference_prompts
from dori.hooks import preserved
from dori.loading import bundled_path
from dori.mitigation.nemo import Nemo
from dori.mitigation.units import Units, union
from dori.mitigation.wanda import Wanda, column_norms, wanda_mask
from dori.store import Record, content_key, write_json
from dori.study import Study

METHODS = {"nemo": Nemo(), "wanda": Wanda()}
LATER = {"adversarial": "chapter 4"}
COMMAND = "mitigate"


def find_setting(method: str, given: Mapping[str, object]) -> Setting:
    """A method's settings from options; those that are None stay at the paper's. Raises DoriError."""
    if method in LATER:
        raise DoriError(f"method '{method}' comes with {LATER[method]}; until then use {', '.join(METHODS)}")
    return chosen(method, METHODS, given)


def check_target(out: Path, model: str) -> None:
    """Raise DoriError if the saved model would replace anything but an earlier one of this command."""
    if out.is_file():
        raise DoriError(f"'{out}' is a file; --out takes a directory")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if out.resolve() == (bundled_path(model) or Path(model).expanduser()).resolve():
        raise DoriError(f"'{out}' is the model that is to be mitigated; give another --out")
    if _provenance(out).get("command") != COMMAND:
        raise DoriError(f"'{out}' is not empty and was not written by `dori {COMMAND}`; give another --out")


def workplace(out: Path) -> Path:
    """The run directory beside `out`: an interrupted run goes on from its records; gone at the end."""
    return out.with_name(f".{out.name}.dori")  # a name that nobody else gives, as it is removed


def mitigate(study: Study, prompts: Benchmark, setting: Setting, out: Path) -> Units:
    """Switch off one set of units for all prompts and save the model; the study's run is in workplace(out).

    `out` appears whole or not at all, and is left as it is if it holds this very model. Raises DoriError if
    the method finds nothing to switch off.
    """
    decides = {**decided_by(study), **named(setting), **dataclasses.asdict(setting)}
    decides |= {"prompts": prompts.prompts(), "regular": study.regular.prompts()}
    decides |= dataclasses.asdict(study.model.defaults)  # of Wanda's norms, and saved
    if _provenance(out).get("key") == content_key(decides):
        units = Units.load(out / "units.safetensors")
    else:
        units = joint_units(study, prompts, setting)
        if not units:
            raise DoriError(
                f"{named(setting)['setting']} finds nothing to switch off for {len(prompts)} prompts"
            )
        about = {"key": content_key(decides), **_about(study, prompts, setting, units)}
        write_model(study, units, workplace(out) / "model", about)
        _put(workplace(out) / "model", out)
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


def write_model(study: Study, units: Units, path: Path, about: Mapping[str, object]) -> None:
    """Save the pipeline with the units zeroed in its weights; units, dori.json and provenance beside it.

    `about` goes into provenance.json; its "setting" becomes part of the model's name.
    """
    model, name = study.model, f"{study.model.name}, {about['setting']}"
    shutil.rmtree(path, ignore_errors=True)
    with preserved([model.unet]):
        units.bake(model.unet)
        model.pipe.save_pretrained(path, safe_serialization=True)
    units.save(path / "units.safetensors")
    write_json(path / "dori.json", {**dataclasses.asdict(model.defaults), "name": name})
    write_json(path / "provenance.json", study.store.provenance(device=str(model.device), **about))
    for file in path.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes 0600, which would lock colleagues out


def _pooled_norms(study: Study, prompts: Sequence[str], setting: Wanda) -> dict[str, Tensor]:
    """Norms (steps, m) of each layer's input columns over the rows of all prompts together."""
    own, decides = study.model.defaults, {**decided_by(study), **dataclasses.asdict(setting)}
    decides |= {"guidance_scale": own.guidance_scale, "of_steps": own.num_inference_steps}
    del decides["sparsity"], decides["reference"]  # matters of the masks
    keys = {prompt: {**decides, "prompt": prompt} for prompt in prompts}
    missing = [p for p, key in keys.items() if study.store.find("norms", key) is None]
    size, squares = rows_at_once(study), {}
    with progress(len(missing), "Wanda") as bar:
        for part in (missing[k : k + size] for k in range(0, len(missing), size)):
            found = column_norms(study.model, study.model.encode_prompts(part), setting, batch_size=size)
            for n, prompt in enumerate(part):
                study.store.save(
                    "norms", keys[prompt], Record({}, {k: x[n].clone() for k, x in found.items()})
                )
            bar.update(len(part))
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


def _provenance(directory: Path) -> dict:
    """The directory's provenance.json; empty where there is none."""
    try:
        found = json.loads((directory / "provenance.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _put(made: Path, out: Path) -> None:
    """Move a finished directory to its place; an older one is kept until the new one stands."""
    old = workplace(out) / "old"
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    made.rename(out)
