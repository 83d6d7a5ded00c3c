"""``fastresnet bench time-to``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastresnet.cli.board_filling import PARALLEL_HELP, board_settings, fill_board, open_board_data
from fastresnet.cli.options import Compile, Insert, Minutes, Show
from fastresnet.cli.typed import assigned, named_as_typed
from fastresnet.errors import UserError

if TYPE_CHECKING:
    from fastresnet.bench.contestants import Contestant
    from fastresnet.bench.time_to_accuracy import Board

WHAT, CLOCK, MACHINE = "What is run", "How much", "Data and machine"
BOARDS = Path("bench-results")


def time_to(
    target: Annotated[
        float | None,
        typer.Option(help="The test accuracy to reach [default: 0.94 on CIFAR-10].", rich_help_panel=WHAT),
    ] = None,
    archs: Annotated[
        str | None,
        typer.Option(
            help="Archs, and recipes that bring their own, with commas between them [default: the reports' and ours].",
            rich_help_panel=WHAT,
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The archs' recipe.", rich_help_panel=WHAT)] = "fast",
    epochs: Annotated[
        str | None,
        typer.Option(
            help="Of each run; several with commas are rows of their own [default: the recipe's].",
            rich_help_panel=WHAT,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of every recipe.", rich_help_panel=WHAT
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Find the shortest schedule of at most --epochs first.", rich_help_panel=WHAT
        ),
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COMMAND",
            help="A command that trains once and prints one JSON line: accuracy, seconds, clock. {seed} in it is the "
            "run's number.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Of each row.", min=1, rich_help_panel=CLOCK)] = 10,
    eval_every: Annotated[
        int, typer.Option(help="Epochs between evaluations.", min=1, rich_help_panel=CLOCK)
    ] = 1,
    minutes: Minutes = None,
    parallel: Annotated[int, typer.Option(help=PARALLEL_HELP, min=1, max=64, rich_help_panel=CLOCK)] = 1,
    data: Annotated[
        str | None, typer.Option(help="As for train [default: CIFAR-10].", rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)] = "auto",
    loader: Annotated[str, typer.Option(help="As for train.", rich_help_panel=MACHINE)] = "auto",
    amp: Annotated[str, typer.Option(help="auto, bf16, fp16 or off.", rich_help_panel=MACHINE)] = "auto",
    compile_: Compile = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all.", rich_help_panel=MACHINE)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The board; a .md and a .png go beside it. One that exists is added to "
            "[default: bench-results/time-to-<data set>-<target>.json].",
            rich_help_panel=CLOCK,
        ),
    ] = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Measure how fast each arch reaches an accuracy: mean of runs, with its certainty, under a stated clock."""
    from fastresnet.bench.board_page import to_markdown
    from fastresnet.bench.record import check_insert, check_out, insert_marked, read_record
    from fastresnet.cli.train import check_loader
    from fastresnet.run import RunConfig

    if show is not None:
        record = read_record(show, "time-to", to_markdown)
    else:
        started = time.monotonic()
        check_loader(loader)
        machine = {"device": device, "loader": loader, "amp": amp, "compile": compile_, "threads": threads}
        check_out(out or BOARDS / "time-to.json", ".md", ".png")
        check_insert("bench time-to", *insert or ())
        overrides = assigned(set_, {} if epochs is None else {"epochs": epochs})
        if "arch" in overrides:
            raise UserError("--set arch would train another network than its row says; name it in --archs")
        with named_as_typed(machine):
            # no checkpoint by time: a run that is interrupted is done again
            config = RunConfig.parse(data=data, eval_every=eval_every, save_every_s=1e9, **machine)
        entered = contestants(archs, recipe, epochs, overrides, peer or [])
        board, path = _open(entered, target, runs, search, parallel, config, out)
        record = board.record
        fill_board(board, path, started, minutes, "board")
        typer.echo(f"board      {path}, and the same as .md and .png", err=True)
    page = to_markdown(record)
    for place in insert or []:
        insert_marked("bench time-to", page.partition("\n\n")[2], place)  # without its heading
    typer.echo(page, nl=False)


def contestants(
    archs: str | None, recipe: str, epochs: str | None, overrides: dict[str, Any], peers: list[str]
) -> list[Contestant]:
    """Return what the command line asks for; each number of epochs is a row of its own."""
    from fastresnet.bench.contestants import Contestant, default_names
    from fastresnet.bench.peers import Peer
    from fastresnet.recipe import load_recipe, recipe_names

    names = default_names() if archs is None else [name.strip() for name in archs.split(",") if name.strip()]
    lengths = [_epochs(part) for part in epochs.split(",")] if epochs else [None]
    found = []
    for name in dict.fromkeys(names):
        base = load_recipe(name) if name in recipe_names() else load_recipe(recipe)
        own = {} if name in recipe_names() else {"arch": name}
        for length in lengths:
            changed = own | overrides | ({} if length is None else {"epochs": length})
            made = base.with_overrides(changed)
            made.arch_spec()  # a wrong name is found before anything runs
            found.append(Contestant(name=name, recipe=made))
    return found + [Contestant(name=each.name, peer=each) for each in map(Peer.parse, peers)]


def _epochs(text: str) -> int:
    if not text.strip().isdigit() or not int(text):
        raise UserError(f"--epochs is {text!r}; give numbers with commas between them, as in 12,16")
    return int(text)


def _open(
    entered: list[Contestant],
    target: float | None,
    runs: int,
    search: bool,
    parallel: int,
    config: Any,
    out: Path | None,
) -> tuple[Board, Path]:
    """Return the board with what is on it already, and where it lies."""
    from fastresnet.assembly import choose_machine
    from fastresnet.bench.board import resolve_target
    from fastresnet.bench.board_page import write_board
    from fastresnet.bench.continued import earlier_record, go_on
    from fastresnet.bench.record import make_record
    from fastresnet.bench.time_to_accuracy import Board

    first = next((entry.recipe for entry in entered if entry.recipe is not None), None)
    if first is None:
        from fastresnet.recipe import load_recipe

        first = load_recipe("fast")
    opened = open_board_data(first, config)
    for entry in entered:
        if entry.recipe is not None:  # what a later row cannot be is found before any runs
            entry.recipe.image_sizes(opened.dataset.image_size)
    aim = resolve_target(target, opened.dataset.name)
    chosen = choose_machine(config)
    path = out or BOARDS / f"time-to-{opened.dataset.name.lower()}-{aim:g}.json"
    record = make_record(
        "time-to",
        chosen.device_name,
        chosen.config.threads,
        settings={"target": aim, **board_settings(opened, config)},
        rows=[],
        runs=[],
        not_measured=[],
    )
    earlier = earlier_record(path, "time-to")
    if earlier is not None:
        # a board grows over days of work on the source; each run names its commit
        record = go_on(earlier, record, same_source=False)
    board = Board(
        contestants=entered,
        runs=runs,
        search=search,
        config=config.model_copy(update={"target": aim}),
        data=opened,
        record=record,
        save=lambda record: write_board(record, path),
        tell=lambda line: typer.echo(line, err=True),
        parallel=parallel,
    )
    return board, path
