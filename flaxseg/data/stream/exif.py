"""The EXIF orientation of JPEGs whose labels were made without regard to it."""

import struct

_ORIENTATION = 0x0112
_SHORT = 3


def set_upright(encoded: bytes) -> bytes:
    """Says in the EXIF notes of a JPEG that it is stored upright; its pixels stay as they are.

    Published label sets were drawn on the stored pixels, by programs that do not turn them, so
    there the notes are wrong.

    Args:
      encoded: the bytes of a picture file.

    Returns:
      The bytes with the orientation set to 1; the same object where there is none, or none that
      can be understood.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return encoded
    try:
        place, order = _find_orientation(encoded)
        (value,) = struct.unpack_from(f"{order}H", encoded, place)
    except (LookupError, struct.error):
        return encoded
    if value == 1:
        return encoded
    return encoded[:place] + struct.pack(f"{order}H", 1) + encoded[place + 2 :]


def _find_orientation(encoded: bytes) -> tuple[int, str]:
    """Returns the place of the orientation's value, and the byte order there, in a JPEG.

    (JEITA CP-3451, Exif 2.2, sections 4.5 and 4.6.)

    Raises:
      LookupError: there is none.
      struct.error: the file ends before.
    """
    position = 2
    while True:
        marker, length = struct.unpack_from(">HH", encoded, position)
        if not 0xFFE0 <= marker <= 0xFFEF and marker != 0xFFFE:
            raise LookupError  # notes come before all else
        tiff = position + 10
        if marker == 0xFFE1 and encoded[position + 4 : tiff] == b"Exif\0\0":
            break
        position += 2 + max(length, 2)
    order = {b"II": "<", b"MM": ">"}[encoded[tiff : tiff + 2]]
    (directory,) = struct.unpack_from(f"{order}L", encoded, tiff + 4)
    (entries,) = struct.unpack_from(f"{order}H", encoded, tiff + directory)
    for number in range(entries):
        entry = tiff + directory + 2 + 12 * number
        tag, kind, _ = struct.unpack_from(f"{order}HHL", encoded, entry)
        if tag == _ORIENTATION and kind == _SHORT and entry + 10 < position + 2 + length:
            return entry + 8, order
    raise LookupError
