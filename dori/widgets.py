"""Figures with a slider or a list that need no kernel: frames lie in the page, the browser links them."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import ipywidgets
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dori.images import to_uint8
from dori.metrics.intervals import fixed
from dori.plots import printed, trigger_card


def png(figure: Figure) -> bytes:
    """A figure as PNG, on its own ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def slider_figure(
    frames: Sequence[Figure], labels: Sequence[str], *, description: str, alts: Sequence[str], caption: str
) -> ipywidgets.VBox:
    """Frames behind a slider; at most a dozen, as each lies in the page as a PNG.

    Children are HTML with an alt text of their own: ipywidgets' Image has none.
    """
    if not len(frames) == len(labels) == len(alts) or not 1 < len(frames) <= 12:
        raise ValueError(
            f"{len(frames)} frames, {len(labels)} labels, {len(alts)} alt texts; at most 12, one of each"
        )
    stack = _stack(frames, alts, caption)
    slider = _slider(labels, description)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


def nested_figure(
    frames: Mapping[str, Mapping[str, Figure]],
    *,
    descriptions: tuple[str, str],
    alts: Mapping[str, Mapping[str, str]],
    caption: str,
) -> ipywidgets.VBox:
    """Frames behind a list and a slider: pick an image, then one of its triggers.

    `frames` and `alts` by image and trigger, with the same labels of triggers for each image, as one slider
    serves all; at most a dozen frames in all. `descriptions` name the list and the slider.
    """
    labels = [list(inner) for inner in frames.values()]
    told = [list(inner) for inner in alts.values()]
    count = sum(map(len, labels))
    if list(frames) != list(alts) or labels != told or not 1 < count <= 12:
        raise ValueError(f"{count} frames, {sum(map(len, told))} alt texts; at most 12, one of each by name")
    if any(inner != labels[0] for inner in labels):
        raise ValueError(f"one slider serves all images, so each needs the same labels: {labels}")
    stacks = [_stack(list(frames[k].values()), list(alts[k].values()), caption) for k in frames]
    outer = ipywidgets.Stack(stacks, selected_index=0)
    choice = ipywidgets.Dropdown(options=list(frames), description=descriptions[0])
    slider = _slider(labels[0], descriptions[1])
    _fit(choice)
    ipywidgets.jslink((choice, "index"), (outer, "selected_index"))
    for stack in stacks:
        ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([choice, slider, outer])


def trigger_picker(
    cards: Mapping[str, Mapping[str, Mapping]], *, threshold: float, limits: tuple[float, float]
) -> ipywidgets.Widget:
    """Cards of triggers (`plots.trigger_card`, each with an `alt`) to choose from, by image and trigger.

    A line of text where there are fewer than two.
    """
    if sum(map(len, cards.values())) < 2:
        return ipywidgets.HTML("Fewer than two triggers were found: there is nothing to choose from.")

    def frame(image: str, name: str, card: Mapping) -> Figure:
        return trigger_card(card, title=f"{image}, from {name}", threshold=threshold, limits=limits)

    frames = {i: {k: frame(i, k, card) for k, card in some.items()} for i, some in cards.items()}
    alts = {i: {k: card["alt"] for k, card in some.items()} for i, some in cards.items()}
    caption = "One trigger: training image, what it paints, what it does inside the network."
    return nested_figure(frames, descriptions=("image", "trigger found from"), alts=alts, caption=caption)


def stage_picker(gallery: Sequence[Mapping], *, threshold: float) -> ipywidgets.Widget:
    """Pick an image, then slide through what becomes of it; beside each stage stands the training image.

    `gallery` as for `plots.comparison_grid`; its first stage is the training image, and every entry has the
    same stages. Images lie in the page as PNGs of their own size and are enlarged there. A line of text where
    the gallery is empty.
    """
    if not gallery:
        return ipywidgets.HTML("Not available for this model and benchmark.")
    first, *stages = gallery[0]["images"]
    if any(list(entry["images"]) != [first, *stages] for entry in gallery):
        raise ValueError("one slider serves all images, so each needs the same stages")
    stacks = [
        ipywidgets.Stack(
            [ipywidgets.HTML(_stage_html(entry, first, stage, threshold)) for stage in stages],
            selected_index=0,
        )
        for entry in gallery
    ]
    outer = ipywidgets.Stack(stacks, selected_index=0)
    choice = ipywidgets.Dropdown(
        options=[printed(entry["prompt"]) for entry in gallery], description="prompt"
    )
    slider = _slider(stages, "stage")
    _fit(choice)
    ipywidgets.jslink((choice, "index"), (outer, "selected_index"))
    for stack in stacks:
        ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([choice, slider, outer])


def _stage_html(entry: Mapping, first: str, stage: str, threshold: float) -> str:
    """Training image and one stage side by side, each with its name, the second with score and verdict."""
    score = entry["scores"][stage]
    verdict = "a copy" if score > threshold else "no copy"
    told = f"copy score {fixed(score)}: {verdict}"
    frame = " dori-copy" if score > threshold else ""
    shown = [
        (first, f"Training image of the prompt “{printed(entry['prompt'])}”.", "&nbsp;", ""),
        (stage, f"{stage}: what is painted, {told}.", f"<b>{told}</b>", frame),
    ]
    pictures = [
        f'<figure class="dori-stage{style}">'
        f'<img src="data:image/png;base64,{_png(entry["images"][name])}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(name)}<br>{words}</figcaption></figure>"
        for name, alt, words, style in shown
    ]
    return f'<div class="dori-stages">{"".join(pictures)}</div>'


def _png(image: Tensor) -> str:
    """A (3, H, W) image as base64 of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _stack(frames: Sequence[Figure], alts: Sequence[str], caption: str) -> ipywidgets.Stack:
    children = [ipywidgets.HTML(_figure_html(png(f), a, caption)) for f, a in zip(frames, alts, strict=True)]
    return ipywidgets.Stack(children, selected_index=0)


def _slider(labels: Sequence[str], description: str) -> ipywidgets.SelectionSlider:
    slider = ipywidgets.SelectionSlider(options=list(labels), description=description, continuous_update=True)
    _fit(slider)
    return slider


def _fit(control: ipywidgets.DOMWidget) -> None:
    """The whole description is read, and nothing is wider than a phone."""
    control.style.description_width = "initial"
    control.layout.width = "min(30em, 100% - 4px)"  # its margins


def _figure_html(picture: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(picture).decode()
    alt = html.escape(alt, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}" style="max-width:100%">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
