"""A workflow's parameters: its function's annotations are what a client's JSON is checked against."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType
from msgspec import inspect as info

from ..errors import Invalid
from .steps import Run

_DESCRIBED = (info.Type, info.Field)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters:
    """What a workflow takes after its run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises `Invalid` for a function that cannot be called with a run and named parameters of JSON types."""
        path = getattr(function, "__qualname__", "workflow")
        if not inspect.iscoroutinefunction(function):
            raise Invalid(path, "expected an async function")
        try:
            parameters = list(inspect.signature(function).parameters.values())
            hints = get_type_hints(function, include_extras=True)
        except (AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
            raise Invalid(path, f"expected annotations that exist: {error}") from None
        if not parameters or not _is_run(parameters[0], hints):
            raise Invalid(path, f"expected the run first, as {function.__name__}(run: Run, …)")
        others = parameters[1:]
        self._takes_others = any(other.kind is inspect.Parameter.VAR_KEYWORD for other in others)
        named = [other for other in others if other.kind is not inspect.Parameter.VAR_KEYWORD]
        if unnamed := next((other for other in named if other.kind not in _NAMED), None):
            raise Invalid(f"{path}.{unnamed.name}", "expected a parameter that can be given by its name")
        self._names = [parameter.name for parameter in named]
        fields = [_field(one, hints.get(one.name, Any), f"{path}.{one.name}") for one in named]
        self._shape = msgspec.defstruct(
            "Parameters", fields, kw_only=True, forbid_unknown_fields=not self._takes_others
        )

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` as the function's annotations want it. Raises `Invalid` with the path of what is wrong."""
        try:
            checked = msgspec.convert(given, self._shape)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        wanted = {name: getattr(checked, name) for name in self._names if getattr(checked, name) is not UNSET}
        return {**given, **wanted} if self._takes_others else wanted


def _is_run(first: inspect.Parameter, hints: dict[str, Any]) -> bool:
    """Whether the run can be given as `first`: what is annotated as something else is a client's parameter."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return first.kind in kinds and hints.get(first.name, Run) in (Run, Any)


def _field(parameter: inspect.Parameter, hint: Any, path: str) -> Any:
    """As `msgspec.defstruct` wants it. Raises `Invalid` with `path` where nothing can be read by `hint`."""
    try:
        if parameter.default is inspect.Parameter.empty:
            field: tuple[Any, ...] = (parameter.name, hint)
        else:
            field = (parameter.name, hint | UnsetType, UNSET)  # the function knows its default
        shape = msgspec.defstruct("Parameter", [field])
        msgspec.json.Decoder(shape)
        strange = _strange(info.type_info(shape))
    except TypeError as error:
        raise Invalid(path, f"expected an annotation of JSON types: {error}") from None
    if strange:
        raise Invalid(path, f"expected an annotation of JSON types, got {strange}")
    return field


def _strange(root: info.Type) -> str | None:
    """A class somewhere in a type that no JSON is read as: msgspec would find out with the first run."""
    seen, ahead = set(), [root]
    while ahead:
        one = ahead.pop()
        if isinstance(one, info.CustomType) and one.cls is not object:
            return one.cls.__qualname__
        if isinstance(one, info.RawType | info.ExtType):  # of JSON's and MessagePack's decoders alone
            return type(one).__name__.removesuffix("Type")
        if id(one) not in seen:  # a type may be inside of itself
            seen.add(id(one))
            ahead += _parts(one)
    return None


def _parts(one: Any) -> Iterator[Any]:
    for name in one.__struct_fields__:
        value = getattr(one, name)
        yield from (part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, _DESCRIBED))


def _invalid(words: str) -> Invalid:
    text, _, path = words.partition(" - at ")
    where = path.strip("`") or "$"
    if named := re.fullmatch(r"Object (missing required|contains unknown) field `(.+)`", text):
        reason = "required" if named[1].startswith("missing") else "no such parameter"
        return Invalid(f"{where}.{named[2]}", reason)
    return Invalid(where, (text[:1].lower() + text[1:]).replace("`", ""))
