"""Two related runs, trained once: a plain one, and one continued from its best weights with all that pages show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_recipe, write_tiny
from typer.testing import CliRunner

from fastresnet.cli.main import app
from fastresnet.errors import UserError
from fastresnet.report.page import write_report
from fastresnet.report.writing import Written
from fastresnet.training import train

# What HTML, SVG and matplotlib's own markup would each take for something else.
CLASSES = ("<b>ant</b> & co", "$b_e^e$", 'caf\u00e9 "\u732b"')
NUM_VAL, NUM_TEST = 20, 60


@dataclass(frozen=True)
class Family:
    """The runs' folders, where they lie, and their data set."""

    runs_dir: Path
    data: Path
    parent: Path
    child: Path


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    folder = tmp_path_factory.mktemp("family")
    data = write_tiny(folder / "tiny.npz", num_test=NUM_TEST)
    arrays = dict(np.load(data)) | {"class_names": np.array(CLASSES)}
    np.savez(data, **arrays)
    config = tiny_config(data, val=NUM_VAL, amp="off", compile="off")
    everything = {
        "epochs": 2,
        "augment.flip": "random",
        "augment.ops": [{"name": "rotation", "degrees": 15}, {"name": "erasing", "p": 0.5}],
        "mix": {"name": "mixup", "alpha": 1.0, "block": 16},
        "dropout.block": 0.1,
        "resize": [{"size": 6, "until": 0.5}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(folder / "cache"))
        parent = train(tiny_recipe(), config, runs_dir=folder / "runs")
        child = train(
            tiny_recipe(everything), config, runs_dir=folder / "runs", init_from=f"{parent.run}:best"
        )
    runs = folder / "runs"
    yield Family(runs_dir=runs, data=data, parent=runs / parent.run, child=runs / child.run)


@pytest.fixture(scope="session")
def pages(family: Family) -> dict[str, Written]:
    """Pages about the child alone, and about both: ``single`` and ``both``."""
    names = {"single": [family.child.name], "both": [family.parent.name, f"{family.child.name}:best"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(family.runs_dir.parent / "cache"))
        return {
            kind: write_report(given, runs_dir=family.runs_dir, out=family.runs_dir.parent / kind)
            for kind, given in names.items()
        }


def typed(*arguments: object) -> str:
    """Return what ``fastresnet`` prints for these arguments; its mistakes are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """Return the one line that ``fastresnet`` refuses these arguments with."""
    with pytest.raises(UserError) as error:
        typed(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
