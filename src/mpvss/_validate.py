"""Files that others made: parsed without surprises, held to a form and a size, and shown without harm.

Every reader of such files goes through here. docs/hardening.md says what is guaranteed.
"""

import dataclasses
import difflib
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

MAX_PIXELS = 2**26
"""Pixels of the largest image that is decoded, 8192x8192; ``MPVSS_MAX_PIXELS`` in the environment replaces it."""

_LONGEST_SHOWN = 200
_LONGEST_YAML = 2**20
_DEEPEST_YAML = 100
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.{3})\]")  # of a path such as .frames[0].pts
_TYPES = {"bool", "int", "float", "str", "null", "object", "array"}
_Any = TypeVar("_Any")


def max_pixels() -> int:
    """Pixels of the largest image that is decoded.

    Raises:
        ValueError: The environment names something else than a whole number above 0.
    """
    text = os.environ.get("MPVSS_MAX_PIXELS", str(MAX_PIXELS))
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**31):
        raise ValueError(f"MPVSS_MAX_PIXELS must be a whole number from 1 to {2**31 - 1}, got {shown(text)}")
    return int(text)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values: no objects, and no aliases, a few lines of which can stand for terabytes.

    Raises:
        ValueError: It is none, holds something else, is nested more than 100 deep, or is longer than a mebibyte; the
            library's time grows with the square of the depth.
    """
    import yaml

    if len(text) > _LONGEST_YAML:
        raise ValueError(f"{len(text)} characters are too many for a configuration")
    try:
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:
                raise ValueError("nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"aliases such as *{event.anchor} are not taken, write the value out")
        return yaml.safe_load(text)
    except Exception as error:  # besides its own errors, whatever its conversions meet with in a malformed value
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


@overload
def convert(value: object, kind: type[_Any], *, what: str, error: type[Exception] = ...) -> _Any: ...
@overload
def convert(value: object, kind: Any, *, what: str, error: type[Exception] = ...) -> Any: ...
def convert(value: object, kind: Any, *, what: str, error: type[Exception] = ValueError) -> Any:
    """Validate a parsed value.

    Args:
        value: Any tree of dictionaries, lists and plain values.
        kind: A type: a TypedDict, of which other keys are left out; a dataclass, of which other keys are refused and
            whose ``__post_init__`` may raise ValueError; lists and dictionaries of types; a plain type. A float may be
            an integer, an integer no truth value.
        what: What the value is called in the message.
        error: What is raised.

    Returns:
        The value as this type.

    Raises:
        error: The value is of another type: ``what: expected ..., got ... (at path)``.
    """
    import msgspec

    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as failure:
        raise error(f"{what}: {_described(str(failure), value, kind)}") from failure
    except RecursionError as failure:
        raise error(f"{what}: nested too deeply") from failure
    unknown = _unknown_key(value, converted, "")
    if unknown:
        raise error(f"{what}: {unknown}")
    return converted


def _described(failure: str, value: Any, kind: Any) -> str:
    """What msgspec says, with the value instead of its type where the path leads to one."""
    failure = failure.replace("`", "").replace(" - at key in $", " as every key - at $")
    text, _, path = failure.partition(" - at $")
    text = text.replace("Expected", "expected", 1).replace("Number out of range", "expected a number in range", 1)
    text = re.sub(r"Object missing required field (.+)", r"\1 is missing", text)
    if text.startswith("Invalid enum value "):
        choices = ", ".join(map(str, _choices(kind, path)))
        text = text.replace("Invalid enum value ", f"expected one of {choices}, got ", 1)
    expected, got, type_ = text.partition(", got ")
    if type_ in _TYPES or (not got and text.startswith("expected ")):
        with suppress(LookupError, TypeError):
            for name, number in _STEP.findall(path):
                value = value[name] if name else value[int(number) if number.isdecimal() else number]
            text = f"{expected}, got {shown(value)}"
    return f"{text} (at {path.removeprefix('.')})" if path else text


def _choices(kind: Any, path: str) -> tuple[object, ...]:
    """What the Literal takes that a path through classes, tuples and optional types leads to."""
    for name, _ in _STEP.findall(path):
        inner = [part for part in (kind, *get_args(kind)) if part not in (Ellipsis, type(None))][-1]
        kind = get_type_hints(inner)[name] if name else inner
    return next(get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal)


def _unknown_key(value: Any, converted: Any, path: str) -> str:
    """What is wrong with the keys of a value that became dataclasses; nothing where all are fields."""
    pairs: list[tuple[Any, Any, str]] = []
    if dataclasses.is_dataclass(converted) and isinstance(value, dict):
        names = [field.name for field in dataclasses.fields(converted)]
        for key in value:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, 1, 0.5)
                hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(names)}"
                return f"unknown key {path}{str(key)[:_LONGEST_SHOWN]}; {hint}"
        pairs = [(value[name], getattr(converted, name), f"{path}{name}.") for name in value]
    elif isinstance(value, list) and isinstance(converted, list | tuple):
        pairs = [(*pair, f"{path[:-1]}[{i}].") for i, pair in enumerate(zip(value, converted, strict=True))]
    return next(filter(None, (_unknown_key(*pair) for pair in pairs)), "")


def shown(value: object) -> str:
    """A value for a message: as Python writes it, cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a very deep list
        text = f"{type(value).__name__} that is too large to show"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Text for a terminal: control characters, and what turns the direction of writing, stand as their escapes.

    Names of files and classes come from others and may hold anything. A line break is kept only before two blanks,
    where messages list things, so that no name begins a line of its own.
    """
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


_HARMFUL = re.compile(
    r"\n(?!  )|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown_address(address: str) -> str:
    """An address as it may be shown and kept: without user name, password, query and fragment.

    Queries carry signatures and tokens under any name. Text that is no address is returned as it is.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or _SCHEME.fullmatch(scheme.strip()) is None or scheme.lower() == "file":
        return address
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
        # A password with a slash: the host comes after the last such sign that begins no name of the path.
        inside = [sign.end() for sign in re.finditer(r"(?<![/@])@", re.split(r"[?#]", rest, maxsplit=1)[0])]
        rest = rest[inside[-1] :] if inside else rest
    elif "@" in rest and _HOST.fullmatch(authority) is None:  # a password with a slash, and no such sign before it
        rest = rest[rest.rindex("@") + 1 :]
    return f"{scheme}://{re.split(r'[?#]', rest, maxsplit=1)[0]}"


def without_secrets(text: str) -> str:
    """A message without the secrets of the addresses in it, whoever wrote it: FFmpeg, fsspec, a server."""
    text = _ADDRESS.sub(lambda match: shown_address(match[1]) + match[2], text)
    return _SECRET.sub(lambda match: f"{match[1]}***", text)


def public(value: Any) -> Any:
    """Plain values with every address as ``shown_address`` shows it."""
    if isinstance(value, str):
        return shown_address(value)
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    return [public(inner) for inner in value] if isinstance(value, list | tuple) else value


class PublicFormatter(logging.Formatter):
    """Log lines that terminals and files may hold: without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several with a traceback."""
        return "\n".join(printable(line) for line in without_secrets(super().format(record)).split("\n"))


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+?)([,;:.!)\]}]*(?=[\s\"'<>]|$))")
_SECRET = re.compile(
    r"\b((?:x-(?:amz|goog|ms)-[\w-]+|sig|signature|[\w-]*token|[\w-]*api[_-]?key|account_?key|shared_?access_?key|"
    r"shared_?access_?signature|[\w-]*secret[\w-]*|key-pair-id|policy|passw(?:or)?d|pwd|credential)=)[^\s&\"'<>;,]+",
    re.IGNORECASE,
)
