"""Draws what people look at: overlays, legends, contact sheets, charts of data and bases."""

from flaxseg.drawing.images import (
    colorize,
    error_image,
    overlay,
    overlay_with_legend,
    save_image,
    save_palette_png,
    side_by_side,
    with_legend,
)

__all__ = [
    "colorize",
    "error_image",
    "overlay",
    "overlay_with_legend",
    "save_image",
    "save_palette_png",
    "side_by_side",
    "with_legend",
]
