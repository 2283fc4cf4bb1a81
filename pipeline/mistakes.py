"""What is wrong with parameters, in one sentence: where, what, how to mend."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.schema.data import SOURCES


class ParamsError(UserError):
    """A mistake in params.yaml: what, where, how to mend."""


def require_keys(mapping: Any, keys: Iterable[str], where: str, every: bool = True) -> None:
    """Raise ParamsError at an unknown key; where `every` key must be given, at a missing one too."""
    if not isinstance(mapping, dict):
        raise ParamsError(f"{where} must be a mapping with keys {', '.join(keys)}")
    for key in mapping:
        if key not in keys:
            raise ParamsError(f"{where}: unknown key '{key}'{suggestion(key, keys)}")
    for key in keys if every else ():
        if key not in mapping:
            raise ParamsError(f"{where}: key '{key}' is missing")


def check(kind: TypeAdapter[Any], content: Any, where: str) -> Any:
    """The content as `kind` has it; or one ParamsError."""
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        # an unknown key says more than the missing one it was meant to be
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ParamsError(explain(worst, kind, where)) from None


def explain(error: Any, kind: TypeAdapter[Any], where: str) -> str:
    """One pydantic error as one sentence."""
    loc = [str(part) for part in error["loc"]]
    # pydantic puts the source after `data`, as if it were a key
    keys = [part for before, part in zip([where, *loc], loc, strict=False) if before != "data" or part not in SOURCES]
    place, given = ".".join([where, *keys]), error.get("input")
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key '{keys[-1]}'{suggestion(keys[-1], field_names(kind))}"
    if error["type"] == "missing":
        return f"{place}: the key is missing"
    message = re.sub("valid dictionary.*", "mapping", error["msg"].removeprefix("Value error, "))
    hint = "" if isinstance(given, dict) else f" (got {reprlib.repr(given)})"
    if isinstance(given, str) and error["type"] in ("float_type", "int_type"):
        hint += "; that is text: write numbers without quotes"
    return f"{place}: {message}{hint}"


def field_names(kind: TypeAdapter[Any]) -> set[str]:
    """The names of all fields of a model and the models inside it."""
    whole = kind.json_schema()
    return set().union(*(schema.get("properties", {}) for schema in (whole, *whole.get("$defs", {}).values())))


def suggestion(key: Any, valid: Iterable[Any]) -> str:
    known = sorted(map(str, valid))
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; valid keys: {', '.join(known)}"
