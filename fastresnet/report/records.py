"""What a report knows of a run, finished or not, and of the runs it was continued from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastresnet.arch import ArchSpec
from fastresnet.engine.checkpoint import load_saved
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, find_run
from fastresnet.recipe import Recipe
from fastresnet.run import Clocks, RunConfig
from fastresnet.words import dataset_shown

# What a reader may not know of a data set, by its name.
ABOUT_DATA = {
    "CIFAR-10-J75": "CIFAR-10-J75 is CIFAR-10 with every image as a JPEG of quality 75. Its figures are not CIFAR-10's."
}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Epochs of one run, as part of the line of runs that ends in the reported one.

    Attributes:
        run: its name.
        weights: which of its weights the next run started from; None for the reported run.
        start: epochs before it.
        rows: its event rows; those after the weights that were taken are left out.
    """

    run: str
    weights: str | None
    start: int
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it stands.

    Attributes:
        path, name: its folder.
        recipe, spec, config, environment, dataset: as recorded.
        num_params, multiply_adds: of the network, for one image.
        rows: one per finished epoch.
        clocks: seconds so far.
        test: loss, accuracy and accuracy_tta of the last evaluation on test; None before the first.
        best: epoch, accuracy and split of the best evaluation; empty before the first.
        finished: it has a result.
        parent: name of the run whose weights it began with; None for new ones.
        segments: the runs it came from that were found, oldest first, then itself.
        notices: what could not be found.
    """

    path: Path
    name: str
    recipe: Recipe
    spec: ArchSpec
    config: RunConfig
    environment: dict[str, Any]
    dataset: dict[str, Any]
    num_params: int
    multiply_adds: int
    rows: tuple[dict[str, Any], ...]
    clocks: Clocks
    test: dict[str, Any] | None
    best: dict[str, Any]
    finished: bool
    parent: str | None
    segments: tuple[Segment, ...]
    notices: tuple[str, ...]

    @property
    def id(self) -> str:
        """The name's last part."""
        return self.name.rsplit("-", 1)[-1]

    @property
    def key(self) -> str:
        """The name, as HTML ids and file names take it."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.id).strip("-") or "run"

    @property
    def label(self) -> str:
        """Arch, recipe and id."""
        return f"{self.recipe.arch} {self.recipe.name} ({self.id})"

    @property
    def on(self) -> str:
        """The data set's name, as a figure measured on it must say it."""
        return dataset_shown(self.dataset["name"], self.dataset["is_builtin"])

    @property
    def about_data(self) -> str:
        """What a reader may not know of the data set; empty for most."""
        return ABOUT_DATA.get(self.dataset["name"], "")

    @property
    def last_row(self) -> dict[str, Any]:
        """The last epoch's; empty before its end."""
        return self.rows[-1] if self.rows else {}


def read_run(reference: str, runs_dir: Path) -> RunRecord:
    """Return what is recorded of a run, given as to ``fastresnet eval`` but without weights.

    Raises:
        UserError: there is no such run, or it is damaged.
    """
    folder = RunFolder(find_run(reference, runs_dir))
    content = folder.read_config()
    known = _progress(folder)
    recipe = Recipe.from_json_dict(content["recipe"])
    spec, data = recipe.arch_spec(), content["dataset"]
    sizes = len(data["class_names"]), data["image_size"]
    segments, notices = _ancestors(content["parent"], folder, runs_dir)
    start = segments[-1].start + len(segments[-1].rows) if segments else 0
    own = Segment(run=folder.name, weights=None, start=start, rows=tuple(known["rows"]))
    return RunRecord(
        path=folder.path,
        name=folder.name,
        recipe=recipe,
        spec=spec,
        config=RunConfig.parse(**content["config"]),
        environment=content["environment"],
        dataset=data,
        num_params=spec.num_params(*sizes),
        multiply_adds=spec.num_multiply_adds(*sizes),
        rows=own.rows,
        clocks=known["clocks"],
        test=known["test"],
        best=known["best"],
        finished=known["finished"],
        parent=content["parent"] and content["parent"]["run"],
        segments=(*segments, own),
        notices=notices,
    )


def _progress(folder: RunFolder) -> dict[str, Any]:
    """Return a run's rows, clocks, last test and best: from its result, else from its last checkpoint."""
    result = folder.read_result()
    if result is not None:
        return {
            "rows": result["epochs"],
            "clocks": Clocks(**result["clocks"]),
            "test": {
                "loss": result["test_loss"],
                "accuracy": result["test_accuracy"],
                "accuracy_tta": result["test_accuracy_tta"],
            },
            "best": result["best"],
            "finished": True,
        }
    checkpoint, _ = load_saved(folder.path)
    rows, state = folder.read_events(checkpoint["events"]), checkpoint["state"]
    tested = next((row for row in reversed(rows) if "test_accuracy" in row), None)
    return {
        "rows": rows,
        "clocks": Clocks(**state["clocks"]),
        "test": tested
        and {"loss": tested["test_loss"], "accuracy": tested["test_accuracy"], "accuracy_tta": None},
        "best": state["best"],
        "finished": False,
    }


def _ancestors(
    parent: dict[str, Any] | None, child: RunFolder, runs_dir: Path
) -> tuple[list[Segment], tuple[str, ...]]:
    """Return the line of runs that ``parent`` ends, oldest first, and what of it is missing."""
    line: list[tuple[str, str, tuple[dict[str, Any], ...]]] = []
    notices: tuple[str, ...] = ()
    seen = {child.name}
    while parent is not None:
        name, weights = parent["run"], parent["weights"]
        try:
            beside = child.path.resolve().parent
            folder = RunFolder(find_run(name, beside if (beside / name).is_dir() else runs_dir))
            if folder.name in seen:
                raise UserError("it was continued from itself")
            known, content = _progress(folder), folder.read_config()
        except UserError as error:
            notices = (f"continued from the run {name}, which is not shown: {error}",)
            break
        seen.add(folder.name)
        rows = known["rows"]
        if weights == "best":
            rows = [row for row in rows if row["epoch"] <= known["best"].get("epoch", 0)]
        line.append((folder.name, weights, tuple(rows)))
        parent, child = content["parent"], folder
    segments: list[Segment] = []
    start = 0
    for name, weights, rows in reversed(line):
        segments.append(Segment(run=name, weights=weights, start=start, rows=rows))
        start += len(rows)
    return segments, notices
