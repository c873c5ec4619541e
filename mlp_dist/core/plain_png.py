"""A fast decoder for PNG files of the model's own size without optional chunks, as data sets contain them."""

import zlib
from functools import lru_cache

import cv2
import numpy as np

from mlp_dist.core.spec import ImageSpec

_COLOR_TYPES = {1: 0, 3: 2}
"""PNG's color type by number of channels."""

_HEAD = 33
"""Bytes of the signature and the chunk IHDR. IDAT follows: length, name, compressed pixels, checksum."""

_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_plain(data: bytes, spec: ImageSpec) -> np.ndarray | None:
    """Pixels, uint8 (H, W) or RGB (H, W, 3), or None if the file is damaged or anything else.

    Takes a fifth of the time of Image.open.
    """
    end = len(data) - len(_END)
    whole = data.startswith(_head(spec)) and data.endswith(_END) and data[_HEAD + 4 : _HEAD + 8] == b"IDAT"
    if not whole or int.from_bytes(data[_HEAD : _HEAD + 4]) != end - _HEAD - 12:
        return None
    # OpenCV would report a wrong checksum on stderr.
    if zlib.crc32(memoryview(data)[_HEAD + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels is None or spec.channels == 1 else np.ascontiguousarray(pixels[:, :, ::-1])


@lru_cache
def _head(spec: ImageSpec) -> bytes:
    """The signature and IHDR: 8 bits per channel, not interlaced."""
    size = spec.width.to_bytes(4) + spec.height.to_bytes(4)
    chunk = b"IHDR" + size + bytes([8, _COLOR_TYPES[spec.channels], 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4)
