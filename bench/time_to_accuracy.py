"""A board that is being filled: which runs it still takes, in which order, and what of them it keeps.

The rows take turns, every other time in reverse, so that a machine that drifts slows all alike.
:mod:`fastresnet.bench.board_fill` does the runs; :mod:`fastresnet.bench.board` says what is on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastresnet.assembly import Data, choose_machine
from fastresnet.bench.asked import BLOCK, ask, enter, left, missing
from fastresnet.bench.at_once import found_in, settle
from fastresnet.bench.board import FIGURE, SEARCH, Row, runs_of
from fastresnet.bench.contestants import Contestant
from fastresnet.bench.record import publishable
from fastresnet.bench.schedule_search import Try, next_try
from fastresnet.bench.seeds import SEARCH_SEEDS, figure_seeds
from fastresnet.bench.tried import tried_lengths
from fastresnet.engine.warmup import ALIKE_ON_GPU
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig
from fastresnet.signals import held


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do: of what, as what, with which seed."""

    contestant: Contestant
    row: Row
    role: str
    seed: int

    @property
    def named(self) -> str:
        """Which run of its row it is, counted from 1; in later turns, its seed."""
        role = "search" if self.role == SEARCH else "run"
        place = self.seed % SEARCH_SEEDS
        return f"{role} {place + 1}" if place < BLOCK else f"{role} with seed {place}"


@dataclass(kw_only=True)
class Board:
    """A board that is being filled.

    Attributes:
        contestants: the rows asked for, in order.
        runs: figure runs of each row.
        first_seed: of those.
        search: find the shortest schedule of at most each recipe's epochs first.
        config: data, target, evaluation interval and machine of every run; its seed is replaced.
        data: what it names, opened.
        record: what is on the board; grows.
        save: given the record after each run.
        tell: told lines.
        parallel: most trainings at once, of archs for which that is faster a run.
        base_first: take turns in the rows' order always, so that what is stopped holds whole pairs with the first.
        every_way: on a GPU measure every way of doing the steps for a row's figure, however short its runs are.
        failed: why a run could not be done, by its row's label; the row's others are not tried.
    """

    contestants: Sequence[Contestant]
    runs: int
    search: bool
    config: RunConfig
    data: Data
    record: dict[str, Any]
    save: Callable[[dict[str, Any]], None]
    tell: Callable[[str], None]
    parallel: int = 1
    first_seed: int = 0
    base_first: bool = False
    every_way: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def settle(self, out_of_time: Callable[[], bool] = lambda: False) -> None:
        """Have the record say of each arch whether it is run at once; where it does not, that is measured and saved.

        Raises:
            UserError: as a training of it would.
        """
        for recipe in self._unsettled():
            if out_of_time():
                return
            # Those measured do their steps as the runs will.
            config = self.config.model_copy(update={"alike": self.alike(FIGURE)})
            self.record.setdefault("at_once", []).append(
                settle(recipe, config, self.data, self.parallel, self.tell)
            )
            self.keep()

    def _unsettled(self) -> list[Recipe]:
        """Return a recipe of each arch of which nothing says yet whether it is run at once."""
        if self.parallel == 1:
            return []
        of_archs: dict[str, Recipe] = {}
        for each in self.contestants:
            if each.recipe is not None:
                of_archs.setdefault(each.recipe.arch, each.recipe)  # an ablation's base, which comes first
        return [recipe for arch, recipe in of_archs.items() if not found_in(self.record, arch, self.parallel)]

    def _waiting(self) -> list[str]:
        """Return the labels of the contestants that lack runs; the names of those whose row is not known yet."""
        unsettled = {recipe.arch for recipe in self._unsettled()}
        found = []
        for each in self.contestants:
            known = each.recipe is None or each.recipe.arch not in unsettled
            decided = self.decide(each) if known else None
            if not isinstance(decided, Contestant):
                found.append(each.name)
            elif len(runs_of(self.record, self.row(decided))) < self.runs:
                found.append(self.row(decided).label)
        return [name for name in found if name not in self.record.get("failed", {})]

    @property
    def is_settled(self) -> bool:
        """Whether the rows are known: :meth:`settle` may have come to its end for want of time."""
        return not self._unsettled()

    def alike(self, role: str) -> int:
        """Return the trainings whose length is weighed against what finding their way takes."""
        every_way = self.every_way and role == FIGURE and choose_machine(self.config).device.type == "cuda"
        return ALIKE_ON_GPU if every_way else self.runs

    def row(self, contestant: Contestant) -> Row:
        """Return the contestant's line of the board, :meth:`settle` done."""
        at_once = 1
        if self.parallel > 1 and contestant.recipe is not None:
            found = found_in(self.record, contestant.recipe.arch, self.parallel)
            assert found is not None
            at_once = found["at_once"]
        return contestant.row(self.data, at_once)

    def enter(self) -> None:
        """Have the record hold what is asked for: rows with their seeds, or what a search is trying.

        What an earlier command searched for, of the same contestants and whatever length, is asked for no more. No
        figure is run while a search goes on, so that all rows take turns.
        """
        own = {self._sought(each).label for each in self.contestants}
        earlier = self.record.get("sought", {})
        searching = {sought: tried for sought, tried in earlier.items() if sought not in own}
        self.record["sought"] = searching
        chosen = []
        goes_on = False
        for contestant in self.contestants:
            decided = self.decide(contestant)
            if isinstance(decided, Try):
                tried = self.row(contestant.with_epochs(decided.epochs)).label
                wanted = self._sought(contestant)
                searching[wanted.label] = {"row": asdict(wanted), "trying": tried}
                goes_on = goes_on or tried not in self.failed
            else:
                row = self.row(decided)
                enter(self.record, row)
                chosen.append(row)
        if not goes_on:
            for row, seeds in figure_seeds(self.record, chosen, self.runs, self.first_seed).items():
                ask(self.record, row, seeds)

    def _sought(self, contestant: Contestant) -> Row:
        """Return the row that a search for a contestant's shortest schedule is known by: the one without epochs."""
        return replace(self.row(contestant), epochs=None)

    def jobs(self, under_way: Sequence[Job] = ()) -> list[Job]:
        """Return the next run of each row that has one, beside those that are ``under_way``; :meth:`enter` done."""
        trying = {job.contestant.name for job in under_way if job.role == SEARCH}
        tries: list[Job] = []
        figures: list[Job] = []
        for contestant in self.contestants:
            decided = self.decide(contestant)
            if isinstance(decided, Try):
                tried = contestant.with_epochs(decided.epochs)
                row = self.row(tried)
                if (
                    contestant.name not in trying and row.label not in self.failed
                ):  # the next depends on that one
                    seed = SEARCH_SEEDS + len(runs_of(self.record, row, SEARCH))
                    tries.append(Job(contestant=tried, row=row, role=SEARCH, seed=seed))
                continue
            row = self.row(decided)
            begun = {job.seed for job in under_way if job.row == row}
            waiting = [seed for seed in left(self.record, row) if seed not in begun]
            if waiting and row.label not in self.failed:
                figures.append(Job(contestant=decided, row=row, role=FIGURE, seed=waiting[0]))
        if tries or trying:
            return sorted(tries, key=lambda job: job.seed)  # stable: rows in order
        lowest = min((job.seed for job in figures), default=0)
        if lowest % 2 and not self.base_first:
            figures.reverse()
        return sorted(figures, key=lambda job: job.seed)

    def decide(self, contestant: Contestant) -> Try | Contestant:
        """Return what to search with, or what to run for the figure."""
        if not self.search or contestant.recipe is None:
            return contestant
        target = self.record["settings"]["target"]

        def row_for(epochs: int) -> Row:
            return self.row(contestant.with_epochs(epochs))

        results, refuted = tried_lengths(self.record, contestant.name, row_for, self.runs)
        longest = contestant.recipe.epochs
        decision = next_try(results, target, longest=longest, most_runs=self.runs, refuted=refuted)
        if isinstance(decision, Try):
            return decision
        # Where not even the longest reaches the target, its figure says how far it is from it.
        chosen = contestant.with_epochs(decision.epochs or longest)
        row = self.row(chosen)
        found = self.record.setdefault("found", [])
        if decision.epochs is not None and row not in (Row(**each) for each in found):
            found.append(asdict(row))
        return chosen

    def add(self, run: dict[str, Any], job: Job) -> None:
        """Keep a run that was done, and tell it."""
        self.record["runs"].append(run)
        if job.row.label not in self.failed:  # of an earlier command
            self.record.get("failed", {}).pop(job.row.label, None)
        self.keep()
        self.tell(_told(run, job))

    def fail(self, job: Job, reason: str) -> None:
        """Keep why a run could not be done, and tell it; of its row no more is tried."""
        self.failed.setdefault(job.row.label, f"{job.named}: {reason}")
        self.record.setdefault("failed", {})[job.row.label] = publishable(self.failed[job.row.label])
        self.keep()
        self.tell(f"{job.row.label}, {job.named}: {reason}; its other runs are left out")

    def keep(self) -> None:
        """Save the record, with what is missing of it, whole whatever signal comes meanwhile."""
        if self.is_settled:
            self.enter()
        waiting = [] if self.is_settled else self._waiting()
        self.record["not_measured"] = list(dict.fromkeys((*missing(self.record), *waiting)))
        with held():
            self.save(self.record)


def _told(run: dict[str, Any], job: Job) -> str:
    crossing = "" if run["crossing_s"] is None else f", first crossing at {run['crossing_s']:.2f} s"
    return f"{job.row.label}, {job.named}: {run['accuracy']:.4f} in {run['seconds']:.2f} s{crossing}"
