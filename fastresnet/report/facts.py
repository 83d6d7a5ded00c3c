"""What a run was and came to, in tables: results, network, times, recipe; and several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastresnet.report.diagram import network_rows
from fastresnet.report.records import RunRecord
from fastresnet.report.tables import DASH, Bar, Table, Value, count, number, percent
from fastresnet.run import duration
from fastresnet.words import counted

Z95 = 1.959964  # of a 95% interval
TTA_IN_WORDS = {
    "flip": "mean of image and mirror",
    "flip-shift": "mean over image and mirror, in place and moved by a pixel",
}


class Tile(NamedTuple):
    """A figure to be seen first: what it is, the figure, and what it must say beside it."""

    label: str
    figure: str
    note: str


def tiles(record: RunRecord) -> list[Tile]:
    """Return the figures at the head of a run's page."""
    test, data, clocks = record.test, record.dataset, record.clocks
    shown = []
    if test is not None:
        low, high = wilson(test["accuracy"], data["num_test"])
        when = "last epoch" if record.finished else f"epoch {record.last_row['epoch']}"
        shown.append(
            Tile(
                f"Test accuracy on {data['name']}",
                percent(test["accuracy"]),
                f"{when}, no TTA; 95% interval of {data['num_test']:,} images {percent(low)} to {percent(high)}",
            )
        )
    shown += [
        Tile("Parameters", _millions(record.num_params), f"{record.num_params:,}"),
        Tile("Multiply-adds", _millions(record.multiply_adds), f"{record.multiply_adds:,} for one image"),
        Tile(
            "Training time",
            duration(clocks.train_s),
            f"{counted(len(record.rows), 'epoch')} of {_epoch_s(record)}, {record.environment['device_name']}",
        ),
    ]
    return shown


def wilson(share: float, num: int) -> tuple[float, float]:
    """Return the 95% interval of a share of ``num`` samples (Wilson 1927)."""
    spread = Z95 * ((share * (1 - share) + Z95**2 / (4 * num)) / num) ** 0.5
    middle, scale = share + Z95**2 / (2 * num), 1 + Z95**2 / num
    return (middle - spread) / scale, (middle + spread) / scale


def results_table(record: RunRecord) -> Table:
    """Return loss and accuracy on train, val and test, and what the recipe's source printed."""
    last, test, best = record.last_row, record.test, record.best
    rows: list[tuple[Value, ...]] = []
    if last:
        rows.append(
            (
                f"train, epoch {last['epoch']}",
                number(last["train_loss"]),
                percent(last["train_accuracy"]),
                "mean over the epoch's steps, augmented",
            )
        )
    if "val_loss" in last:
        rows.append(
            ("val, the same", number(last["val_loss"]), percent(last["val_accuracy"]), "held out of train")
        )
    if test is not None:
        remark = "last evaluation, no TTA"
        if record.recipe.schedule.name == "plateau" and "val_loss" not in last:
            remark += "; the lr was reduced by these images: it flatters"
        rows.append(("test", number(test["loss"]), percent(test["accuracy"]), remark))
        if test["accuracy_tta"] is not None:
            tta = record.recipe.tta
            rows.append((f"test, {tta} TTA", DASH, percent(test["accuracy_tta"]), TTA_IN_WORDS[tta]))
    if best:
        split = best["chosen_on"]
        warning = ", the test set itself: it flatters" if split == "test" else ""
        accuracy = best.get("test_accuracy", best["accuracy"])
        rows.append(
            (f"test, epoch {best['epoch']}", DASH, percent(accuracy), f"best, chosen on {split}{warning}")
        )
    reported = record.recipe.reported
    if reported is not None and reported.accuracy is not None:
        of = ": ".join(filter(None, (reported.source, reported.accuracy_of)))
        rows.append(("printed by its source", DASH, percent(reported.accuracy), of))
        if reported.train_accuracy is not None:
            rows.append(("printed, on train", DASH, percent(reported.train_accuracy), reported.source))
    return Table(
        caption=f"Loss and accuracy on {record.on}",
        columns=("split", "loss", "accuracy", "remark"),
        rows=tuple(rows),
        numeric=frozenset({1, 2}),
    )


def parts_table(record: RunRecord) -> Table:
    """Return parameters and multiply-adds by part of the network."""
    data = record.dataset
    layers = record.spec.layers(len(data["class_names"]), data["image_size"])
    rows = [
        (
            row.title,
            " x ".join(map(str, row.shape)),
            Bar(count(row.params), row.params / record.num_params),
            Bar(count(row.multiply_adds), row.multiply_adds / record.multiply_adds),
        )
        for row in network_rows(record.spec, layers, data["image_size"])
        if row.params
    ]
    return Table(
        caption="Parameters and multiply-adds by part",
        columns=("part", "output", "parameters", "multiply-adds"),
        rows=tuple(rows),
        numeric=frozenset({2, 3}),
        footer=("total", "", count(record.num_params), count(record.multiply_adds)),
    )


def layers_table(record: RunRecord) -> Table:
    """Return every layer with its parameters and multiply-adds."""
    data = record.dataset
    rows = [
        (
            layer.name,
            f"{layer.kind} {layer.detail}".strip(),
            " x ".join(map(str, layer.shape)),
            count(layer.params) if layer.params else "",
            count(layer.multiply_adds) if layer.multiply_adds else "",
        )
        for layer in record.spec.layers(len(data["class_names"]), data["image_size"])
    ]
    return Table(
        caption="Every layer: parameters, and multiply-adds of one image",
        columns=("layer", "kind", "output", "parameters", "multiply-adds"),
        rows=tuple(rows),
        numeric=frozenset({3, 4}),
        footer=("total", "", "", count(record.num_params), count(record.multiply_adds)),
    )


def times_table(record: RunRecord) -> Table:
    """Return what was on the clock, and what was not."""
    clocks = record.clocks
    speeds = [row["clock"]["images_per_s"] for row in record.rows if row["clock"]["images_per_s"]]
    rows = [
        ("training", duration(clocks.train_s), "moving data to the device, every draw and step"),
        ("an epoch", _epoch_s(record), "training, mean"),
        *([("initialisation", duration(clocks.init_s), "from training images")] if clocks.init_s else []),
        ("final evaluation", duration(clocks.eval_s), "test, with the TTA that is claimed"),
    ]
    if record.config.target is not None:
        reached = clocks.time_to_target_s
        rows.append(
            (
                f"to {percent(record.config.target)}",
                DASH if reached is None else duration(reached),
                "not reached"
                if reached is None
                else "initialisation, training, and the evaluation that showed it",
            )
        )
    if speeds:
        rows.append(("images a second", f"{sum(speeds) / len(speeds):,.0f}", "training, mean over epochs"))
    rows += [
        ("data", duration(clocks.data_s), "not counted: opening, and packing the first time"),
        ("build", duration(clocks.build_s), "not counted: model, optimizer, loaders"),
        ("compile and warm-up", duration(clocks.compile_s), "not counted: on random labels, then undone"),
        ("between epochs", duration(clocks.between_s), "not counted: evaluations and checkpoints"),
    ]
    rows.append(("in all", duration(clocks.total_s), "counted or not"))
    return Table(
        caption=f"Times on {record.environment['device_name']}",
        columns=("what", "time", "of what"),
        rows=tuple(rows),
        numeric=frozenset({1}),
    )


def run_table(record: RunRecord) -> Table:
    """Return how a run was done: data, machine and versions."""
    data, config, env = record.dataset, record.config, record.environment
    epochs = counted(record.recipe.epochs, "epoch")
    held_out = f", {data['num_val']:,} val" if "num_val" in data else ""
    of = " (limited)" if config.limit_train is not None else ""
    rows = [
        ("run", record.name),
        ("state", "complete" if record.finished else f"{len(record.rows)} of {epochs} done"),
        ("data", f"{record.on}: {data['num_train']:,} train{of}{held_out}, {data['num_test']:,} test"),
        ("data digest", f"sha256 {data['digest'][:16]}"),
        ("architecture", f"{record.recipe.arch}, slug {record.spec.slug}, depth {record.spec.depth}"),
        ("seed", str(config.seed)),
        ("device", f"{env['device_name']}, {counted(config.threads, 'thread')}"),
        ("precision", {"off": "float32"}.get(config.amp, config.amp)),
        ("loader", config.loader),
        (
            "compile, kernels, convs, graphs",
            f"{config.compile}, {config.kernels}, {config.convs}, {config.graphs}",
        ),
        ("versions", f"fastresnet {env['fastresnet']}, torch {env['torch']}, Python {env['python']}"),
    ]
    if env.get("git"):
        rows.append(("source" if env["git"].startswith("source-") else "commit", env["git"]))
    if len(record.segments) > 1:
        before = record.segments[-2]
        rows.append(("started from", f"{before.run}, {before.weights} weights"))
    return Table(caption="The run", columns=("what", "value"), rows=tuple(rows))


def recipe_table(record: RunRecord) -> Table:
    """Return every key of the recipe that is set."""
    left_out = {"name", "description", "reported", "open_choices"}
    rows = [
        (key, value)
        for key, value in flat(record.recipe.to_json_dict()).items()
        if key.split(".")[0] not in left_out and value != "null"
    ]
    return Table(caption=f"Recipe {record.recipe.name}", columns=("key", "value"), rows=tuple(rows))


def comparison_table(records: Sequence[RunRecord]) -> Table:
    """Return several runs side by side, a row each; the data set has a column where they differ in it."""
    several = len({record.dataset["digest"] for record in records}) > 1
    rows = []
    for record in records:
        last, test = record.last_row, record.test
        accuracy: Value = DASH if test is None else Bar(percent(test["accuracy"]), test["accuracy"])
        rows.append(
            (
                record.id,
                f"{record.recipe.arch}, {record.recipe.name}",
                *([record.dataset["name"]] if several else []),
                accuracy,
                number(test["loss"] if test else None),
                percent(last.get("train_accuracy")),
                number(last.get("train_loss")),
                str(len(record.rows)),
                duration(record.clocks.train_s),
                count(record.num_params),
                count(record.multiply_adds),
            )
        )
    described = ("run", "arch and recipe", *(["data"] if several else []))
    on = "" if several else f" on {records[0].on}"
    return Table(
        caption=f"The runs side by side{on}, each at its last epoch",
        columns=(
            *described,
            *("test accuracy", "test loss", "train accuracy", "train loss"),
            *("epochs", "training", "parameters", "multiply-adds"),
        ),
        rows=tuple(rows),
        numeric=frozenset(range(len(described), len(described) + 8)),
    )


def differences_table(records: Sequence[RunRecord]) -> Table:
    """Return the keys of recipe, config and data in which runs differ."""
    ignored = {"config.save_every_s", "config.data"}
    by_run = [
        flat(record.recipe.to_json_dict(), "recipe.")
        | flat(record.config.model_dump(mode="json"), "config.")
        | {
            f"data.{key}": str(record.dataset.get(key, DASH))
            for key in ("name", "digest", "num_train", "num_val")
        }
        for record in records
    ]
    keys = [key for key in dict.fromkeys(key for values in by_run for key in values) if key not in ignored]
    dropped = ("recipe.name", "recipe.description", "recipe.reported", "recipe.open_choices")
    rows = [
        (key, *shown)
        for key in keys
        if not key.startswith(dropped)
        and len(set(shown := [_or_dash(values.get(key)) for values in by_run])) > 1
    ]
    return Table(
        caption="What differs between the runs",
        columns=("key", *(record.id for record in records)),
        rows=tuple(rows),
    )


def _or_dash(text: str | None) -> str:
    """Return a key's value, and a dash for one that is nothing: absent, none or an empty list."""
    return DASH if text in (None, "null", "[]") else text[:60]


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested JSON by dotted key, each value as JSON without quotes."""
    if isinstance(value, dict) and value:
        return {
            key: text for name, part in value.items() for key, text in flat(part, f"{prefix}{name}.").items()
        }
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {
            key: text for i, part in enumerate(value) for key, text in flat(part, f"{prefix}{i}.").items()
        }
    return {prefix.rstrip("."): value if isinstance(value, str) else json.dumps(value)}


def _epoch_s(record: RunRecord) -> str:
    return duration(record.clocks.train_s / len(record.rows)) if record.rows else DASH


def _millions(value: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
