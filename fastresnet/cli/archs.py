"""``fastresnet archs``: the catalogue, one network layer by layer, or the widest network under a budget."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastresnet.cli.options import Json
from fastresnet.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from fastresnet.arch import ArchSpec
    from fastresnet.catalogue import CatalogueEntry
    from fastresnet.cli.tables import TableConsole


def archs(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one layer by layer: a name of the list, or a slug."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Find the widest network with at most N parameters, C doubling a stage."
        ),
    ] = None,
    stages: Annotated[
        int | None, typer.Option(metavar="S", help="Its number of stages (with --budget).")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="B", help="Its blocks: one number, or one a stage as 3,3,2,3 (with --budget)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the reports' architectures with printed and true counts, and our own, or show one layer by layer."""
    if budget is not None or stages is not None or blocks is not None:
        if name is not None:
            raise UserError(f"give either a name ({name!r}) or --budget, --stages and --blocks")
        if budget is None or stages is None or blocks is None:
            raise UserError(
                "--budget, --stages and --blocks go together, as in: --budget 5000000 --stages 3 --blocks 2"
            )
        _show_widest(budget, stages, blocks, as_json)
    elif name is not None:
        _show_one(name, as_json)
    else:
        _show_all(as_json)


def _show_widest(budget: int, stages: int, blocks: str, as_json: bool) -> None:
    from fastresnet.cli.tables import TableConsole
    from fastresnet.widest import widest_under

    try:
        counts = [int(part) for part in blocks.split(",")]
    except ValueError:
        raise UserError(f"--blocks is {blocks!r}; give one number, or one a stage as 3,3,2,3") from None
    spec = widest_under(budget, stages, counts[0] if len(counts) == 1 else counts)
    params = spec.num_params()
    if as_json:
        _print_json({**_spec_values(spec), "width": spec.channels[0], "budget": budget})
        return
    console = TableConsole()
    console.print(f"width {spec.channels[0]}: {spec.slug}")
    console.print(
        f"{params:,} parameters, {budget - params:,} under the budget; "
        f"{spec.num_multiply_adds():,} multiply-adds for one 32x32 image",
    )


def _show_all(as_json: bool) -> None:
    from fastresnet.catalogue import CATALOGUE, TABLES
    from fastresnet.cli.tables import TableConsole

    if as_json:
        _print_json([_entry_values(entry) for entry in CATALOGUE])
        return
    console = TableConsole()
    for key, title in TABLES.items():
        entries = [entry for entry in CATALOGUE if entry.table == key]
        console.print_table(_catalogue_table(title, entries))
        _print_remarks(console, entries)
        console.print()
    console.print(
        "Counts are for ten classes of 32x32 images; true ones are recomputed. `fastresnet archs NAME` shows "
        "the layers; a slug such as n4-b3,3,2,3-c64,128,128,256-p4 names any other network.",
    )


def _table(title: str) -> Table:
    """An empty table that keeps six columns of counts within 80 characters."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _catalogue_table(title: str, entries: list[CatalogueEntry]) -> Table:
    table = _table(title)
    table.add_column("name", no_wrap=True, min_width=18)
    for heading, width in (("printed", 11), ("true", 11), ("multiply-adds", 13), ("accuracy", 8)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name,
            "-" if entry.printed_params is None else f"{entry.printed_params:,}",
            f"{entry.true_params:,}",
            f"{entry.multiply_adds:,}",
            "-" if entry.printed_accuracy is None else f"{entry.printed_accuracy:.4f}",
            "[red]erratum[/red]" if entry.erratum else "",
        )
    return table


def _print_remarks(console: TableConsole, entries: list[CatalogueEntry]) -> None:
    """Print every erratum and note once, after the names it is true of."""
    for kind, style in (("erratum", "red"), ("note", "dim")):
        names: dict[str, list[str]] = {}
        for entry in entries:
            if remark := getattr(entry, kind):
                names.setdefault(remark, []).append(entry.name)
        for remark, about in names.items():
            console.print(f"[{style}]{kind}[/{style}] {', '.join(about)}: {remark}")


def _show_one(name: str, as_json: bool) -> None:
    from fastresnet.arch import get_arch
    from fastresnet.catalogue import TABLES, entries_named
    from fastresnet.cli.tables import TableConsole

    spec = get_arch(name)
    entries = entries_named(name)
    if as_json:
        layers = [asdict(layer) for layer in spec.layers()]
        printed = [_entry_values(entry) for entry in entries]
        _print_json({"name": name, **_spec_values(spec), "printed": printed, "layers": layers})
        return
    console = TableConsole()
    console.print_table(_layer_table(name, spec))
    console.print(f"slug {spec.slug}, depth {spec.depth}; for ten classes of 32x32 images")
    for entry in entries:
        console.print(TABLES[entry.table] + ("" if entry.table == "ours" else f": {_printed(entry)}"))
    _print_remarks(console, list(entries))


def _layer_table(title: str, spec: ArchSpec) -> Table:
    """One row a layer; a block's layers stand under its path."""
    table = _table(title)
    table.show_footer = True
    for heading, footer in (("layer", "total"), ("", ""), ("output", "")):
        table.add_column(heading, footer, no_wrap=True)
    table.add_column("parameters", f"{spec.num_params():,}", justify="right", no_wrap=True)
    table.add_column("multiply-adds", f"{spec.num_multiply_adds():,}", justify="right", no_wrap=True)
    shown = ""
    for layer in spec.layers():
        match = re.match(r"(stages\.\d+\.blocks\.\d+)\.(.+)", layer.name)
        path, name = match.groups() if match else ("", layer.name)
        if path not in ("", shown):
            table.add_row(f"[bold]{path}[/bold]")
        shown = path
        table.add_row(
            f"  {name}" if path else name,
            layer.detail,
            "x".join(map(str, layer.shape)),
            f"{layer.params:,}" if layer.params else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        )
    return table


def _printed(entry: CatalogueEntry) -> str:
    parts = []
    if entry.printed_params is not None:
        parts.append(f"{entry.printed_params:,} parameters printed")
    if entry.printed_accuracy is not None:
        parts.append(f"accuracy {entry.printed_accuracy:.4f} printed")
    return ", ".join(parts) or "nothing printed"


def _spec_values(spec: ArchSpec) -> dict[str, Any]:
    return {
        "slug": spec.slug,
        "depth": spec.depth,
        "true_params": spec.num_params(),
        "multiply_adds": spec.num_multiply_adds(),
        "spec": asdict(spec),
    }


def _entry_values(entry: CatalogueEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "table": entry.table,
        "printed_params": entry.printed_params,
        "printed_accuracy": entry.printed_accuracy,
        "erratum": entry.erratum,
        "note": entry.note,
        **_spec_values(entry.spec),
    }


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
