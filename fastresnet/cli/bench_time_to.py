"""``fastresnet bench time-to``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from fastresnet.cli.typed import assigned, listed, listed_counts
from fastresnet.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from fastresnet.bench.board import Row
    from fastresnet.bench.contestants import Contestant
    from fastresnet.bench.time_to_accuracy import Board
    from fastresnet.recipe import Recipe

BOARDS = Path("bench-results")


def time_to(
    context: typer.Context,
    target: Annotated[
        float | None, typer.Option(help="The test accuracy to reach [default: 0.94 on CIFAR-10].")
    ] = None,
    archs: Annotated[
        str | None,
        typer.Option(
            help="Archs, and recipes that bring their own, with commas between them [default: the reports' and ours]."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The archs' recipe.")] = "fast",
    epochs: Annotated[
        str | None,
        typer.Option(help="Of each run; several with commas are rows of their own [default: the recipe's]."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of every recipe.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find the shortest schedule of at most --epochs first.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COMMAND",
            help="A command that trains once and prints one JSON line: accuracy, seconds, clock. {seed} in it is the "
            "run's seed: 0, 1, 2, ... or from --first-seed on.",
        ),
    ] = None,
    peer_minutes: Annotated[
        float | None, typer.Option(help="End a peer's run that takes longer, and leave that row.", min=0.001)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Compare the other rows with this one ('': with none)."),
    ] = None,
    runs: Annotated[int, typer.Option(help="Of each row.", min=1)] = 10,
    first_seed: FirstSeed = 0,
    eval_every: Annotated[int, typer.Option(help="Epochs between evaluations.", min=1)] = 1,
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
            help="The board; a .md and a .png go beside it. One that exists is added to "
            "[default: bench-results/time-to-<data set>-<target>.json; with --first-seed, one of its own].",
        ),
    ] = None,
    show: Show = None,
    insert: Insert = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw what is shown into this .png.")
    ] = None,
) -> None:
    """Measure how fast each arch reaches an accuracy: mean of runs, with its certainty, under a stated clock."""
    from fastresnet.bench.board import check_target
    from fastresnet.bench.board_form import check_board
    from fastresnet.bench.board_page import to_markdown
    from fastresnet.bench.peers import SEED
    from fastresnet.bench.record import check_insert, check_out, mark_of, read_record

    if plot is not None:
        if plot.suffix != ".png":
            raise UserError(f"--plot is {plot}; give the name of a file that ends in .png")
        check_out(plot)
    if show is not None:
        check_beside_show(context, "plot", "against")
        record = read_record(show, "time-to", to_markdown)
        check_board(show, record)
        if against is not None:
            _compare_with(against, record)
        _show(record, show, insert, plot)
    else:
        started = time.monotonic()
        machine = {"device": device, "loader": loader, "amp": amp, "compile": compile_, "threads": threads}
        machine |= {"kernels": kernels, "convs": convs, "graphs": graphs}
        config = board_config(data=data, eval_every=eval_every, **machine)
        check_out(out or BOARDS / "time-to.json", ".md", ".png")
        if out is not None:
            check_insert(mark_of("time-to", out), *insert or ())
        overrides = assigned(set_, {} if epochs is None else {"epochs": epochs})
        if "arch" in overrides:
            raise UserError("--set arch would train another network than its row says; name it in --archs")
        if search and runs < 2:
            raise UserError("--runs is 1; --search needs at least 2, as one run has no bounds")
        if search and epochs is not None and "," in epochs:
            raise UserError(
                f"--epochs is {epochs!r}; --search takes one number, the longest schedule that it tries"
            )
        seeds = seeds_asked(first_seed, runs)
        if target is not None:
            check_target(target)
        entered = contestants(archs, recipe, epochs, overrides, peer or [], peer_minutes)
        for each in entered:
            if each.peer is not None and runs > 1 and SEED not in each.peer.command:
                typer.echo(
                    f"note: --peer {each.name} has no {SEED}: its runs should differ by themselves", err=True
                )
        board, path = _open(entered, target, seeds, search, parallel, config, out)
        check_insert(mark_of("time-to", path), *insert or ())  # which the data set may have named
        if against is not None:
            # What a search will find, and whether trainings are done at once, is not known yet.
            rows = [] if search or parallel > 1 else [each.row(board.data) for each in entered]
            _compare_with(against, board.record, rows, [each.name for each in entered])
        fill_board(board, path, started, minutes, "board")
        typer.echo(f"board      {path}, and the same as .md and .png", err=True)
        _show(board.record, path, insert, plot)
        complain_of_failures(board, path)


def _show(record: dict[str, Any], path: Path, insert: list[Path] | None, plot: Path | None) -> None:
    from fastresnet.atomic import write_atomic
    from fastresnet.bench.board_page import to_markdown
    from fastresnet.bench.board_plot import draw
    from fastresnet.bench.record import mark_of

    if plot is not None:
        write_atomic(plot, lambda file: file.write(draw(record)))
    show_page(to_markdown(record), mark_of("time-to", path), insert)


def _compare_with(
    name: str, record: dict[str, Any], asked: Sequence[Row] = (), names_asked: Sequence[str] = ()
) -> None:
    """Have the record's page compare rows with the one of that name, or with none where it is empty.

    Raises:
        UserError: neither the record nor what is asked for has such a row.
    """
    from fastresnet.bench.board import Row, labels_of, sought_rows

    labels = labels_of([*(Row(**row) for row in record["rows"]), *asked, *sought_rows(record)])
    told = [text for row in labels for text in (labels[row], row.label, row.name)]
    names = list(dict.fromkeys([*told, *names_asked]))
    if name and name not in names:
        near = did_you_mean(name, names)
        raise UserError(f"--against is {name!r}, no row of this board{near} (it has {'; '.join(names)})")
    record["against"] = name


def contestants(
    archs: str | None,
    recipe: str,
    epochs: str | None,
    overrides: dict[str, Any],
    peers: list[str],
    peer_minutes: float | None = None,
) -> list[Contestant]:
    """Return what the command line asks for; each number of epochs is a row of its own."""
    from fastresnet.bench.contestants import Contestant, default_names
    from fastresnet.bench.peers import Peer
    from fastresnet.recipe import load_recipe, recipe_names

    names = default_names() if archs is None else listed(archs)
    if not names and not peers:
        raise UserError("--archs names no network; give one or more, with commas between them")
    lengths = [None] if epochs is None else listed_counts("--epochs", epochs, "12,16")
    found = []
    for name in dict.fromkeys(names):
        base = load_recipe(name if name in recipe_names() else recipe)
        own = {} if name in recipe_names() else {"arch": name}
        for length in lengths:
            changed = own | overrides | ({} if length is None else {"epochs": length})
            try:
                made = base.with_overrides(changed)
                made.arch_spec()  # a wrong name is found before anything runs
            except UserError as error:
                raise _of_the_row(name, base, str(error)) from None
            found.append(Contestant(name=name, recipe=made, changes=_changes(base, changed)))
    for each in (Peer.parse(text, peer_minutes) for text in peers):
        if each.name in (other.name for other in found):
            raise UserError(f"{each.name} is on the board twice; give --peer another name")
        found.append(Contestant(name=each.name, peer=each))
    return found


def _of_the_row(name: str, recipe: Recipe, why: str) -> UserError:
    """Return why a row cannot be, with the row's name; of a name that nothing has, with the recipe that is nearest."""
    from fastresnet.catalogue import CATALOGUE
    from fastresnet.recipe import recipe_names

    if not why.startswith("unknown arch"):
        return UserError(f"{name}, by the recipe {recipe.name}: {why}")
    near = did_you_mean(name, [*(entry.name for entry in CATALOGUE), *recipe_names()])
    if not near or near != did_you_mean(name, recipe_names()):  # an arch is nearer, or nothing is near
        return UserError(why)
    return UserError(f"{why.partition(';')[0]}{near.replace('mean', 'mean the recipe')}")


def _changes(recipe: Recipe, overrides: dict[str, Any]) -> str:
    """Return what was typed of changes to the recipe that a label tells: those by which it learns otherwise."""
    from fastresnet.sweep_cells import learned_of

    def learned(without: str | None) -> dict[str, Any] | None:
        try:
            made = recipe.with_overrides({key: value for key, value in overrides.items() if key != without})
            return learned_of(made, made.arch_spec())
        except UserError:  # it cannot be without that change
            return None

    others = ("arch", "epochs", "tta")  # which stand in the label by themselves
    told = [key for key in overrides if key not in others and learned(key) != learned(None)]
    return ", ".join(f"{key}={overrides[key]}" for key in told)


def _open(
    entered: list[Contestant],
    target: float | None,
    seeds: range,
    search: bool,
    parallel: int,
    config: Any,
    out: Path | None,
) -> tuple[Board, Path]:
    """Return the board with what is on it already, and where it lies."""
    from fastresnet.assembly import split_data
    from fastresnet.bench.board import resolve_target
    from fastresnet.bench.board_page import to_markdown, write_board
    from fastresnet.bench.time_to_accuracy import Board

    first = next((entry.recipe for entry in entered if entry.recipe is not None), None)
    if first is None:
        from fastresnet.recipe import load_recipe

        first = load_recipe("fast")
    opened = open_board_data(first, config)
    for entry in entered:
        if entry.recipe is not None:  # what a later row cannot be is found before any runs
            try:
                split_data(opened.dataset, entry.recipe, config)
            except UserError as error:
                raise _of_the_row(entry.name, entry.recipe, str(error)) from None
    aim = resolve_target(target, opened.dataset.name)
    path = out or BOARDS / f"time-to-{opened.dataset.name.lower()}-{aim:g}{suffix_of(seeds)}.json"
    record = open_board_record(path, "time-to", to_markdown, {"target": aim}, opened, config, seeds)
    board = Board(
        contestants=entered,
        runs=len(seeds),
        first_seed=seeds.start,
        search=search,
        config=config.model_copy(update={"target": aim}),
        data=opened,
        record=record,
        save=lambda record: write_board(record, path),
        tell=lambda line: typer.echo(line, err=True),
        parallel=parallel,
        every_way=True,
    )
    return board, path
