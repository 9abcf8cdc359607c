"""Colours of classes."""


def voc_colors(number: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first colours of VOC's palette, which its label PNGs hold.

    Bits 0, 1 and 2 of an id become the highest bits of red, green and blue, the next three bits
    the next lower ones, and so on (VOC development kit, `VOClabelcolormap.m`).

    Args:
      number: up to 256.

    Returns:
      RGB triples; the first is black.

    Example:
      >>> voc_colors(4)
      ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    colors = []
    for index in range(number):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append(tuple(channels))
    return tuple(colors)
