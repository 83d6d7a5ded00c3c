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


def _or_none(num: int) -> str:
    return f"{num:,}" if num else "none"


def _points(record: RunRecord) -> Iterator[str]:
    data, config = record.dataset, record.config
    if data["name"] != PRINTED_ON:
        yield f"{record.on}, not {PRINTED_ON}"
    if config.limit_train is not None:
        yield f"{config.limit_train:,} images of the training set"
    printed = load_recipe(record.recipe.name)
    began_from = printed.reported.began_from if printed.reported else None
    if began_from and record.parent is None:
        yield f"begun from new weights, not from those of a run of {began_from}"
    elif record.parent and not began_from:
        yield f"begun from the weights of {record.parent}, not from new ones"
    if config.val is not None and config.val != (num_val := printed.val.num if printed.val else 0):
        yield f"val {_or_none(config.val)}, not {_or_none(num_val)}"
    own = flat(printed.to_json_dict())
    here = flat(record.recipe.to_json_dict())
    for key in dict.fromkeys((*own, *here)):
        if key == "val.num" and config.val is not None:
            continue  # its place is taken
        if key.split(".")[0] not in WORDS and own.get(key, "null") != here.get(key, "null"):
            yield f"{key} {here.get(key, 'none')}, not {own.get(key, 'none')}"
