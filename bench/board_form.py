"""The form that the record of a board or an ablation must have, so that a damaged one changes no figure unseen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from fastresnet.bench.board import WAY, Row, row_of, sought_rows
from fastresnet.errors import UserError
from fastresnet.toml_model import RefusedValue, validated

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seeds = list[Annotated[int, Field(ge=0)]]


class Part(BaseModel):
    """Of a record; what it has beside the keys named here is free."""

    model_config = ConfigDict(strict=True, extra="allow")


class Run(Part):
    """A run; a peer's has no curve, machine or clocks."""

    role: Literal["figure", "search"]
    seed: Annotated[int, Field(ge=0)]
    accuracy: Share
    accuracy_without_tta: Share | None = None
    seconds: Seconds
    process_s: Seconds
    cpu_s: Seconds | None = None
    crossing_s: Seconds | None
    energy_j: Seconds | None
    curve: list[Annotated[tuple[Seconds, Share], Field(strict=False)]] = []
    clocks: dict[str, Seconds | None] = {}
    machine: dict[str, Any] = {}
    started: Annotated[AwareDatetime, Field(strict=False)]
    date: str
    git: str | None


class Asked(Part):
    """Which seeds were asked for of a row."""

    row: dict[str, Any]
    seeds: Seeds
    planned: Seeds = []
    changed_after: Seeds = []


class Sought(Part):
    """A row whose number of epochs a search has not found yet, and what it is trying."""

    row: dict[str, Any]
    trying: str


class AtOnce(Part):
    """Whether an arch is trained at once, as measured."""

    arch: str
    asked: int
    at_once: int


class Board(Part):
    """A record."""

    rows: list[dict[str, Any]]
    runs: list[Run]
    asked: list[Asked] = []
    at_once: list[AtOnce] = []
    found: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    sought: dict[str, Sought] = {}


def check_board(path: Path, record: dict[str, Any]) -> None:
    """Raise UserError unless the record at ``path`` has a board's form, and no run of a row, role and seed twice."""
    try:
        validated(Board, record)
        rows = [Row(**each) for each in (*record["rows"], *record.get("found", ()))]
        rows += [Row(**each["row"]) for each in record.get("asked", ())]
        rows += sought_rows(record)
        times = Counter((row_of(run), run["role"], run["seed"]) for run in record["runs"])
    except RefusedValue as refused:
        raise UserError(f"{path} is damaged, or of an earlier form: {refused}") from None
    except (TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged, or of an earlier form: a row or a run: {error}") from None
    twice = next((key for key, count in times.items() if count > 1), None)
    if twice is not None:
        row, role, seed = twice
        raise UserError(
            f"{path} has the {role} run of seed {seed} of {row.label} more than once; take the others out"
        )


def check_ways(path: Path, record: dict[str, Any]) -> None:
    """Raise UserError unless each run of ours says how it did its steps, as its row's later ones will."""
    for run in record["runs"]:
        row = row_of(run)
        lacking = [key for key in WAY if key not in run.get("machine", {})]
        if row.recipe is not None and lacking:
            raise UserError(
                f"{path} is damaged, or of an earlier form: the {run['role']} run of seed {run['seed']} of {row.label} "
                f"does not say its {lacking[0]}; choose another --out"
            )
