"""The science of a run: :class:`Recipe`, read from TOML, named or in a file, with typed overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field, model_validator

from fastresnet.errors import Conflict, UserError
from fastresnet.recipe_augment import Augment
from fastresnet.recipe_parts import (
    Activation,
    Dropout,
    Ema,
    Init,
    Loss,
    Mix,
    Name,
    Norm,
    Normalise,
    OpenChoice,
    Optimizer,
    Part,
    Reported,
    Tta,
    Val,
)
from fastresnet.recipe_resize import Resizes, sizes_by_epoch
from fastresnet.recipe_schedule import Schedule
from fastresnet.toml_model import (
    models_at,
    packaged_names,
    parse_toml,
    read_model,
    read_text,
    tags_of,
    validated,
)

if TYPE_CHECKING:
    from fastresnet.arch import ArchSpec


class Recipe(Part):
    """Everything about a run that changes what is learned; the machine is in ``RunConfig``.

    Attributes:
        name: lower case with hyphens; a packaged recipe's file name.
        description: one line.
        arch: a name of the catalogue, or a slug.
        activation: of all blocks; ``gelu-for-relu`` is GELU where the arch has ReLU. None leaves the arch its own.
        dropout: None leaves the arch its own.
        epochs: passes over the training set.
        batch_size: samples a step, over all ranks.
        drop_last: leave out each epoch's last incomplete batch.
        optimizer, schedule, augment, mix, loss, norm, ema, init: see their classes; None is without.
        resize: smaller training images for the first epochs; empty is none.
        clip_grad_norm: greatest 2-norm of the gradient; None does not clip.
        normalise: None takes the data set's own mean and standard deviation.
        tta: what the accuracy that is reported apart averages over: ``flip`` is the image and its mirror;
            ``flip-shift`` these, and at half the weight each both moved a pixel down right and up left (Jordan 2024).
        val: the validation split the source held out; None trains on all.
        reported: what the source printed; None for a recipe of our own.
        open_choices: what the source leaves open, and what was chosen.
    """

    name: Name
    description: str = ""
    arch: str
    activation: Activation | None = None
    dropout: Dropout | None = None
    epochs: int = Field(ge=1, le=10**6)
    batch_size: int = Field(ge=1, le=10**6)
    drop_last: bool = False
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment = Augment()
    resize: Resizes = ()
    mix: Mix | None = None
    loss: Loss = Loss()
    norm: Norm = Norm()
    ema: Ema | None = None
    init: Init = Init()
    clip_grad_norm: float | None = Field(default=None, gt=0)
    normalise: Normalise | None = None
    tta: Tta = "none"
    val: Val | None = None
    reported: Reported | None = None
    open_choices: tuple[OpenChoice, ...] = ()

    @model_validator(mode="after")
    def _blocks_fill_the_batch(self) -> Recipe:
        if self.mix is not None and self.mix.block and self.batch_size % self.mix.block:
            raise Conflict(
                f"mix.block is {self.mix.block}, which does not divide batch_size {self.batch_size}; "
                "choose a divisor of it, or 0 for the whole batch",
                *("mix", "block"),
            )
        return self

    @model_validator(mode="after")
    def _branches_can_wake(self) -> Recipe:
        if self.init.zero_gamma and not self.norm.train_scale:
            raise Conflict(
                "norm.train_scale is false, so the scales that init.zero_gamma starts at 0 would stay there, and "
                "their branches dead; set init.zero_gamma to false",
                *("norm", "train_scale"),
            )
        return self

    @model_validator(mode="after")
    def _slow_weights_are_one(self) -> Recipe:
        if self.ema is not None and self.ema.lookahead and self.optimizer.lookahead is not None:
            raise Conflict(
                "ema.lookahead and optimizer.lookahead are two kinds of the same; leave one of them out",
                *("ema", "lookahead"),
            )
        return self

    @model_validator(mode="after")
    def _arch_is_known(self) -> Recipe:
        try:
            spec = self.arch_spec()
        except UserError as error:
            raise Conflict(str(error), "arch") from None
        if self.init.zero_gamma and not spec.has_shortcuts:
            raise Conflict(
                f"the blocks of {self.arch} have no shortcuts, so with init.zero_gamma nothing would pass them; set "
                "it to false",
                *("init", "zero_gamma"),
            )
        return self

    def arch_spec(self) -> ArchSpec:
        """Return the arch with the recipe's activation and dropout; raises UserError for an unknown arch."""
        from fastresnet import arch

        spec = arch.get_arch(self.arch)
        changes: dict[str, Any] = {}
        if self.activation == "gelu-for-relu":
            changes["activation"] = "gelu" if spec.activation == "relu" else spec.activation
        elif self.activation is not None:
            changes["activation"] = self.activation
        if self.dropout is not None:
            changes["dropout"] = arch.Dropout(**self.dropout.model_dump())
        return spec.replace(**changes) if changes else spec

    def image_sizes(self, image_size: int) -> tuple[int, ...]:
        """Return the side of the training images in each epoch, in pixels, where the data set's is ``image_size``.

        Raises:
            UserError: an unknown arch, or a ``resize`` or a cutout that the data set or the arch does not allow.
        """
        from fastresnet.arch import get_arch

        self.augment.check_fits(image_size)
        return sizes_by_epoch(self.resize, self.epochs, get_arch(self.arch), image_size)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """Return a copy with dotted keys set, as in ``{"optimizer.lr": "0.1", "ema": None}``.

        A text value is read as TOML (``none`` is None, unless the key has that word), else taken as it stands. Where
        ``optimizer.name`` or ``schedule.name`` changes, the keys that the new one has too are kept and the others
        dropped. List elements are counted from 0: ``augment.ops.0.degrees``.

        Raises:
            UserError: an unknown key, or a value that is not allowed.
        """
        if not overrides:
            return self
        data = self.model_dump()
        for key in sorted(overrides, key=lambda key: (not key.endswith(".name"), key.count("."))):
            value = overrides[key]
            _set(data, key, _typed(key, value) if isinstance(value, str) else value)
        return validated(Recipe, data)

    def with_tta(self) -> Recipe:
        """Return a recipe with TTA: this one where it has some, else a copy with ``flip``."""
        return self if self.tta != "none" else self.model_copy(update={"tta": "flip"})

    def to_json_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON types, for :meth:`from_json_dict`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe of :meth:`to_json_dict`; raises UserError where it is not one."""
        return validated(Recipe, data)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the packaged recipes, sorted."""
    return packaged_names("recipe")


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a packaged recipe's name, or of a file (a path has a slash or ends in .toml).

    Raises:
        UserError: unknown name (the nearest is offered), or a file that cannot be read.
    """
    return read_text("recipe", name_or_path)


def load_recipe(name_or_path: str) -> Recipe:
    """Return a packaged recipe by name, or the one in a TOML file.

    Raises:
        UserError: not found, not TOML, or a key or value that is not allowed, with the file's line.
    """
    return read_model("recipe", Recipe, name_or_path)


def _typed(key: str, text: str) -> Any:
    """Return a command line's value of a dotted key: TOML where it is, None for ``none``, else the text.

    Where ``none`` is one of the key's own words, as of ``augment.flip``, it is that word.
    """
    if text.lower() == "none":
        *parents, last = key.split(".")
        fields = [model.model_fields.get(last) for model in models_at(Recipe, tuple(parents))]
        return "none" if any(field and "none" in get_args(field.annotation) for field in fields) else None
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _counts(text: str, elements: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether ``text`` is the number of one of ``elements``, from 0."""
    return re.fullmatch("[0-9]{1,6}", text) is not None and int(text) < len(elements)


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in the nested data of a recipe."""
    *parents, last = key.split(".")
    at: Any = data
    walked: list[str | int] = []
    for part in parents:
        if isinstance(at, (list, tuple)):
            if not _counts(part, at):
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
        if not _counts(last, at):
            raise UserError(f"{key}: {'.'.join(map(str, walked))} has {len(at)} elements, counted from 0")
        at[int(last)] = value
        return
    if last == "name" and walked and value != at.get("name"):
        chosen = [model for model in models_at(Recipe, tuple(walked)) if value in tags_of(model)]
        if chosen:
            for stale in set(at) - set(chosen[0].model_fields):
                del at[stale]
    at[last] = value
