"""What a pruning method switches off for each prompt of a study, found once per run directory."""

import dataclasses
import hashlib
from collections.abc import Sequence

from torch import Tensor

from dori import parallel
from dori.benchmark import Benchmark
from dori.drawing import decided_by, noise_seed, rows_at_once
from dori.errors import DoriError
from dori.experiments.searches import at_once
from dori.mitigation.nemo import Nemo, activation_statistics, nemo
from dori.mitigation.signature import calibrate
from dori.mitigation.units import Units
from dori.mitigation.wanda import Wanda, wanda
from dori.store import Record
from dori.study import Study

Setting = Nemo | Wanda
CALIBRATION = 64  # held-out prompts behind NeMo's threshold
WORDS = {  # of settings in labels
    "k": "top {}",
    "seeds": "{} noises",
    "seed": "noise of seed {}",
    "refine": "unrefined",
    "up": "up blocks too",
    "steps": "{} steps",
    "conditional_only": "conditional half",
    "reference": "against {} captions",
}


def named(setting: Setting) -> dict[str, str]:
    """`method` and `setting` as tables and legends show them; whatever is not the default is in the label."""
    if isinstance(setting, Wanda):
        method, label, shown = "Wanda", f"Wanda {100 * setting.sparsity:.10g} %", ("sparsity",)
    else:
        how = "search" if setting.z is None else f"z > {setting.z:.10g}"
        method, label, shown = "NeMo", f"NeMo {how}", ("z",)
    for field in dataclasses.fields(setting):
        value = getattr(setting, field.name)
        if field.name not in shown and value != field.default:
            label += ", " + WORDS.get(field.name, field.name + " {}").format(value)
    return {"method": method, "setting": label}


def code_name(setting: Setting) -> str:
    """The method's name in `dori.methods`."""
    return type(setting).__name__.lower()


def find_units(study: Study, prompts: Benchmark, setting: Setting) -> dict[str, Units]:
    """What a method switches off for each prompt, by id."""
    decides = selection_key(study, setting)
    others = dict(zip(prompts.ids, reference_prompts(study, prompts, setting), strict=True))
    keys = {i: {**decides, "prompt": prompts.table.loc[i, "prompt"], "against": others[i]} for i in others}

    def find(i: str) -> Record | None:
        return study.store.find("units", keys[i], passes=setting.passes)

    todo = parallel.missing(list(others), lambda i: find(i) is not None)
    size = at_once(study)
    for part in (todo[k : k + size] for k in range(0, len(todo), size)):
        with study.store.timed("units"):
            embeds = study.model.encode_prompts(prompts.prompts(part))
            found = select_units(study, embeds, [others[i] for i in part], setting)
            for i, units in zip(part, found, strict=True):
                study.store.save("units", keys[i], Record({"count": units.count}, dict(units)))
    parallel.wait()
    return {i: Units(find(i).tensors) for i in keys}


def selection_key(study: Study, setting: Setting) -> dict:
    """What decides a selection besides the prompt or embedding it is for; NeMo's statistics are of regular
    prompts."""
    decides = {**decided_by(study, code_name(setting)), "method": type(setting).__name__}
    decides |= dataclasses.asdict(setting)
    if isinstance(setting, Nemo):
        decides["regular"] = hashlib.sha256("\n".join(study.regular.prompts()).encode()).hexdigest()[:16]
    return decides


def reference_prompts(study: Study, prompts: Benchmark, setting: Setting) -> list[str]:
    """What each prompt is compared with by Wanda: the empty one, or a regular caption by the prompt's id.

    Raises DoriError without regular captions.
    """
    if not isinstance(setting, Wanda) or not setting.reference:
        return [""] * len(prompts)
    regular = study.regular.prompts()
    if not regular:
        raise DoriError("Wanda against regular captions: the benchmark has none")
    return [regular[noise_seed(study.seed, f"reference/{i}", 0) % len(regular)] for i in prompts.ids]


def select_units(study: Study, embeds: Tensor, others: Sequence[str], setting: Setting) -> list[Units]:
    """Units of each embedding (N, T, D) by the setting's method; Wanda compares with the prompts `others`."""
    if isinstance(setting, Wanda):
        against, size = study.model.encode_prompts(others), rows_at_once(study)
        return wanda(study.model, embeds, settings=setting, reference_embeds=against, batch_size=size)
    with study.store.timed("statistics"):
        statistics = activation_statistics(study.model, study.regular.prompts(), up=setting.up)
    threshold = nemo_threshold(study, setting) if setting.z is None else 0.0
    return nemo(study.model, embeds, statistics, threshold=threshold, settings=setting)


def nemo_threshold(study: Study, setting: Nemo) -> float:
    """theta_mem of this model, from held-out prompts."""
    prompts = study.regular.head(CALIBRATION).prompts()
    decides = {
        **decided_by(study, "nemo"),
        "prompts": prompts,
        "noise": setting.noise,
        "variant": setting.variant,
    }

    def compute() -> Record:
        embeds = study.model.encode_prompts(prompts)
        return Record({"threshold": calibrate(study.model, embeds, setting.noise, variant=setting.variant)})

    return study.store.get("nemo-threshold", decides, compute).values["threshold"]
