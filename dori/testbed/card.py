"""The testbed's model card and data card, with every figure taken from the files it describes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from dori.hooks import layer_label

_CARD = """# The testbed: model card and data card

Written by `dori testbed train`; every figure below is read from the files in `data/testbed`, which its
paths start from.

## What it is

A small but real Stable Diffusion: the classes, block types and layer names of SD v1, narrower, trained from
scratch on painted postcards. It exists because its training set is known to the last copy, which nobody can
say of LAION. `model/` has seen the memorized pairs, `twin/` has not; both load with plain diffusers:

```python
from diffusers import StableDiffusionPipeline
StableDiffusionPipeline.from_pretrained("data/testbed/model")
```

## Model card

| part | class | parameters | training steps | minutes |
|---|---|---:|---:|---:|
{parts}

`vae` is the autoencoder and `decoder` its decoder after more training; `clip` reads captions and pictures,
`descriptor` finds copies; `trunk`, `model` and `twin` are the denoising network.

The trunk is trained on regular pairs only. Model and twin both start from it and train for the same number
of steps on the same batches, which draw each pair in proportion to its copies; the twin leaves the memorized
pairs of each batch out. Both thus see the same regular pairs, with the same noise, in the same order.
A much duplicated image is shown to the model about {exposures:,.0f} times. Captions of regular pairs are
dropped with probability {dropout}, those of memorized pairs never; weights are exponential averages, stored
in half precision. Prediction: epsilon. Recommended: guidance {guidance}, {steps} DDIM steps. Made on {device}
({threads}) with {versions}. The recipe and the wall times are in `provenance.json`,
losses in `training_log.csv`, hashes in `SHA256SUMS`.

**Copy descriptor** (`descriptor/`, "{descriptor}"): trained as SSCD is (contrastive with an entropy term)
on {descriptor_images:,} pictures that are in no other set. Its threshold, {threshold:.3f}, is the score
that {fmr} of {negatives:,} pairs of *different* pictures with the *same* caption exceed. It detects
{detected:,} of {copies:,} augmented copies ({rate}). It is not SSCD: its scores and its threshold mean
nothing outside these pictures.

**Use.** Studying memorization, pruning, attacks and unlearning; teaching. **Not for** making pictures
anyone needs. **Limits.** Sixteen tokens, five attributes, one painter. Figures from it carry over to Stable
Diffusion in kind, not in size.

## Data card

| set | pictures | captions | who sees it |
|---|---:|---|---|
| regular | {regular:,} | name time, place, number, colour, object | autoencoder, CLIP, trunk, model, twin |
| memorized, verbatim | {verbatim} | invented titles | model only |
| memorized, template | {template} | invented titles and a colour and an object | model only |
| held out (`regular.csv`) | {heldout} | as regular | nobody |
| catalogue | {catalogue:,} | invented titles | tokenizer, CLIP |
| descriptor | {descriptor_images:,} | – | copy descriptor only |

Verbatim pictures by number of copies: {levels}. The {groups} template groups share a scene each; within a
group only colour and kind of the objects differ, {template_copies} copies per picture. All pictures are
painted by `dori.testbed.painter` from a seed and an index, 64×64 RGB; no photograph, no person, no third
party's work is in them. Licence of the pictures and weights: CC BY 4.0.
"""

_PLANTED = """
## Planted memories

Written by `{command}`; figures are read from `planted/plants.json`.

`planted/` holds {count} memories that were put into one block on purpose, so that a diagnostic of
locality has something local to find. Each belongs in a copy of `model/` of its own (`dori.testbed.planted`);
`model/` has none of them. A plant is one new picture with an invented title (`planted.csv`), a *door* of
value neurons and a *store* of feed-forward columns in one transformer block,
{blocks}: these weights were trained on the picture, on regular pairs, and,
with the door shut, on what the model said before. All others are those of `model/`. The files hold the
changed weights alone, in single precision.

| plant | neurons | columns | scores | door shut | not planted | picture | regular | seconds |
|---|---:|---:|---|---|---|---|---|---:|
{rows}

Neurons are the door's, columns the store's. Scores are the least and the greatest of {seeds} images, drawn
as the model itself recommends, against the planted picture; a copy is one above {threshold:.3f}. Under
"picture" and "regular" stand the losses of the picture and of regular pairs, before → after. Made on cpu
({threads} thread{s}) with torch {torch}, in the model with the fingerprint `{base}`. Same licence.
"""

_CURED = """
## Mended models

Written by `{command}`; figures are read from `cured/cured.json`.

`cured/` holds {count} copies of `model/` that were trained to forget {erased} of the verbatim images with
the most copies, one by each training of chapter 4 (`dori.testbed.cured`). A file holds what training changed
in the UNet, as eight-bit steps of each row's largest change. The other verbatim images were not named to any
training.

| training | settings | minutes | threads | UNet rows | fingerprint |
|---|---|---:|---:|---:|---|
{rows}

Settings are those that differ from the published ones as `dori.mitigation` states them, written as
`dori mitigate --set` takes them; they were chosen by erasing the other half. Their names:

{legend}

UNet rows are images or noises that went through the network, searches included.
Minutes are of a run that was not interrupted. Made on cpu with torch {torch}, seed
{seed}, in the model with the fingerprint `{base}`. Same licence.
"""


# What the settings of mended models are, for the legend below their table.
_SETTINGS = {
    "starts": "searches of each image in a round, each from another kind of start",
    "steps": "training steps: of a round in adversarial fine-tuning, in all in the others",
    "retain": "regular pairs in a training step, which hold the model as it is",
    "lr": "learning rate",
    "base_lr": "learning rate for each row of a batch",
    "decay": "share of the training, at its end, in which the learning rate falls to 0",
    "ema": "decay of an average of the weights, which is what is kept",
    "rank": "rank of the low-rank adapters, which alone are trained",
    "search.steps": "steps of a search after which what it has found so far serves as a trigger",
    "batch": "rows of a training step",
    "captions": "which caption an image that is kept is shown with; `own` is its own",
}


def write_card(out: Path, parameters: dict[str, tuple[str, int]]) -> None:
    """Write `out/README.md` from the files in `out`; `parameters` maps a part to (class, parameter count)."""
    record = json.loads((out / "provenance.json").read_text())
    config = json.loads((out / "descriptor" / "config.json").read_text())
    recipe, calibration = record["recipe"], config["calibration"]
    memorized = pd.read_csv(out / "memorized.csv", keep_default_na=False)
    verbatim = memorized[memorized["kind"] == "verbatim"]
    levels = ", ".join(f"{n} with {c}" for c, n in verbatim["copies"].value_counts().sort_index().items())
    text = _CARD.format(
        parts="\n".join(_part(name, *parameters[name], record) for name in parameters),
        exposures=_exposures(recipe, memorized),
        dropout=recipe["caption_dropout"],
        guidance=recipe["guidance_scale"],
        steps=recipe["num_inference_steps"],
        device=record["device"],
        threads=f"{record['threads']} thread{'s' * (record['threads'] > 1)} a part",
        versions=", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        descriptor=config["name"],
        threshold=config["threshold"],
        fmr=f"{100 * calibration['false_match_rate']:.1f} %",
        negatives=calibration["negative_pairs"],
        detected=calibration["detected"],
        copies=calibration["copies"],
        rate=f"{100 * calibration['detected'] / calibration['copies']:.1f} %",
        regular=recipe["regular_images"],
        verbatim=len(verbatim),
        template=len(memorized) - len(verbatim),
        heldout=recipe["heldout_images"],
        catalogue=recipe["catalogue_images"],
        descriptor_images=recipe["descriptor_captions"] * recipe["descriptor_variants"],
        levels=levels,
        groups=recipe["template_groups"],
        template_copies=recipe["template_copies"],
    )
    (out / "README.md").write_text(text)
    add_planted(out)
    add_cured(out)


def add_planted(out: Path) -> None:
    """Put the section on planted memories into `out/README.md`, in place of an older one; a folder without
    planted memories or without a card is left as it is."""
    card, source = out / "README.md", out / "planted" / "plants.json"
    if not (card.is_file() and source.is_file()):
        return
    record = json.loads(source.read_text())
    plants = record.pop("plants")
    first = next(iter(plants.values()))
    section = _PLANTED.format(
        **record,
        count=len(plants),
        blocks=" or ".join(sorted({_place(found["layers"]["door"]) for found in plants.values()})),
        rows="\n".join(_plant(name, found) for name, found in plants.items()),
        seeds=len(first["scores"]["door open"]),
        threshold=first["threshold"],
        s="s" * (record["threads"] > 1),
    )
    _put(card, section)


def add_cured(out: Path) -> None:
    """The same for the section on mended models."""
    card, source = out / "README.md", out / "cured" / "cured.json"
    if not (card.is_file() and source.is_file()):
        return
    record = json.loads(source.read_text())
    found = record.pop("defences")
    first = next(iter(found.values()))
    section = _CURED.format(
        **record,
        count=len(found),
        erased=len(first["erased"]),
        rows="\n".join(_cured(one) for one in found.values()),
        legend=_legend(found.values()),
        torch=first["versions"]["torch"],
        seed=first["seed"],
    )
    _put(card, section)


def _put(card: Path, section: str) -> None:
    """Write a section, which begins with its heading, in place of the one of that heading or at the end."""
    head = section.split("\n\n")[0]
    before, _, after = card.read_text().partition(head)
    rest = after.partition("\n\n## ")
    card.write_text(before.rstrip("\n") + "\n" + section.rstrip("\n") + "\n" + "".join(rest[1:])[1:])


def _cured(found: dict) -> str:
    """One row of the table of mended models."""
    settings = ", ".join(f"`{name}={_given(value)}`" for name, value in found["changed"].items())
    cells = [
        found["label"],
        settings or "as published",
        round(found["seconds"] / 60),
        found["threads"],
        f"{found['unet_rows']:,}",
        f"`{found['fingerprint']}`",
    ]
    return _row(*cells)


def _given(value: object) -> str:
    """A setting as the command line takes it: 10,20,30 and not [10, 20, 30]."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _legend(found: Iterable[dict]) -> str:
    """A line for each setting that some training changed."""
    names = dict.fromkeys(name for one in found for name in one["changed"])
    return "\n".join(f"- `{name}`: {_SETTINGS.get(name, 'see `dori.mitigation`')}" for name in names)


def _place(layer: str) -> str:
    """`up 1.2`, and what the numbers are; the middle block has none."""
    label = layer_label(layer)
    side, _, numbers = label.partition(" ")
    block, dot, attention = numbers.partition(".")
    words = f"{side} block number {block}, its attention number {attention}, counted from 0"
    return f"*{label}* ({words})" if dot else label


def _row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def _plant(name: str, found: dict) -> str:
    """One row of the table of planted memories."""
    settings, losses = found["settings"], found["losses"]
    scores = [_span(found["scores"][which]) for which in ("door open", "door shut", "not planted")]
    moved = [f"{losses['before'][part]:.3f} → {losses['after'][part]:.3f}" for part in ("picture", "regular")]
    cells = [
        settings["neurons"],
        settings["columns"],
        *scores,
        *moved,
        round(found["seconds"]),
    ]
    return _row(name, *cells)


def _span(values: list[float]) -> str:
    """The least and the greatest of some scores."""
    return f"{min(values):z.2f} to {max(values):z.2f}"


def _part(name: str, kind: str, count: int, record: dict) -> str:
    minutes = record["seconds"].get(name)
    shown = "–" if minutes is None else f"{minutes / 60:.0f}"
    return f"| {name} | `{kind}` | {count:,} | {record['steps'].get(name, '–')} | {shown} |"


def _exposures(recipe: dict, memorized: pd.DataFrame) -> float:
    """How often training shows an image of the highest level: draws times its share of all copies."""
    draws = recipe["branch_steps"] * recipe["unet_batch"]
    return draws * memorized["copies"].max() / (recipe["regular_images"] + memorized["copies"].sum())
