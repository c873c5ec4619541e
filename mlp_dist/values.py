"""Values that files and flags give to the fields of TrainConfig: each of the kind that its field has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from mlp_dist.config import TO_TENSOR, TrainConfig
from mlp_dist.core.errors import UsageError
from mlp_dist.data.catalog import ARRAYS_PREFIX, FOLDER_PREFIX


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


_KINDS: tuple[tuple[Any, str, Callable[[Any], bool]], ...] = (
    (bool, "true or false", lambda value: type(value) is bool),
    (int, "a whole number", lambda value: type(value) is int),
    (float, "a number", _is_number),
    (str, "text in quotes", lambda value: isinstance(value, str)),
    (
        tuple[int, ...],
        "a list of whole numbers as [256, 64]",
        lambda value: isinstance(value, tuple) and all(type(each) is int for each in value),
    ),
    (
        tuple[float, float],
        'a mean and a std as [0.5, 0.5], "none" or "data"',
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)),
    ),
)
"""The kinds of fields: how a person writes their values, and which these are."""

_FIELDS = get_type_hints(TrainConfig)
_NORMALIZATIONS = {"none": TO_TENSOR, "data": None}


def field_value(name: str, value: object) -> Any:
    """What JSON or TOML has for the field `name`, as TrainConfig holds it.

    Raises UsageError for a value of another kind; TrainConfig itself checks what it is.
    """
    if name == "normalize" and isinstance(value, str) and value in _NORMALIZATIONS:
        return _NORMALIZATIONS[value]
    value = tuple(value) if isinstance(value, list) else value
    for kind, words, fits in _KINDS:
        may_be_none = _FIELDS[name] == (kind | None)
        if (_FIELDS[name] == kind or (may_be_none and value is not None)) and not fits(value):
            raise UsageError(f"{name} is {value!r}; it must be {words}")
    return value


def is_whole(name: str) -> bool:
    """Whether the field `name` holds whole numbers."""
    return _FIELDS[name] in (int, int | None)


def is_number(name: str) -> bool:
    return is_whole(name) or _FIELDS[name] in (float, float | None)


def absolute_dataset(name: str) -> str:
    """`folder:DIR` and `arrays:DIR` with the whole path; other names as they are."""
    for prefix in (FOLDER_PREFIX, ARRAYS_PREFIX):
        if name.startswith(prefix) and name != prefix:
            return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().resolve()}"
    return name
