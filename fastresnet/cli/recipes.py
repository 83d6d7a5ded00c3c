"""``fastresnet recipes``: the packaged recipes beside what their sources printed, or one of them as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastresnet.cli.options import Json

if TYPE_CHECKING:
    from fastresnet.recipe import Recipe


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Print this one with its comments: a name or a file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes with printed accuracy and parameters, or print one."""
    from fastresnet.recipe import load_recipe, recipe_names, recipe_text

    if name is not None:
        recipe = load_recipe(name)  # a file that is wrong is refused, not printed
        typer.echo(_json(recipe.to_json_dict()) if as_json else recipe_text(name).rstrip("\n"))
        return
    listed = [load_recipe(name) for name in sorted(recipe_names(), key=lambda name: (name != "fast", name))]
    if as_json:
        typer.echo(_json([_row(recipe) for recipe in listed]))
    else:
        _show(listed)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def _row(recipe: Recipe) -> dict[str, Any]:
    reported = recipe.reported
    spec = recipe.arch_spec()
    return {
        "name": recipe.name,
        "description": recipe.description,
        "arch": recipe.arch,
        "slug": spec.slug,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "true_params": spec.num_params(),
        "printed_params": reported.params if reported else None,
        "printed_accuracy": reported.accuracy if reported else None,
        "accuracy_of": reported.accuracy_of if reported else None,
        "erratum": reported.erratum if reported else None,
    }


def _show(listed: list[Recipe]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fastresnet.cli.tables import TableConsole

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("arch", no_wrap=True)
    for heading in ("epochs", "printed", "parameters"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    rows = [_row(recipe) for recipe in listed]
    for row in rows:
        accuracy = row["printed_accuracy"]
        table.add_row(
            row["name"],
            row["arch"],
            str(row["epochs"]),
            "-" if accuracy is None else f"{accuracy:.4f}",
            f"{row['printed_params'] or row['true_params']:,}",
            "[red]erratum[/red]" if row["erratum"] else "",
        )
    console = TableConsole()
    console.print_table(table)
    console.print()
    for row in rows:
        if row["erratum"]:
            console.print(f"[red]erratum[/red] {row['name']}: {row['erratum']}")
    console.print(
        "\n`fastresnet recipes NAME` prints one, with its source and what the source leaves open; saved to a "
        "file and changed, it is trained by `fastresnet train --recipe FILE.toml`.",
    )
