"""Pydantic models in TOML, packaged or in a file of the user's: read, and mistakes explained in one line."""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from fastresnet.errors import Conflict, RefusedValue, UserError, did_you_mean
from fastresnet.toml_lines import explain, line_numbers, nearest_line

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]
LISTED_BY = {"recipe": "`fastresnet recipes`", "sweep": "`fastresnet sweep`"}  # commands, by kind


def packaged_names(kind: str) -> tuple[str, ...]:
    """Return the names of the packaged files of a kind (``recipe`` lie in ``recipes/``), sorted."""
    folder = resources.files("fastresnet") / f"{kind}s"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def read_text(kind: str, name_or_path: str) -> str:
    """Return the TOML text of a packaged name, or of a file (a path has a slash or ends in .toml).

    Raises:
        UserError: unknown name (the nearest is offered), or a file that cannot be read.
    """
    names = packaged_names(kind)
    if name_or_path in names:
        return (resources.files("fastresnet") / f"{kind}s" / f"{name_or_path}.toml").read_text("utf-8")
    if not (name_or_path.endswith(".toml") or "/" in name_or_path):
        near = did_you_mean(name_or_path, names)
        listed = f"{LISTED_BY[kind]} lists them" if kind in LISTED_BY else f"allowed: {', '.join(names)}"
        raise UserError(f"unknown {kind} {name_or_path!r}{near} ({listed}; a file ends in .toml)")
    try:
        return Path(name_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {kind} {name_or_path}: {reason}") from None


def read_model(kind: str, model: type[Model], name_or_path: str) -> Model:
    """Return the model of a packaged name, or of a file.

    Raises:
        UserError: not found, not TOML, or a key or value that is not allowed, with the file's line.
    """
    text = read_text(kind, name_or_path)
    where = source_name(kind, name_or_path)
    try:
        data = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        line, said = explain(text, str(error))
        raise UserError(f"{where}:{line}: not TOML: {said}") from None
    except Conflict as error:
        raise at_line(where, text, error.at, f"not TOML: {error}") from None
    except ValueError as error:
        raise UserError(f"{where}: not TOML: {error}") from None
    return validated(model, data, where, text)


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ValueError: it is not TOML, is nested too deeply to be read, or holds an integer of more than the 64 bits that
            TOML has; the text says what, and where.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    waiting: list[tuple[KeyPath, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*path, key), part) for key, part in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, place), part) for place, part in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise Conflict(f"an integer has {value.bit_length()} bits; TOML's have 64", *path)
    return data


def source_name(kind: str, name_or_path: str) -> str:
    """Return what messages call the file that was read."""
    return f"{kind} {name_or_path}.toml" if name_or_path in packaged_names(kind) else name_or_path


def at_line(where: str, text: str, path: KeyPath, message: str) -> UserError:
    """Return the error of a key in ``text``: ``where:line: message``."""
    return UserError(f"{where}:{nearest_line(line_numbers(text), path)}: {message}")


def validated(model: type[Model], data: Mapping[str, Any], where: str = "", text: str = "") -> Model:
    """Return the model of ``data``, or raise a one-line UserError: with the line in ``where``, or a RefusedValue.

    Args:
        where: what the file is called; empty where it is none.
        text: what it holds.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key is also reported as missing under its right name: say the first.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        path, message = _explain(model, dict(first))
        conflict = first.get("ctx", {}).get("error")
        path = (*path, *conflict.at) if isinstance(conflict, Conflict) else path
        key = ".".join(map(str, path))
        raise (at_line(where, text, path, message) if where else RefusedValue(message, key)) from None


class _Short(reprlib.Repr):
    """Values in messages: cut where they are long, deep or many."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 40


def shown_value(value: Any) -> str:
    """Return ``value`` as Python writes it, cut to fit a line."""
    return _Short().repr(value).replace("\n", " ")  # which a tensor has


def _explain(root: type[BaseModel], error: dict[str, Any]) -> tuple[KeyPath, str]:
    """Return the key path of a pydantic error, and what was wrong and what is allowed."""
    path, owner = _located(root, error["loc"])
    key = ".".join(map(str, path))
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        allowed = sorted(owner.model_fields) if owner else []
        below = [*path[:-1], *_below(owner, str(path[-1]))] if owner else path
        near = did_you_mean(str(path[-1]), allowed, under=key[: -len(str(path[-1]))])
        if len(below) > len(path):
            near = f"; did you mean {'.'.join(map(str, below))!r}?"
        return path, f"unknown key {key!r}{near} (allowed: {', '.join(allowed)})"
    if kind == "missing":
        return path, f"{key} is missing"
    if kind == "union_tag_not_found":
        return path, f"{key}.name is missing (allowed: {', '.join(_tags(root, path))})"
    if kind == "union_tag_invalid":
        tag, tags = str(context["tag"]), _tags(root, path)
        near = did_you_mean(tag, tags)
        return (*path, "name"), f"{key}.name is {shown_value(tag)}{near} (allowed: {', '.join(tags)})"
    if kind == "value_error":
        return path, f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "literal_error":
        near = did_you_mean(str(given), re.findall("'([^']*)'", context["expected"]))
        return path, f"{key} is {shown_value(given)}{near} (allowed: {context['expected']})"
    return path, f"{key} is {shown_value(given)}; {requirement(error)}{_as_toml(root, path, kind, given)}"


def _as_toml(root: type[BaseModel], path: KeyPath, kind: str, given: Any) -> str:
    """Return how a table or a list that was given as something else is written; empty for other mistakes."""
    if kind not in _STRUCTURES:
        return ""
    if isinstance(given, str) and given[:1] in ("[", "{"):
        return ", and this is not TOML: words in it stand in quotes"
    if kind == "tuple_type":
        return ""
    tags = _tags(root, path)
    if tags:
        return f', as in {{name = "{given if given in tags else tags[0]}"}}'
    allowed = sorted({key for model in models_at(root, path) for key in model.model_fields})
    return f" (allowed: {', '.join(allowed)})" if allowed else ""


# Kinds of mistakes of which :func:`_explain` says all; of any other :func:`requirement` says what is allowed.
EXPLAINED = (
    "extra_forbidden",
    "missing",
    "union_tag_not_found",
    "union_tag_invalid",
    "value_error",
    "literal_error",
)
_STRUCTURES = ("tuple_type", "dict_type", "model_type", "model_attributes_type")
_REQUIREMENTS = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number, and a smaller one",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
}


def requirement(error: Mapping[str, Any]) -> str:
    """Return what a value must be, of a pydantic error about it: ``it must be a whole number``."""
    if error["type"] in _REQUIREMENTS:
        return f"it must be {_REQUIREMENTS[error['type']].format_map(error.get('ctx', {}))}"
    return f"it {error['msg'].removeprefix('Input ')}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


@cache
def tags_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of ``name`` that select a model from a union."""
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _below(model: type[BaseModel], key: str) -> tuple[str, ...]:
    """Return the path to a field of that name in a part of ``model``, or nothing."""
    for field, info in model.model_fields.items():
        if any(key in part.model_fields for part in _models(info.annotation)):
            return field, key
    return ()


def models_at(root: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """Return the models that the value at ``path`` of a ``root`` may be, whatever stands there."""
    models: list[type[BaseModel]] = [root]
    for part in path:
        if isinstance(part, str):
            models = [
                found
                for model in models
                if part in model.model_fields
                for found in _models(model.model_fields[part].annotation)
            ]
    return models


def _tags(root: type[BaseModel], path: KeyPath) -> list[str]:
    return [name for model in models_at(root, path) for name in tags_of(model)]


def _located(root: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel] | None]:
    """Return the key path of pydantic's location, less its union tags, and the model that holds the key."""
    path: list[str | int] = []
    owner: type[BaseModel] | None = None
    candidates: list[type[BaseModel]] = [root]
    for part in loc:
        tagged = [model for model in candidates if part in tags_of(model)]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            owner = candidates[0] if candidates else None
            field = owner.model_fields.get(part) if owner else None
            candidates = _models(field.annotation) if field else []
    return tuple(path), owner
