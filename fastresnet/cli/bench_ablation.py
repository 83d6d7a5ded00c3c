"""``fastresnet bench ablation``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastresnet.cli.board_filling import (
    board_config,
    complain_of_failures,
    fill_board,
    open_board_data,
    open_board_record,
    seeds_asked,
    suffix_of,
)
from fastresnet.cli.options import (
    Amp,
    Compile,
    Convs,
    Data,
    Device,
    FirstSeed,
    Graphs,
    Insert,
    Kernels,
    Loader,
    Minutes,
    Parallel,
    Show,
    Threads,
)
from fastresnet.cli.page_showing import check_beside_show, show_page
from fastresnet.cli.typed import assigned, listed_archs, listed_names
from fastresnet.errors import UserError

if TYPE_CHECKING:
    from fastresnet.bench.factors import Factors
    from fastresnet.bench.time_to_accuracy import Board
    from fastresnet.run import RunConfig


def ablation(
    context: typer.Context,
    factors: Annotated[
        str, typer.Argument(metavar="FACTORS", help="A packaged list of factors, or a TOML file of your own.")
    ] = "fast",
    archs: Annotated[str, typer.Option(help="Networks, with commas between them: a table each.")] = "resnet8",
    recipe: Annotated[str, typer.Option(help="The base.")] = "fast",
    epochs: Annotated[int, typer.Option(help="Of each run.", min=1)] = 4,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the base.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="These factors alone.")] = None,
    runs: Annotated[
        int, typer.Option(help="Of the base and of each factor, with the same seeds.", min=1)
    ] = 4,
    first_seed: FirstSeed = 0,
    minutes: Minutes = None,
    parallel: Parallel = 1,
    data: Data = None,
    device: Device = "auto",
    loader: Loader = "auto",
    amp: Amp = "auto",
    compile_: Compile = "auto",
    kernels: Kernels = "auto",
    convs: Convs = "auto",
    graphs: Graphs = "auto",
    threads: Threads = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The record; a .md goes beside it. One that exists is added to "
            "[default: bench-results/ablation-<data set>-<recipe>-<epochs>.json; with --first-seed, one of its own].",
        ),
    ] = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Judge changes to a recipe, one factor at a time, by runs with the same seeds as the base's."""
    from fastresnet.bench.ablation_page import to_markdown
    from fastresnet.bench.board_form import check_board
    from fastresnet.bench.factors import Factors
    from fastresnet.bench.record import check_insert, check_out, mark_of, read_record
    from fastresnet.recipe import load_recipe

    if show is not None:
        check_beside_show(context)
        record = read_record(show, "ablation", to_markdown)
        check_board(show, record)
        show_page(to_markdown(record), mark_of("ablation", show), insert)
    else:
        started = time.monotonic()
        machine = {"device": device, "loader": loader, "amp": amp, "compile": compile_, "threads": threads}
        machine |= {"kernels": kernels, "convs": convs, "graphs": graphs}
        config = board_config(data=data, eval_every=epochs, **machine)  # only the last epoch is judged
        check_out(out or Path("bench-results") / "ablation.json", ".md")
        if out is not None:
            check_insert(mark_of("ablation", out), *insert or ())
        overrides = assigned(set_, {"epochs": epochs})
        if "arch" in overrides:
            raise UserError("--set arch would train another network than --archs names; name it there")
        if "tta" in overrides:
            raise UserError("--set tta is of no use: every run is tested without and with it")
        base = load_recipe(recipe).with_overrides(overrides | {"epochs": epochs, "tta": "flip"})
        named = listed_archs("--archs", archs)
        chosen = () if only is None else listed_names("--only", only, "factor", "lr-double")
        judged = Factors.load(factors, base, chosen)
        seeds = seeds_asked(first_seed, runs)
        board, path = _open(judged, overrides, named, seeds, config, parallel, out)
        check_insert(mark_of("ablation", path), *insert or ())  # which the data set may have named
        fill_board(board, path, started, minutes, "ablation")
        typer.echo(f"record     {path}, and the same as .md", err=True)
        show_page(to_markdown(board.record), mark_of("ablation", path), insert)
        complain_of_failures(board, path)


def _open(
    factors: Factors,
    overrides: dict[str, str],
    archs: tuple[str, ...],
    seeds: range,
    config: RunConfig,
    parallel: int,
    out: Path | None,
) -> tuple[Board, Path]:
    """Return the ablation with what is in its record already, and where that lies."""
    from fastresnet.bench.ablation_page import to_markdown, write_ablation
    from fastresnet.bench.factors import base_digest, write_told
    from fastresnet.bench.time_to_accuracy import Board

    base = factors.base
    opened = open_board_data(base, config)
    name = f"ablation-{opened.dataset.name}-{base.name}-{base.epochs}{suffix_of(seeds)}.json"
    path = out or Path("bench-results") / name.lower()
    # what was typed comes first, so that a difference is named by it
    own = {"recipe": base.name, "epochs": base.epochs, "set": overrides, "base": base_digest(base)}
    record = open_board_record(path, "ablation", to_markdown, own, opened, config, seeds, factors=[])
    entries = factors.entries(archs, opened)
    for entry in entries:
        if entry.obstacle:
            typer.echo(f"note: left out: {entry.name}: {entry.obstacle}", err=True)
    write_told(record, entries, opened)
    board = Board(
        contestants=[entry.contestant for entry in entries if not entry.obstacle],
        runs=len(seeds),
        first_seed=seeds.start,
        search=False,
        config=config,
        data=opened,
        record=record,
        save=lambda record: write_ablation(record, path),
        tell=lambda line: typer.echo(line, err=True),
        parallel=parallel,
        base_first=True,
    )
    return board, path
