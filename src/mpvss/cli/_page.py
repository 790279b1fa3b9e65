"""The page of all options: ``python -m mpvss.cli._page`` prints docs/options.md."""

from dataclasses import MISSING, fields
from typing import Any

from mpvss.cli._options import flags_of, shown_default
from mpvss.options import (
    LARGEST_COUNT,
    BatchOptions,
    BenchOptions,
    ConsoleOptions,
    Declaration,
    DistillOptions,
    EvalOptions,
    FillOptions,
    Options,
    OutputOptions,
    SegmentOptions,
    alternatives,
    choices,
    declaration,
    types_of,
)

_PAGE = """# Options

Made from the declarations in `mpvss/options.py` by `python -m mpvss.cli._page`. The same names are arguments in
Python, flags on the command line, and keys in NAME.json and in the manifest of a batch. A size is HEIGHTxWIDTH.
"""
_GROUPS: dict[str, type[Options]] = {
    "How video is segmented (`segment`, `batch`; `VideoSegmenter`)": SegmentOptions,
    "What is written (`segment`; `VideoSegmenter.process`; `batch` without the last two)": OutputOptions,
    "`batch`": BatchOptions,
    "`eval`": EvalOptions,
    "`bench`": BenchOptions,
    "`propagate`": FillOptions,
    "`distill`": DistillOptions,
    "How every command speaks": ConsoleOptions,
}


def options_page() -> str:
    """Return docs/options.md."""
    return "\n".join([_PAGE, *(f"## {title}\n\n{_table(group)}\n" for title, group in _GROUPS.items())])


def _table(group: Any) -> str:
    rows = ["| Python | command line | values | default | |", "|---|---|---|---|---|"]
    for each in fields(group):
        declared, annotation = declaration(each), types_of(group)[each.name]
        flags = [flag for flag in flags_of(each.name, declared) if flag.startswith("--") and not declared.python_only]
        if annotation is bool and not declared.switch and flags:
            flags.append(f"--no-{flags[0].removeprefix('--')}")
        default = "required" if each.default is MISSING else "" if each.default in (None, ()) else shown_default(each)
        cells = (
            f"`{each.name}`", ", ".join(f"`{flag}`" for flag in flags), _values(annotation, declared), str(default),
            declared.help,
        )  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _values(annotation: Any, declared: Declaration) -> str:
    allowed = choices(annotation)
    if allowed is not None:
        return ", ".join(allowed)
    if declared.low is not None:
        top = "" if declared.high in (None, LARGEST_COUNT) else f" to {declared.high:g}"
        return f"{declared.low:g}{top or ' or more'}"
    if bool in alternatives(annotation):
        return "yes, no"
    return declared.metavar or "text"


if __name__ == "__main__":
    print(options_page(), end="")
