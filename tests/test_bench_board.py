"""What a board says of its runs: standings, page and picture."""

from __future__ import annotations

from typing import Any

from board_records import record_of, row, run_of

from fastresnet.bench.asked import ask, asked_seeds, first_seed
from fastresnet.bench.board import ENERGY, labels_of, runs_of, standings, summarise, verdict_of
from fastresnet.bench.board_page import to_markdown
from fastresnet.bench.board_plot import draw, figure_of
from fastresnet.bench.comparison import find_row
from fastresnet.bench.seeds import figure_seeds


def test_standings() -> None:
    sure, quick, marked, below, lone, none = map(row, ("sure", "quick", "marked", "below", "lone", "none"))
    runs = [
        *(run_of(sure, i, a, 9 + i, crossing_s=8.0, energy_j=500.0) for i, a in enumerate((0.9424, 0.9426))),
        *(run_of(quick, i, 0.9401, 5, date=f"2026-01-0{i + 1}") for i in range(3)),
        *(run_of(marked, i, a, 4) for i, a in enumerate((0.90, 0.99))),
        *(run_of(below, i, 0.93, 3) for i in range(2)),
        run_of(lone, 0, 0.99, 1),
        run_of(lone, 1_000_000, 0.5, 1, role="search"),
    ]
    record = record_of(runs, [none, below, marked, quick, sure, lone], found=[vars(lone)])
    lines = standings(record)
    assert [(line.row.name, line.verdict) for line in lines] == [
        *(("quick", "reaches"), ("sure", "reaches"), ("marked", "mean only")),
        *(("lone", "one run"), ("below", "below"), ("none", "unmeasured")),
    ]
    assert [line.searched for line in lines] == [False, False, False, True, False, False]
    tried = record_of(runs, [lone])  # by a search that found another
    assert not summarise(tried, lone).searched
    assert lines[1].seconds == 9.5 and lines[3].runs == 1  # what a search tried is not counted
    assert summarise(record, sure).crossed == 2 and summarise(record, sure).energy_j == 500
    assert summarise(record, quick).dates == ("2026-01-01", "2026-01-02", "2026-01-03")
    page = to_markdown(record)
    assert "only its mean: not shown to reach it" in page and "| unmeasured |" in page
    assert "after every 2 epochs" in page and "| 2026-01-01 to 2026-01-03 |" in page and "| 500 |" in page
    assert draw(record).startswith(b"\x89PNG") and draw(record_of([], [none])).startswith(b"\x89PNG")


def test_two_runs_close_above_the_target_reach_it_only_if_the_bound_does() -> None:
    assert verdict_of([0.942, 0.943], 0.94) == "mean only"  # the bound is 0.9425 - 6.314 * 0.0005
    assert verdict_of([0.9424, 0.9426], 0.94) == "reaches"
    assert verdict_of([0.93, 0.93], 0.94) == "below" and verdict_of([], 0.94) == "unmeasured"


def test_a_board_tells_the_commits_of_its_runs() -> None:
    def page(*commits: str) -> str:
        runs = [run_of(row("a"), seed, 0.9, 1, git=commit) for seed, commit in enumerate(commits)]
        return to_markdown(record_of(runs, [row("a")]))

    assert "Its runs are of the commit: aaa; recipes, networks and lists" in page(
        "aaa", "aaa"
    ) and "commits)" not in page("aaa", "aaa")
    assert "| 2026-01-01 (2 commits) |" in page("aaa", "bbb") and "Its runs" not in page()
    assert "Its runs are of the commit: aaa with changes;" in page("aaa-dirty")
    assert "Its runs are of several commits: aaa, bbb with changes, ccc;" in page(
        "aaa", "bbb-dirty", "ccc", "aaa"
    )


def test_a_row_of_which_a_run_failed_says_so_beside_its_verdict() -> None:
    runs = [run_of(row("a"), seed, 0.95 + seed / 1000, 1) for seed in range(3)]
    failed = {row("a").label: "run 4: the loss is not finite"}
    page = to_markdown(record_of(runs, [row("a")], failed=failed))
    assert "| yes (of those that ended: one failed) |" in page and "run 4: the loss is not finite" in page


def test_a_verdict_before_all_planned_runs_says_so() -> None:
    """Stopped as soon as it says yes, it would say it more often than once in twenty by chance."""
    runs = [run_of(row("a"), seed, 0.95 + seed / 1000, 1) for seed in range(3)]
    asked = [{"row": vars(row("a")), "seeds": list(range(10))}]
    assert "| yes (so far: 7 of its runs missing) |" in to_markdown(record_of(runs, [row("a")], asked=asked))
    asked = [{"row": vars(row("a")), "seeds": list(range(3))}]
    assert "| yes |" in to_markdown(record_of(runs, [row("a")], asked=asked))


def test_what_was_compiled_anew_within_a_run_is_told() -> None:
    runs = [run_of(row("a"), seed, 0.95, 1, recompiled=2 * (seed == 1)) for seed in range(3)]
    runs += [run_of(row("b"), 0, 0.95, 1, recompiled=0)]
    page = to_markdown(record_of(runs, [row("a"), row("b")]))
    assert "anew in the course of a run, which it should not be: a, fast, 8 epochs (1 of 3 runs).\n" in page
    assert "anew" not in to_markdown(record_of(runs[2:], [row("a"), row("b")]))


def test_hosts_of_the_gpu_are_told_where_they_differ() -> None:
    """The threads of a run's machine are its share of its host's, where several ran at once."""
    of_hosts = [{"cpu": "one", "threads": 4}, {"cpu": "another", "threads": 4}, {"cpu": "one", "threads": 16}]
    runs = [run_of(row("a"), seed, 0.95, 1, **host) for seed, host in enumerate(of_hosts)]
    told = "depend too: one, 4 threads (1 run); another, 4 threads (1 run); one, 16 threads (1 run)."
    assert told in to_markdown(record_of(runs, [row("a")]))
    shared = [run | {"cpu": "one", "threads": 4, "machine": {"threads": 2}} for run in runs[:1]]
    assert "hosts" not in to_markdown(record_of([*runs[:1], *shared], [row("a")]))


def test_what_is_compared_with_is_what_was_asked_for_last() -> None:
    """Of two rows of one name that have runs: it is that one which the others took turns with."""
    ten, eight, other = row("a", epochs=10), row("a", epochs=8), row("b")
    runs = [run_of(each, 0, 0.9, 1) for each in (ten, eight, other)]
    record = record_of(runs, [ten, eight, other])
    assert find_row(record, "a") == eight
    ask(record, ten, [0])
    ask(record, other, [0])
    assert find_row(record, "a") == ten


def test_the_row_that_others_take_turns_with_is_the_one_they_are_compared_with() -> None:
    """Where two rows of one name were measured in the other order before, turns were taken with neither's partner."""
    ten, eight, other = row("a", epochs=10), row("a", epochs=8), row("b")
    record = record_of([run_of(each, 0, 0.9, 1) for each in (ten, eight)], [ten, eight, other], against="a")
    for asked in ((eight, ten, other), (ten, eight, other)):
        for each, seeds in figure_seeds(record, asked, 1).items():
            ask(record, each, seeds)
        against = find_row(record, "a")
        assert against == asked[1]
        assert set(asked_seeds(record, other)) <= set(asked_seeds(record, against))


def test_seeds_begin_where_those_of_rows_with_runs_do() -> None:
    """What was asked for and never run is no reason to refuse others."""
    record = record_of([], [row("a"), row("b")])
    ask(record, row("b"), [0, 1])
    assert first_seed(record) is None
    ask(record, row("a"), [5, 6])
    record["runs"].append(run_of(row("a"), 6, 0.95, 1))
    assert first_seed(record) == 5
    record["asked"] = []
    assert first_seed(record) == 6
    ask(record, row("a"), [10, 11])  # of a record that holds others too, as early ones may
    assert first_seed(record) == 6


def test_a_rows_dates_are_in_order() -> None:
    runs = [run_of(row("a"), seed, 0.9, 1, date=f"2026-01-0{2 - seed}") for seed in range(2)]
    assert "| 2026-01-01 to 2026-01-02 |" in to_markdown(record_of(runs, [row("a")]))


def test_why_no_energy_was_read_is_told_where_none_can_be() -> None:
    runs = [run_of(row("a"), 0, 0.9, 1)]
    assert "No energy was read: only a GPU" in to_markdown(
        record_of(runs, [row("a")], energy="only a GPU reports it")
    )
    assert "nergy" not in to_markdown(record_of(runs, [row("a")], energy=ENERGY))


def test_every_run_is_in_the_picture() -> None:
    for accuracies in ([0.7, 0.935], [0.2, 0.3], [0.999, 1.0]):
        runs = [run_of(row("a"), seed, value, 1) for seed, value in enumerate(accuracies)]
        low, high = figure_of(record_of(runs, [row("a")])).axes[0].get_ylim()
        assert low < min(accuracies) and max(accuracies) <= high


def test_a_searchs_tries_are_drawn_hollow_and_told() -> None:
    tried = [run_of(row("a", epochs=4), 1_000_000 + i, 0.5 + 0.1 * i, 1, role="search") for i in range(2)]
    record = record_of([run_of(row("a"), 0, 0.9, 2), *tried], [row("a")])
    ends = [
        line for line in figure_of(record).axes[0].lines if line.get_marker() == "o" and len(line.get_ydata())
    ]
    assert {(float(line.get_ydata()[0]), line.get_fillstyle()) for line in ends} == {
        *((0.5, "none"), (0.6, "none"), (0.9, "full"))
    }
    told = "Tried by search, mean accuracy of runs on seeds of their own: a, fast, 4 epochs: 0.5500 (2 runs)."
    assert told in to_markdown(record)


def test_a_searchs_tries_have_the_colour_of_their_own_length_else_of_what_was_found() -> None:
    def colours(**changes: Any) -> dict[str, str]:
        figure = figure_of(record_of(runs, [*rows], **changes))
        ends = [each for each in figure.axes[0].lines if each.get_marker() == "o" and len(each.get_ydata())]
        return {f"{each.get_ydata()[0]:g}{each.get_fillstyle()[0]}": str(each.get_color()) for each in ends}

    rows = [row("a", epochs=epochs) for epochs in (4, 8, 2)]
    runs = [run_of(rows[0], 0, 0.94, 2), run_of(rows[1], 0, 0.9, 2)]
    runs += [run_of(each, 1_000_000, 0.5 + i / 10, 1, role="search") for i, each in enumerate(rows)]
    of = colours(found=[vars(rows[1])])
    assert of["0.5n"] == of["0.94f"] != of["0.9f"] == of["0.6n"]
    rows.pop()
    assert colours(found=[vars(rows[1])])["0.7n"] == of["0.9f"]
    assert colours()["0.7n"] not in of.values()


def test_a_board_without_runs_says_so_in_its_picture() -> None:
    assert [text.get_text() for text in figure_of(record_of([], [row("a")])).axes[0].texts] == ["no runs yet"]


def test_rows_of_one_name_are_told_apart() -> None:
    """As where a recipe was changed between two commands."""
    then, now, other = row("a", science="then"), row("a", science="now"), row("b")
    runs = [run_of(each, 0, 0.9, 1) for each in (then, now, other)]
    record = record_of(runs, [then, now, other], against="b")
    labels = labels_of([then, now, other, then])
    assert labels[other] == "b, fast, 8 epochs" and len({*labels.values()}) == 3
    page = to_markdown(record)
    for each in (then, now):
        assert labels[each].startswith("a, fast, 8 epochs, form ")
        assert page.count(labels[each].removeprefix(each.label)) == 2  # on the board, and beside b
        assert find_row(record, labels[each]) == each
    assert "different forms are of a recipe or a command that was changed" in page
    assert "form" not in to_markdown(record_of(runs[1:], [now, other]))


def test_runs_of_a_row_come_by_seed() -> None:
    this = row("this")
    record = record_of(
        [run_of(this, 2, 0.1, 1), run_of(this, 0, 0.2, 1), run_of(row("that"), 1, 0.3, 1)], [this]
    )
    assert [run["seed"] for run in runs_of(record, this)] == [0, 2]
