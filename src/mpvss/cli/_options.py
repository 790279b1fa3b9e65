"""Makes command-line options from the option classes: one parameter of a command is a whole class of them."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Optional

import typer

from mpvss.errors import ConfigError, OptionError
from mpvss.options import Declaration, Options, alternatives, choices, declaration, types_of


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function for typer that has a parameter for each option of the option classes that this one takes.

    Every parameter of ``function`` that is annotated with a subclass of ``Options`` gets an instance, which is made and
    validated before the command runs. Other parameters are typer's own.
    """
    own = inspect.signature(function, eval_str=True).parameters
    groups = {
        name: each.annotation
        for name, each in own.items()
        if inspect.isclass(each.annotation) and issubclass(each.annotation, Options)
    }
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in own.items() if name not in groups]
    parameters += [_parameter(group, each) for group in groups.values() for each in _given(group)]

    def command(**given: Any) -> Any:
        arguments = {name: value for name, value in given.items() if name in own}
        with flags_named():
            for name, group in groups.items():
                arguments[name] = group(**{each.name: _value(each, given[each.name]) for each in _given(group)})
        return function(**arguments)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__wrapped__ = function  # type: ignore[attr-defined]
    return command


@contextmanager
def flags_named() -> Iterator[None]:
    """Turn the error of an option, which names the Python argument, into one line that names the flag."""
    try:
        yield
    except OptionError as error:
        raise ConfigError(f"--{error.name.replace('_', '-')}{error.reason}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def flags_of(name: str, declared: Declaration) -> tuple[str, ...]:
    """Return how the command line writes an option."""
    return declared.flags or ("--" + name.replace("_", "-"),)


def shown_default(each: "Field[Any]") -> Any:
    """Return a default as it is typed, where it is a list of values."""
    default: Any = each.default
    return ",".join(default) if isinstance(default, tuple) and not declaration(each).repeated else default


def _given(group: Any) -> list["Field[Any]"]:
    return [each for each in fields(group) if not declaration(each).python_only]


def _parameter(group: Any, each: "Field[Any]") -> inspect.Parameter:
    declared, annotation = declaration(each), types_of(group)[each.name]
    flags = list(flags_of(each.name, declared))
    if annotation is bool and not declared.switch:
        flags[0] += f"/--no-{flags[0].removeprefix('--')}"
    info = typer.Option(*flags, help=declared.help, metavar=declared.metavar)
    default = inspect.Parameter.empty if each.default is MISSING else shown_default(each)
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[_typed(annotation, declared, default), info],
    )


def _typed(annotation: Any, declared: Declaration, default: Any) -> Any:
    """Return the type that typer sees: what is parsed here is text to it."""
    parts = alternatives(annotation)
    kind: Any = next((part for part in parts if choices(part)), None)
    if declared.repeated:
        kind = list[str]
    elif kind is None:
        kind = str if declared.parse is not None or str in parts else parts[0]
    return Optional[kind] if default is None else kind  # noqa: UP045


def _value(each: "Field[Any]", value: Any) -> Any:
    declared = declaration(each)
    if declared.repeated:
        return tuple(value or ())
    if declared.parse is None or not isinstance(value, str):
        return value
    try:
        return declared.parse(value)
    except ValueError as error:
        raise OptionError(each.name, str(error), separator=": ") from error
