"""Pieces of a page as HTML: pictures with captions, rows of them, and one line of status.

Pictures lie in the page itself, as data URIs, so nothing is written to the disk.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from PIL import Image

from cdrl_infer.errors import shown
from cdrl_infer.showing import png


def uri(picture: Image.Image) -> str:
    """A picture as the address of its PNG."""
    return png_uri(png(picture))


def png_uri(content: bytes) -> str:
    """The address of the content of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def figure(picture: Image.Image, caption: str = "", alt: str | None = None) -> str:
    """A picture and the lines under it; ``alt`` is what a screen reader says, by default the caption."""
    lines = "<br>".join(escape(line) for line in caption.splitlines())
    told = escape(caption.replace("\n", ", ") if alt is None else alt, quote=True)
    under = f"<figcaption>{lines}</figcaption>" if lines else ""
    return f'<figure><img src="{uri(picture)}" alt="{told}">{under}</figure>'


def row(figures: Iterable[str], heading: str = "", kind: str = "") -> str:
    """Figures side by side, in as many rows as the page's width needs.

    Args:
        figures: of `figure`.
        heading: a line above them.
        kind: "small" or "large" figures; "" for those in between.
    """
    above = f"<h4>{escape(heading)}</h4>" if heading else ""
    return f'<section class="cdrl-row {kind}">{above}<div>{"".join(figures)}</div></section>'


def wide(address: str, alt: str, caption: str = "", kind: str = "cdrl-plot") -> str:
    """A picture as wide as its column."""
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    told = escape(alt, quote=True)
    return f'<figure class="{kind}"><img src="{address}" alt="{told}">{under}</figure>'


def side_by_side(rows: Iterable[str]) -> str:
    """Several rows, in columns where the page is wide enough."""
    return f'<div class="cdrl-columns">{"".join(rows)}</div>'


def working(text: str, share: float) -> str:
    """A line that says what goes on, and a bar; ``share`` in [0, 1] is done."""
    bar = f'<progress value="{share:.3f}" max="1"></progress>'
    return f'<p class="cdrl-status" role="status">{bar} {escape(text)}</p>'


def said(text: str) -> str:
    """A line that says what was done."""
    return f'<p class="cdrl-status" role="status">{escape(text)}</p>'


def problem(error: object) -> str:
    """A line that says what was wrong and how to mend it."""
    return f'<p class="cdrl-status cdrl-problem" role="alert">{escape(shown(error, 400))}</p>'
