"""A workflow's parameters: its function's annotations are what a client's JSON is checked against."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import Invalid

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters:
    """What a workflow takes after its run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises `Invalid` for a function that cannot be called with a run and named parameters of JSON types."""
        path = getattr(function, "__qualname__", "workflow")
        if not inspect.iscoroutinefunction(function):
            raise Invalid(path, "expected an async function")
        try:
            first, *others = inspect.signature(function, eval_str=True).parameters.values()
        except (NameError, ValueError) as error:
            raise Invalid(
                path, f"expected a first parameter for the run, and annotations that exist: {error}"
            ) from None
        if first.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            raise Invalid(path, "expected a first parameter for the run")
        self._takes_others = any(other.kind is inspect.Parameter.VAR_KEYWORD for other in others)
        named = [other for other in others if other.kind is not inspect.Parameter.VAR_KEYWORD]
        if unnamed := next((other for other in named if other.kind not in _NAMED), None):
            raise Invalid(f"{path}.{unnamed.name}", "expected a parameter that can be given by its name")
        self._names = [parameter.name for parameter in named]
        try:
            self._shape = msgspec.defstruct(
                "Parameters", [_field(one) for one in named], kw_only=True, forbid_unknown_fields=not self._takes_others
            )
            msgspec.json.Decoder(self._shape)  # raises where it cannot be read from JSON
        except TypeError as error:
            raise Invalid(path, f"expected annotations of JSON types: {error}") from None

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` as the function's annotations want it. Raises `Invalid` with the path of what is wrong."""
        try:
            checked = msgspec.convert(given, self._shape)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        wanted = {name: getattr(checked, name) for name in self._names if getattr(checked, name) is not UNSET}
        return {**given, **wanted} if self._takes_others else wanted


def _field(parameter: inspect.Parameter) -> Any:
    hint = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    if parameter.default is inspect.Parameter.empty:
        return (parameter.name, hint)
    return (parameter.name, hint | UnsetType, UNSET)  # the function knows its default


def _invalid(words: str) -> Invalid:
    text, _, path = words.partition(" - at ")
    where = path.strip("`") or "$"
    if named := re.fullmatch(r"Object (missing required|contains unknown) field `(.+)`", text):
        reason = "required" if named[1].startswith("missing") else "no such parameter"
        return Invalid(f"{where}.{named[2]}", reason)
    return Invalid(where, (text[:1].lower() + text[1:]).replace("`", ""))
