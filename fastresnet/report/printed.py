"""How a run's setting differs from the one whose figures its recipe's source printed."""

from __future__ import annotations

from collections.abc import Iterator

from fastresnet.recipe import load_recipe, recipe_names
from fastresnet.report.facts import flat
from fastresnet.report.records import RunRecord

PRINTED_ON = "CIFAR-10"  # all sources
WORDS = (
    "name",
    "description",
    "reported",
    "open_choices",
)  # of a recipe, which change nothing that is learned
MOST = 8  # differences listed


def setting_note(record: RunRecord) -> str:
    """Return in which points a run of a packaged recipe is not what was printed; empty where in none."""
    recipe = record.recipe
    if recipe.reported is None or recipe.name not in recipe_names():
        return ""
    points = list(_points(record))
    if not points:
        return ""
    more = f"; and {len(points) - MOST} more" if len(points) > MOST else ""
    return f"What was printed is of another setting. Here: {'; '.join(points[:MOST])}{more}."


def _points(record: RunRecord) -> Iterator[str]:
    data, config = record.dataset, record.config
    if data["name"] != PRINTED_ON:
        yield f"{record.on}, not {PRINTED_ON}"
    if config.limit_train is not None:
        yield f"{config.limit_train:,} images of the training set"
    own = flat(load_recipe(record.recipe.name).to_json_dict())
    here = flat(record.recipe.to_json_dict())
    for key in dict.fromkeys((*own, *here)):
        if key.split(".")[0] not in WORDS and own.get(key, "null") != here.get(key, "null"):
            yield f"{key} {here.get(key, 'none')}, not {own.get(key, 'none')}"
