"""Images as text: base64 and data URLs -> the bytes of a file."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from serve.answering.errors import RequestError

_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_text(text: str | bytes, where: str) -> bytes:
    """The bytes in a data URL or in base64 of either alphabet, with line breaks or without.

    Raises RequestError, which says of `where` what is wrong.
    """
    encoded = (text.encode(errors="replace") if isinstance(text, str) else text).strip()
    if encoded[:5].lower() == b"data:":
        head, comma, content = encoded.partition(b",")
        if not comma:
            raise RequestError(f"{where} holds a data URL without a comma: it starts with {_start(encoded)}")
        if not head.rstrip().lower().endswith(b";base64"):
            return unquote_to_bytes(content)
        encoded = unquote_to_bytes(content)
    packed = b"".join(encoded.split()).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} is not base64 ({error}): it starts with {_start(encoded)}") from error


def is_text(data: bytes) -> bool:
    """Whether bytes are a data URL or base64; no image file begins with so many letters."""
    if data[:64].lstrip()[:5].lower() == b"data:":
        return True
    # What is stripped is not in the pattern's end too: the time would grow as the square of the blanks.
    return len(data) >= 24 and _BASE64.fullmatch(data.strip()) is not None


def _start(encoded: bytes) -> str:
    return repr(encoded[:20].decode(errors="replace"))
