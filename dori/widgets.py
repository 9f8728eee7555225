"""Figures with a slider that need no kernel: all frames lie in the page, the browser links them."""

import base64
import html
import io
from collections.abc import Sequence

import ipywidgets
from matplotlib.figure import Figure


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
    children = [ipywidgets.HTML(_figure_html(png(f), a, caption)) for f, a in zip(frames, alts, strict=True)]
    stack = ipywidgets.Stack(children, selected_index=0)
    slider = ipywidgets.SelectionSlider(options=list(labels), description=description, continuous_update=True)
    slider.style.description_width = "initial"
    slider.layout.width = "min(30em, 100%)"
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


def _figure_html(picture: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(picture).decode()
    alt = html.escape(alt, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}" style="max-width:100%">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
