"""The science of a run: :class:`Recipe`, read from TOML, named or in a file, with typed overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from fastresnet.errors import UserError, did_you_mean
from fastresnet.recipe_augment import Augment
from fastresnet.recipe_parts import (
    Activation,
    Dropout,
    Ema,
    Init,
    Loss,
    Mix,
    Normalise,
    OpenChoice,
    Optimizer,
    Part,
    Reported,
    Val,
)
from fastresnet.recipe_schedule import Schedule
from fastresnet.toml_lines import line_numbers, nearest_line

if TYPE_CHECKING:
    from fastresnet.arch import ArchSpec


class Recipe(Part):
    """Everything about a run that changes what is learned; the machine is in ``RunConfig``.

    Attributes:
        name: lower case with hyphens; a packaged recipe's file name.
        description: one line.
        arch: a name of the catalogue, or a slug.
        activation, dropout: None leaves the arch its own.
        epochs: passes over the training set.
        batch_size: samples a step, over all ranks.
        drop_last: leave out each epoch's last incomplete batch.
        optimizer, schedule, augment, mix, loss, ema, init: see their classes; None is without.
        clip_grad_norm: greatest 2-norm of the gradient; None does not clip.
        normalise: None takes the data set's own mean and standard deviation.
        tta: what the accuracy that is reported apart averages over: ``flip`` is the image and its mirror.
        val: the validation split the source held out; None trains on all.
        reported: what the source printed; None for a recipe of our own.
        open_choices: what the source leaves open, and what was chosen.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    arch: str
    activation: Activation | None = None
    dropout: Dropout | None = None
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    drop_last: bool = False
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment = Augment()
    mix: Mix | None = None
    loss: Loss = Loss()
    ema: Ema | None = None
    init: Init = Init()
    clip_grad_norm: float | None = Field(default=None, gt=0)
    normalise: Normalise | None = None
    tta: Literal["none", "flip"] = "none"
    val: Val | None = None
    reported: Reported | None = None
    open_choices: tuple[OpenChoice, ...] = ()

    @model_validator(mode="after")
    def _blocks_fill_the_batch(self) -> Recipe:
        if self.mix is not None and self.batch_size % self.mix.block:
            raise ValueError(
                f"mix.block is {self.mix.block}, which does not divide batch_size {self.batch_size}; "
                "choose a divisor of it"
            )
        return self

    def arch_spec(self) -> ArchSpec:
        """Return the arch with the recipe's activation and dropout; raises UserError for an unknown arch."""
        from fastresnet import arch

        spec = arch.get_arch(self.arch)
        changes: dict[str, Any] = {}
        if self.activation is not None:
            changes["activation"] = self.activation
        if self.dropout is not None:
            changes["dropout"] = arch.Dropout(**self.dropout.model_dump())
        return spec.replace(**changes) if changes else spec

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """Return a copy with dotted keys set, as in ``{"optimizer.lr": "0.1", "ema": None}``.

        A text value is read as TOML (``none`` is None), else taken as it stands. Where ``optimizer.name`` or
        ``schedule.name`` changes, the keys that the new one has too are kept and the others dropped. List
        elements are counted from 0: ``augment.ops.0.degrees``.

        Raises:
            UserError: an unknown key, or a value that is not allowed.
        """
        if not overrides:
            return self
        data = self.model_dump()
        for key in sorted(overrides, key=lambda key: (not key.endswith(".name"), key.count("."))):
            value = overrides[key]
            _set(data, key, _typed(value) if isinstance(value, str) else value)
        return _validated(data)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON types, for :meth:`from_json_dict`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe of :meth:`to_json_dict`; raises UserError where it is not one."""
        return _validated(dict(data))


def recipe_names() -> tuple[str, ...]:
    """Return the names of the packaged recipes, sorted."""
    folder = resources.files("fastresnet") / "recipes"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a packaged recipe's name, or of a file (a path has a slash or ends in .toml).

    Raises:
        UserError: unknown name (the nearest is offered), or a file that cannot be read.
    """
    if name_or_path in recipe_names():
        return (resources.files("fastresnet") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    if not (name_or_path.endswith(".toml") or "/" in name_or_path):
        near = did_you_mean(name_or_path, recipe_names())
        raise UserError(
            f"unknown recipe {name_or_path!r}{near} (`fastresnet recipes` lists them; a file ends in .toml)"
        )
    try:
        return Path(name_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read recipe {name_or_path}: {reason}") from None


def load_recipe(name_or_path: str) -> Recipe:
    """Return a packaged recipe by name, or the one in a TOML file.

    Raises:
        UserError: not found, not TOML, or a key or value that is not allowed, with the file's line.
    """
    text = recipe_text(name_or_path)
    packaged = name_or_path in recipe_names()
    where = f"recipe {name_or_path}.toml" if packaged else name_or_path
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not TOML: {str(error)[:1].lower()}{str(error)[1:]}") from None
    return _validated(data, where, text)


def _validated(data: dict[str, Any], where: str = "", text: str = "") -> Recipe:
    """Return the recipe, or raise a one-line UserError, with the line in ``text`` when it is given."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # A misspelt key is also reported as missing under its right name: say the first.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        path, message = _explain(dict(first))
        if text:
            message = f"{where}:{nearest_line(line_numbers(text), path)}: {message}"
        raise UserError(message) from None


def _explain(error: dict[str, Any]) -> tuple[tuple[str | int, ...], str]:
    """Return the key path of a pydantic error, and what was wrong and what is allowed."""
    path, owner = _located(error["loc"])
    key = ".".join(map(str, path))
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        allowed = sorted(owner.model_fields) if owner else []
        below = [*path[:-1], *_below(owner, str(path[-1]))] if owner else path
        near = did_you_mean(str(path[-1]), allowed)
        if len(below) > len(path):
            near = f"; did you mean {'.'.join(map(str, below))!r}?"
        return path, f"unknown key {key!r}{near} (allowed: {', '.join(allowed)})"
    if kind == "missing":
        return path, f"{key} is missing"
    if kind == "union_tag_not_found":
        return path, f"{key}.name is missing (allowed: {', '.join(_tags(path))})"
    if kind == "union_tag_invalid":
        tag = str(context["tag"])
        near = did_you_mean(tag, _tags(path))
        return (*path, "name"), f"{key}.name is {tag!r}{near} (allowed: {', '.join(_tags(path))})"
    if kind == "value_error":
        return path, f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "literal_error":
        near = did_you_mean(str(given), str(context["expected"]).replace("'", " ").split())
        return path, f"{key} is {given!r}{near} (allowed: {context['expected']})"
    return path, f"{key} is {given!r}; it {error['msg'].removeprefix('Input ')}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


@cache
def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of ``name`` that select a model from a union."""
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _below(model: type[BaseModel], key: str) -> tuple[str, ...]:
    """Return the path to a field of that name in a part of ``model``, or nothing."""
    for field, info in model.model_fields.items():
        if any(key in part.model_fields for part in _models(info.annotation)):
            return field, key
    return ()


def _choices(path: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Return the models that the recipe's value at ``path`` may be, whatever stands there."""
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        if isinstance(part, str):
            models = [
                found
                for model in models
                if part in model.model_fields
                for found in _models(model.model_fields[part].annotation)
            ]
    return models


def _tags(path: tuple[str | int, ...]) -> list[str]:
    return [name for model in _choices(path) for name in _names(model)]


def _located(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """Return the key path of pydantic's location, less its union tags, and the model that holds the key."""
    path: list[str | int] = []
    owner: type[BaseModel] | None = None
    candidates: list[type[BaseModel]] = [Recipe]
    for part in loc:
        tagged = [model for model in candidates if part in _names(model)]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            owner = candidates[0] if candidates else None
            field = owner.model_fields.get(part) if owner else None
            candidates = _models(field.annotation) if field else []
    return tuple(path), owner


def _typed(text: str) -> Any:
    """Return a command line's value: TOML where it is, None for ``none``, else the text."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in the nested data of a recipe."""
    *parents, last = key.split(".")
    at: Any = data
    walked: list[str | int] = []
    for part in parents:
        if isinstance(at, (list, tuple)):
            if not part.isdigit() or int(part) >= len(at):
                raise UserError(f"{key}: {'.'.join(map(str, walked))} has {len(at)} elements, counted from 0")
            at = at[int(part)]
            walked.append(int(part))
        else:
            if at.get(part) is None:
                at[part] = {}
            elif isinstance(at[part], tuple):
                at[part] = list(at[part])
            at = at[part]
            walked.append(part)
        if not isinstance(at, (dict, list)):
            raise UserError(f"{key}: {'.'.join(map(str, walked))} is a single value without keys of its own")
    if isinstance(at, list):
        if not last.isdigit() or int(last) >= len(at):
            raise UserError(f"{key}: {'.'.join(map(str, walked))} has {len(at)} elements, counted from 0")
        at[int(last)] = value
        return
    if last == "name" and walked and value != at.get("name"):
        chosen = [model for model in _choices(tuple(walked)) if value in _names(model)]
        if chosen:
            for stale in set(at) - set(chosen[0].model_fields):
                del at[stale]
    at[last] = value
