"""Tables of what the code sets: presets, memory of known models, limits, columns, rows of a training step."""

from __future__ import annotations

from bookbuild.pages import table

SETTINGS = {  # field of dori.study.Preset -> what a reader calls it
    "seeds": "images per prompt",
    "steps": "DDIM steps",
    "memorized": "verbatim prompts per number of copies",
    "template": "template prompts",
    "regular": "held-out prompts",
    "sweep_prompts": "prompts of each sort in a sweep",
    "guidance": "guidance scales of the sweep",
    "step_counts": "DDIM steps of the sweep",
    "detection_regular": "held-out prompts for detection",
    "attacked": "images of each sort for the search of chapter 1 and of the commands",
}
GPUS, ROOM = (8, 24, 80), 0.8  # gigabytes, and the share of them that weights may take


def presets_part() -> str:
    """The presets of `dori.study` as a table, a row for each setting."""
    from dori.study import PRESETS  # brings torch along, which nothing else here needs

    presets = list(PRESETS.values())
    rows = [
        [meaning, *(show_setting(field, getattr(preset, field)) for preset in presets)]
        for field, meaning in SETTINGS.items()
    ]
    return table(["", *(f"`{preset.name}`" for preset in presets)], rows)


def memory_part() -> str:
    """Gigabytes that weights of the known models take, each with the smallest of GPUS that holds them."""
    import torch

    from dori.known import KNOWN, memory, training_memory

    def held(size: int) -> str:
        room = next((f"{gpu} GB" for gpu in GPUS if size <= ROOM * gpu * 1e9), "none")
        return f"{size / 1e9:.1f} ({room})"

    rows = [
        (f"`{name}`", held(memory(name, torch.bfloat16)), held(memory(name)), held(training_memory(name)))
        for name in KNOWN
    ]
    return table(("Model", "Half precision", "float32", "Fine-tuning"), rows)


def rows_part() -> str:
    """What decides how many rows a step of adversarial fine-tuning has, so how many processes share it."""
    from dori.mitigation.adversarial import Adversarial

    own = Adversarial()
    rows = [
        ("`at-once`", "images of a round", own.at_once),
        ("`starts`", "searches of each, so triggers; at most one from each kind of start", own.starts),
        ("`draws`", "rows of each trigger in a step, each with noise of its own", own.draws),
        ("`retain`", "regular pairs in a step, which hold the model as it is", own.retain),
    ]  # fmt: skip
    triggers = own.at_once * own.starts * own.draws
    most = min(triggers, own.retain)
    return (
        f"{table(('Setting', 'What it is', 'Default'), rows)}\nSo by default a step has {triggers} rows of "
        f"triggers (the first three multiplied) and {own.retain} of regular pairs, and up to {most} "
        "processes can share it. For more, raise `at-once`, `starts` or `draws`, and `retain`.\n"
    )


def passes() -> dict[str, tuple[int, str]]:
    """Rows that the denoiser computes in each stage as published, sampled as SD v1.4 is, and for what."""
    from dori.attack import PAPER
    from dori.loading import Defaults
    from dori.mitigation.adversarial import Adversarial
    from dori.mitigation.nemo import Nemo
    from dori.mitigation.wanda import Wanda

    own = Defaults()
    return {
        "painting": (2 * own.num_inference_steps, "for each image; guidance takes two rows"),
        "attack": (PAPER.passes, "for each search, with the embedding's gradient"),
        "nemo": (Nemo().seeds, "for each set of neurons that the search looks at"),
        "wanda": (Wanda().passes, "for each prompt; the empty prompt is drawn as well"),
        "adversarial": (Adversarial().search.passes,
                        "for each image and round, as an attack's; its own training steps come on top"),
    }  # fmt: skip


def passes_part() -> str:
    """`passes` as a table."""
    names = {"painting": "Painting", "attack": "`dori attack`", "nemo": "NeMo", "wanda": "Wanda"}
    names |= {"adversarial": "Adversarial fine-tuning"}
    rows = [(names[stage], count, what) for stage, (count, what) in passes().items()]
    return table(("Stage", "Rows", "For what"), rows)


def columns_part() -> str:
    """What others call the columns of a benchmark, and their words for its kinds."""
    from dori.promptfiles import CALLED, CODES

    rows = [(f"`{name}`", ", ".join(f"`{other}`" for other in others)) for name, others in CALLED.items()]
    words = {kind: [code for code, found in CODES.items() if found == kind] for kind in CODES.values()}
    rows += [(f"`{kind}` in `kind`", ", ".join(f"`{c}`" for c in codes)) for kind, codes in words.items()]
    return table(("Here", "Elsewhere"), rows)


def limits_part() -> str:
    """What an image at a web address may be like, from the code's own limits."""
    from dori import web
    from dori.images import FORMATS, MAX_PIXELS

    rows = [
        ("Address", "https; an address that is listed as http is asked for by https"),
        ("Server", "at a public address, and so is every server that it redirects to; private, loopback, "
         "link-local and reserved addresses are refused, and what was checked is what is connected to"),
        ("Proxy", "none is used, as it would look up names by itself"),
        ("Redirections", f"at most {web.REDIRECTS}"),
        ("Size", f"at most {web.MAX_BYTES / 1e6:g} MB"),
        ("Pixels", f"at most {MAX_PIXELS / 1e6:g} million, read from the header before anything is unpacked"),
        ("Formats", ", ".join(FORMATS)),
        ("Patience", f"{web.CONNECT:g} seconds to connect, {web.WHOLE:g} for an image, {web.TRIES} attempts"),
    ]  # fmt: skip
    return table(("", "What is fetched"), rows)


def show_setting(field: str, value: int | tuple[float, ...] | None) -> str:
    """A setting of a preset; None leaves the choice to the model or to the benchmark."""
    if value is None:
        return "the model's own" if field == "steps" else "all"
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
