"""A fast decoder for PNG files of the model's own size without optional chunks, as data sets contain them."""

import zlib
from functools import lru_cache

from PIL import Image

from mlp_dist.core.spec import ImageSpec

_KINDS = {1: ("L", 0), 3: ("RGB", 2)}
"""Number of channels -> Pillow's mode and PNG's color type."""

_HEAD = 33
"""Bytes of the signature and the chunk IHDR. IDAT follows: length, name, compressed pixels, checksum."""

_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_plain(data: bytes, spec: ImageSpec) -> Image.Image | None:
    """The image in mode L or RGB, or None if the file is anything else.

    Calls Pillow's decoder without parsing the chunks, in a fifth of the time of Image.open.
    """
    end = len(data) - len(_END)
    whole = data.startswith(_head(spec)) and data.endswith(_END) and data[_HEAD + 4 : _HEAD + 8] == b"IDAT"
    if not whole or int.from_bytes(data[_HEAD : _HEAD + 4]) != end - _HEAD - 12:
        return None
    mode, _ = _KINDS[spec.channels]
    try:
        return Image.frombytes(mode, (spec.width, spec.height), data[_HEAD + 8 : end - 4], "zip", mode, 0)
    # Damaged: decode_image raises the error.
    except (ValueError, OSError):
        return None


@lru_cache
def _head(spec: ImageSpec) -> bytes:
    """The signature and IHDR: 8 bits per channel, not interlaced."""
    _, color_type = _KINDS[spec.channels]
    size = spec.width.to_bytes(4) + spec.height.to_bytes(4)
    chunk = b"IHDR" + size + bytes([8, color_type, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4)
