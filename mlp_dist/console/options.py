"""Options: dataclass fields that state, once, all that flags, files and messages need to know of them."""

import math
import operator
from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mlp_dist.console.command import Parser
from mlp_dist.core.errors import UsageError, did_you_mean

_TYPES: dict[Any, tuple[str, str]] = {
    bool: ("true or false", ""),
    int: ("a whole number", "N"),
    float: ("a number", "X"),
    str: ("text", "NAME"),
    Path: ("a path", "DIR"),
    tuple[int, ...]: ("whole numbers as 256,64", "N,N"),
    tuple[float, float]: ("two numbers as 0.5,0.5", "X,X"),
}
"""The possible types, and choices as Literal: their names in messages, and the placeholders in --help."""

_LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass that is an option; its help is the docstring below it.

    `type` is without None, `names` are words for values, such as none for None; `advice` ends messages about
    wrong values. The limits hold for each number of a tuple. A sweep may vary a `swept` option, and --resume
    may change a `free_on_resume` one. `changes_training` is False for locations, names, and how often
    progress is reported.
    """

    name: str
    type: Any
    is_optional: bool
    default: Any
    names: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    swept: bool = False
    free_on_resume: bool = False
    changes_training: bool = True

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def limits(self) -> dict[str, float]:
        return {name: limit for name in _LIMITS if (limit := getattr(self, name)) is not None}

    @property
    def wanted(self) -> str:
        """Type and limits for messages, such as "a number, at least 0 and below 1"."""
        kind = f"one of {', '.join(self.choices)}" if self.choices else _TYPES[self.type][0]
        limits = " and ".join(f"{name.replace('_', ' ')} {limit:,}" for name, limit in self.limits.items())
        names = [f"or {name}" for name in self.names if name.isalpha()]
        return ", ".join([kind, *([limits] if limits else []), *names])

    def text(self, value: Any) -> str:
        """The value as the command line takes it, such as 256,64 or none."""
        if value is None or value == ():
            return next(name for name, meaning in self.names.items() if meaning == value)
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that set the value."""
        if self.type is bool:
            return [self.flag if value else self.flag.replace("--", "--no-", 1)]
        text = self.text(value)
        return [f"{self.flag}={text}"] if text.startswith("-") else [self.flag, text]

    def read(self, text: str) -> Any:
        """The value that a text from the command line stands for. Raises UsageError as `check`."""
        if text in self.names:
            return self.names[text]
        value: Any = text
        # `check` reports a text that cannot be converted.
        with suppress(ValueError):
            if get_origin(self.type) is tuple:
                value = tuple(map(get_args(self.type)[0], text.split(",")))
            elif not self.choices:
                value = self.type(text)
        self.check(value)
        return value

    def from_json(self, value: Any) -> Any:
        """The field's value for one from JSON or TOML, not checked yet."""
        if isinstance(value, str) and (value in self.names or self.type is Path):
            return self.read(value)
        return tuple(value) if isinstance(value, list) else value

    def has_type(self, value: Any) -> bool:
        return _has_type(value, self.type) or (value is None and self.is_optional)

    def check(self, value: Any) -> None:
        """Raise UsageError unless the value has the type and is within the limits."""
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        limits = self.limits.items()
        if not self.has_type(value) or not all(
            _LIMITS[name](n, limit) for n in numbers for name, limit in limits
        ):
            hint = did_you_mean(str(value), self.choices) or self.advice
            raise UsageError(f"{self.shown(value)}; it must be {self.wanted}{hint}")

    def shown(self, value: Any) -> str:
        """The beginning of a message about the value: "batch-size is 'ten'"."""
        is_text = isinstance(value, str) or not self.has_type(value)
        return f"{self.flag[2:]} is {repr(value) if is_text else self.text(value)}"


def _has_type(value: Any, kind: Any) -> bool:
    """Whether `value` has the declared type: whole numbers are numbers, truth values and NaN are not."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(wanted) and all(map(_has_type, value, wanted))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return isinstance(value, kind)


def option(default: Any, **facts: Any) -> Any:
    """A field of a dataclass that is an option; `facts` are Option's."""
    return field(default=default, metadata=facts)


def options(declared: type) -> dict[str, Option]:
    """The options of a dataclass, by name."""
    found, types = {}, get_type_hints(declared)
    for each in fields(declared):
        kind = types[each.name]
        # T | None
        is_optional = isinstance(kind, UnionType)
        kind = get_args(kind)[0] if is_optional else kind
        found[each.name] = Option(each.name, kind, is_optional, each.default, **each.metadata)
    return found


def parse(
    words: Sequence[str],
    groups: Sequence[type],
    defaults: Mapping[str, Any],
    *,
    prog: str,
    description: str,
    advice: Mapping[str, str],
) -> dict[str, Any]:
    """The options that the words of a command line set; for --help, prints all options and exits.

    `groups` are dataclasses whose fields are options; their docstrings are the titles in --help. `advice`
    answers flags of other programs. Flags may have underscores. Raises UsageError.
    """
    usage = f"{prog} [--OPTION VALUE ...]"
    parser = Parser(prog=prog, usage=usage, description=description, argument_default=SUPPRESS, advice=advice)
    has_help = not {"-h", "--help"}.isdisjoint(words)
    known = {name: each for group in groups for name, each in options(group).items()}
    for group in groups:
        add = parser.add_argument_group(str(group.__doc__).rstrip(".")).add_argument
        helps = _documented(group) if has_help else {}
        for name, each in options(group).items():
            if each.type is bool:
                add(each.flag, action=BooleanOptionalAction, help=helps.get(name))
                continue
            metavar = f"{{{','.join(each.choices)}}}" if each.choices else _TYPES[each.type][1]
            shown = f"{helps.get(name)} (default: {each.text(defaults[name])})".replace("%", "%%")
            bare: dict[str, Any] = {"nargs": "?", "const": ""} if "" in each.names else {}
            add(each.flag, metavar=metavar, help=shown, **bare)
    given = vars(parser.parse_args([_hyphenated(word) for word in words]))
    return {
        name: known[name].read(value) if isinstance(value, str) else value for name, value in given.items()
    }


def _hyphenated(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") else word


def _documented(group: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass."""
    import docstring_parser

    documented = docstring_parser.parse_from_object(group).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in documented}
