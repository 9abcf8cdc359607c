"""Draws what people look at: overlays, legends, contact sheets, charts of data and bases."""

from flaxseg.drawing.images import (
    colorize,
    error_picture,
    overlay,
    overlay_with_legend,
    save_palette_png,
    save_picture,
    side_by_side,
    with_legend,
)

__all__ = [
    "colorize",
    "error_picture",
    "overlay",
    "overlay_with_legend",
    "save_palette_png",
    "save_picture",
    "side_by_side",
    "with_legend",
]
