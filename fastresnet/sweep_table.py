"""A sweep's result: a row a cell beside what was printed, as sealed JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastresnet.atomic import read_sealed_json, write_atomic, write_sealed_json
from fastresnet.errors import UserError, did_you_mean
from fastresnet.sweep_cells import Cell
from fastresnet.sweep_spec import is_name, sweep_names
from fastresnet.words import counted, dataset_shown

if TYPE_CHECKING:
    from fastresnet.sweep_store import Record

TABLE_JSON, TABLE_MARKDOWN = "table.json", "table.md"


def row(step: str, cell: Cell, record: Record | None, is_best: bool = False) -> dict[str, Any]:
    """Return a cell as a row of JSON types; ``is_best`` where a sequence's next step starts from it.

    ``state`` is ``done``, ``pruned``, ``failed``, ``running``, ``waiting`` or ``over budget``. ``accuracy`` is that of
    the last epoch on test, None unless the cell is done; ``pruned_at`` the ``epoch``, ``split`` (``val`` or ``test``)
    and ``accuracy`` at which a pruned cell was stopped, else None; ``own_epochs`` those of the sweep as stated, which
    ``epochs`` may replace; ``run`` the run's folder, from the sweep's; ``chosen_on`` the split, ``val`` or ``test``, by
    which cells are compared.
    """
    attrs: Mapping[str, Any] = record.attrs if record else {}
    state = record.state if record else "over budget" if cell.over_budget else "waiting"
    return {
        "cell": {"step": step, **cell.settings} if step else dict(cell.settings),
        "arch": cell.spec.slug,
        "epochs": cell.recipe.epochs,
        "own_epochs": cell.own_epochs,
        "params": cell.params,
        "printed_params": cell.printed_params,
        "accuracy": attrs.get("accuracy") if state == "done" else None,
        "pruned_at": attrs.get("pruned_at") if state == "pruned" else None,
        "printed_accuracy": cell.printed_accuracy,
        "state": state,
        "run": attrs.get("run"),
        "seconds": attrs.get("seconds"),
        "error": attrs.get("error") if state == "failed" else None,
        "chosen_on": attrs.get("chosen_on"),
        "note": "; ".join(filter(None, (cell.note, "the best of its step" if is_best else ""))),
    }


def table(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    conditions: Mapping[str, Any],
    left_out: int = 0,
    commands: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a sweep's table as JSON types.

    ``columns`` are the keys that cells are told apart by, ``left_out`` the number of cells that were not asked for,
    ``commands`` what was typed to train the others.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row["cell"]))
    described = {"left_out": left_out, "conditions": dict(conditions), "commands": list(commands)}
    return {"name": name, "title": title, "columns": columns, "rows": rows, **described}


def write_table(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a table to ``table.json`` and ``table.md`` in a sweep's folder.

    Raises:
        UserError: they cannot be written.
    """
    write_sealed_json(folder / TABLE_JSON, dict(content))
    text = markdown(content)
    write_atomic(folder / TABLE_MARKDOWN, lambda file: file.write(text.encode()) and None)


def find_table(name: str, sweeps_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a sweep, given by its name in ``sweeps_dir`` or as a path from here, and its table.

    Raises:
        UserError: there is no such sweep, it has no table yet, or the table is damaged.
    """
    for folder in (*([sweeps_dir / name] if is_name(name) else []), Path(name)):
        if (folder / TABLE_JSON).is_file():
            return folder, read_sealed_json(folder / TABLE_JSON)
    if is_name(name) and (sweeps_dir / name).is_dir():
        raise UserError(f"sweep {name} has no table yet; `fastresnet sweep {name}` goes on with it")
    names = sorted(path.parent.name for path in sweeps_dir.glob(f"*/{TABLE_JSON}"))
    if name in sweep_names():
        raise UserError(f"no sweep {name!r} in {sweeps_dir}; train it first: fastresnet sweep {name}")
    known = f"; it holds {', '.join(names)}" if names else "; run one first: fastresnet sweep NAME"
    raise UserError(f"no sweep {name!r} in {sweeps_dir}{did_you_mean(name, names)}{known}")


def accuracy_of(entry: Mapping[str, Any]) -> float | None:
    """Return the test accuracy of a row's last epoch; None unless its cell is done.

    In tables of earlier versions a pruned cell's ``accuracy`` is what it was stopped at, which may be on validation.
    """
    accuracy: float | None = entry["accuracy"] if entry["state"] == "done" else None
    return accuracy


def pruned_at(at: Mapping[str, Any] | None) -> str:
    """Return at what a cell was stopped, in words: `` at validation accuracy 0.3100 after epoch 2``.

    It is empty where that is not known, as in tables of earlier versions.
    """
    if at is None:
        return ""
    split = "validation" if at["split"] == "val" else "test"
    return f" at {split} accuracy {at['accuracy']:.4f} after epoch {at['epoch']}"


def remark(entry: Mapping[str, Any]) -> str:
    """Return what is to be said of a row: how its cell stands unless it is done, what was wrong, and its note."""
    state = "" if entry["state"] == "done" else entry["state"] + pruned_at(entry.get("pruned_at"))
    return "; ".join(filter(None, (state, entry["error"], entry["note"])))


def texts(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return a table's headings and its cells as texts, a list a row; the last column is remarks."""
    lines = []
    for entry in content["rows"]:
        ours, printed = accuracy_of(entry), entry["printed_accuracy"]
        counts = f"{entry['params']:,}"
        if entry["printed_params"] not in (None, entry["params"]):
            counts += f" (printed {entry['printed_params']:,})"
        lines.append(
            [
                *(str(entry["cell"].get(column, "")) for column in content["columns"]),
                counts,
                "" if ours is None else f"{ours:.4f}",
                "" if printed is None else f"{printed:.4f}",
                "" if ours is None or printed is None else f"{ours - printed:+.4f}",
                remark(entry),
            ]
        )
    return [*content["columns"], "parameters", "accuracy", "printed", "difference", "remark"], lines


def _epochs(numbers: list[int]) -> str:
    return " or ".join([*map(str, numbers[:-1]), counted(numbers[-1], "epoch")])


def caption(content: Mapping[str, Any]) -> str:
    """Return what a table's accuracies are of."""
    given = content["conditions"]
    epochs = sorted({entry["epochs"] for entry in content["rows"]})
    own = sorted({entry["own_epochs"] for entry in content["rows"]})
    instead = "" if own == epochs else f" in place of the sweep's {' or '.join(map(str, own))}"
    on = dataset_shown(given["dataset_name"], given["dataset_is_builtin"])
    parts = [
        f"Test accuracy of the last epoch on {on}",
        "no TTA",
        f"{_epochs(epochs)}{instead}",
        f"seed {given['seed']}",
    ]
    if given["limit_train"] is not None:
        parts.append(f"{given['limit_train']:,} training images")
    text = ", ".join(parts) + "."
    num_printed = sum(entry["printed_accuracy"] is not None for entry in content["rows"])
    if num_printed:
        text += f" {num_printed} of the {len(content['rows'])} cells have a printed accuracy"
        text += "." if own == epochs else f", after {_epochs(own)}."
    # A table of an earlier version does not say on what its cells were compared.
    on_test = [entry for entry in content["rows"] if entry.get("chosen_on") == "test"]
    if len(on_test) > 1:
        which = "The best of each step" if "step" in content["columns"] else "Its best cell"
        text += f" {which} is chosen on the test set itself, so it flatters."
    if content["left_out"]:
        text += f" {content['left_out']} more cells were not asked for."
    return text


def markdown(content: Mapping[str, Any]) -> str:
    """Return a table as Markdown."""
    return f"# {content['title'] or content['name']}\n\n{caption(content)}\n\n{markdown_rows(content)}"


def markdown_rows(content: Mapping[str, Any]) -> str:
    """Return a table's headings and rows as Markdown, without the columns that are empty in all rows."""
    headings, lines = texts(content)
    kept = [place for place in range(len(headings)) if any(line[place] for line in lines)]
    return "".join(
        "| " + " | ".join(line[place].replace("|", "\\|") for place in kept) + " |\n"
        for line in (headings, ["---"] * len(headings), *lines)
    )
