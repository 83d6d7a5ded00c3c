"""What a run folder's files hold beside recipe and config: checked as they are read, since anyone may write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fastresnet.errors import UserError
from fastresnet.recipe_parts import matching
from fastresnet.toml_model import validated

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
FilePath = Annotated[str, matching("[^\\x00]*", "a path without a NUL, which no system takes")]


def _fits_a_folder(name: str) -> str:
    if not name or len(name.encode()) > 255 or any(letter < " " or letter == "/" for letter in name):
        raise ValueError("it cannot name a folder")
    return name


RunName = Annotated[str, AfterValidator(_fits_a_folder)]


class Recorded(BaseModel):
    """JSON types as they stand, none made of another; what a later version has added is let be."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class DatasetInfo(Recorded):
    """What a config and a result say of the data, as ``assembly.Data.info`` has it."""

    name: str
    digest: str
    class_names: list[str] = Field(min_length=1)
    image_size: int = Field(ge=1, le=2**11)
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Annotated[float, Field(ge=0)]] = Field(min_length=3, max_length=3)
    is_builtin: bool
    num_train: int = Field(ge=1, lt=2**53)
    num_test: int = Field(ge=1, lt=2**53)
    num_val: int = Field(default=1, ge=1, lt=2**53)


class Environment(Recorded):
    """The machine and versions, as ``environment.environment`` has them; what else is there is only compared."""

    fastresnet: str
    torch: str
    python: str
    device_name: str
    git: str | None = None


class RecipeFile(Recorded):
    """``run.file_record`` of the file that a recipe was read from."""

    path: FilePath
    sha256: str


class Parent(Recorded):
    """Whose weights a run started from."""

    run: RunName
    weights: Literal["last", "best"]
    sha256: str


class RowClock(Recorded):
    """Seconds and speed of an epoch."""

    images_per_s: float | None
    segment: Count


class EpochRow(Recorded):
    """A line of ``events.jsonl``: an epoch."""

    event: Literal["epoch"]
    epoch: int = Field(ge=1, le=10**6)
    lr: float
    train_loss: float
    train_accuracy: Share
    val_loss: float | None = None
    val_accuracy: Share = 0.0
    test_loss: float | None = None
    test_accuracy: Share = 0.0
    clock: RowClock

    @model_validator(mode="after")
    def _evaluated_whole(self) -> EpochRow:
        for split in ("val", "test"):
            if len(self.model_fields_set & {f"{split}_loss", f"{split}_accuracy"}) == 1:
                raise ValueError(f"it has one of {split}_loss and {split}_accuracy and not the other")
        return self


class Best(Recorded):
    """The best evaluation so far."""

    epoch: int = Field(ge=1, le=10**6)
    accuracy: Share
    chosen_on: Literal["val", "test"]
    test_accuracy: Share


class Final(Recorded):
    """The last evaluation on test."""

    accuracy: Share
    loss: float | None
    accuracy_tta: Share | None


class EventsMark(Recorded):
    """How much of ``events.jsonl`` a checkpoint or a result vouches for."""

    bytes: Count
    sha256: str


def holds(model: type[BaseModel], *, or_nothing: bool = False) -> Any:
    """Return what makes pydantic check that a dict holds what ``model`` says, or is empty; a dict it stays."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        try:
            if value or not or_nothing:
                validated(model, value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(check)


def check_recorded(model: type[BaseModel], content: Any, path: Path, what: str = "") -> None:
    """Raise UserError, which names ``path`` (and ``what`` of it), unless ``content`` is what ``model`` says."""
    try:
        validated(model, content)
    except UserError as error:
        raise UserError(f"{path} is not as a run writes it: {what}{str(error).strip()[:1000]}") from None
