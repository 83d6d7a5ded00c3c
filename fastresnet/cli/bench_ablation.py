"""``fastresnet bench ablation``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastresnet.cli.board_filling import PARALLEL_HELP, board_settings, fill_board, open_board_data
from fastresnet.cli.options import Compile, Insert, Minutes, Show
from fastresnet.cli.typed import assigned, named_as_typed
from fastresnet.errors import UserError

if TYPE_CHECKING:
    from fastresnet.bench.ablation import Factors
    from fastresnet.bench.time_to_accuracy import Board
    from fastresnet.run import RunConfig

WHAT, CLOCK, MACHINE = "What is run", "How much", "Data and machine"


def ablation(
    factors: Annotated[
        str, typer.Argument(metavar="FACTORS", help="A packaged list of factors, or a TOML file of your own.")
    ] = "fast",
    archs: Annotated[
        str, typer.Option(help="Networks, with commas between them: a table each.", rich_help_panel=WHAT)
    ] = "resnet8",
    recipe: Annotated[str, typer.Option(help="The base.", rich_help_panel=WHAT)] = "fast",
    epochs: Annotated[int, typer.Option(help="Of each run.", min=1, rich_help_panel=WHAT)] = 4,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the base.", rich_help_panel=WHAT),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="These factors alone.", rich_help_panel=WHAT)
    ] = None,
    runs: Annotated[
        int,
        typer.Option(
            help="Of the base and of each factor, with the same seeds.", min=1, rich_help_panel=CLOCK
        ),
    ] = 4,
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
            help="The record; a .md goes beside it. One that exists is added to "
            "[default: bench-results/ablation-<data set>-<recipe>-<epochs>.json].",
            rich_help_panel=CLOCK,
        ),
    ] = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Judge changes to a recipe, one factor at a time, by runs with the same seeds as the base's."""
    from fastresnet.bench.ablation import Factors
    from fastresnet.bench.ablation_page import mark_in, mark_of, to_markdown
    from fastresnet.bench.record import check_insert, check_out, insert_marked, read_record
    from fastresnet.cli.train import check_loader
    from fastresnet.recipe import load_recipe
    from fastresnet.run import RunConfig

    if show is not None:
        record = read_record(show, "ablation", to_markdown)
    else:
        started = time.monotonic()
        check_loader(loader)
        machine = {"device": device, "loader": loader, "amp": amp, "compile": compile_, "threads": threads}
        check_out(out or Path("bench-results") / "ablation.json", ".md")
        overrides = assigned(set_, {"epochs": epochs})
        if "arch" in overrides:
            raise UserError("--set arch would train another network than --archs names; name it there")
        if "tta" in overrides:
            raise UserError("--set tta is of no use: every run is tested without and with it")
        base = load_recipe(recipe).with_overrides(overrides | {"epochs": epochs, "tta": "flip"})
        check_insert(mark_of(base.name, epochs), *insert or ())
        with named_as_typed(machine):
            # only the last epoch is judged; no checkpoint by time: a run that is interrupted is done again
            config = RunConfig.parse(data=data, eval_every=epochs, save_every_s=1e9, **machine)
        listed = Factors.load(factors, base, _names(only))
        board, path = _open(listed, overrides, _names(archs), runs, config, parallel, out)
        record = board.record
        fill_board(board, path, started, minutes, "ablation")
        typer.echo(f"record     {path}, and the same as .md", err=True)
    page = to_markdown(record)
    for place in insert or []:
        insert_marked(mark_in(record), page.partition("\n\n")[2], place)  # without its heading
    typer.echo(page, nl=False)


def _names(text: str | None) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _open(
    factors: Factors,
    overrides: dict[str, str],
    archs: list[str],
    runs: int,
    config: RunConfig,
    parallel: int,
    out: Path | None,
) -> tuple[Board, Path]:
    """Return the ablation with what is in its record already, and where that lies."""
    from fastresnet.assembly import choose_machine
    from fastresnet.bench.ablation import base_digest
    from fastresnet.bench.ablation_page import write_ablation
    from fastresnet.bench.continued import earlier_record, go_on
    from fastresnet.bench.record import make_record
    from fastresnet.bench.time_to_accuracy import Board

    if not archs:
        raise UserError("--archs names no network; give one or more, as in --archs resnet8")
    base, contestants = factors.base, factors.contestants(archs)
    opened = open_board_data(base, config)
    chosen = choose_machine(config)
    name = f"ablation-{opened.dataset.name}-{base.name}-{base.epochs}.json"
    path = out or Path("bench-results") / name.lower()
    # what was typed comes first, so that a difference is named by it
    own = {"recipe": base.name, "epochs": base.epochs, "set": overrides, "base": base_digest(base)}
    record = make_record(
        "ablation",
        chosen.device_name,
        chosen.config.threads,
        settings=own | board_settings(opened, config),
        factors=[],
        rows=[],
        runs=[],
        not_measured=[],
    )
    earlier = earlier_record(path, "ablation")
    if earlier is not None:
        # it grows over days of work on the source; each run names its commit
        record = go_on(earlier, record, same_source=False)
    told = factors.told(archs, opened)
    left_out = factors.impossible(archs, opened)
    for label, reason in left_out.items():
        typer.echo(f"note: left out: {label}: {reason}", err=True)
    contestants = [each for each in contestants if each.name not in left_out]
    told = [each for each in told if f"{each['arch']}, {each['name']}" not in left_out]
    record["left_out"] = record.get("left_out", {}) | left_out
    record["factors"] = told + [each for each in record["factors"] if each not in told]
    board = Board(
        contestants=contestants,
        runs=runs,
        search=False,
        config=config,
        data=opened,
        record=record,
        save=lambda record: write_ablation(record, path),
        tell=lambda line: typer.echo(line, err=True),
        parallel=parallel,
    )
    return board, path
