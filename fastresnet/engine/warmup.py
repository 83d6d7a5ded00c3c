"""Warm-up on random labels: finds the fastest way to do the run's steps, measures it, and leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fastresnet.engine.step import TrainStep
from fastresnet.engine.step_time import StepTimes, cause_of
from fastresnet.engine.way import Way, graph_obstacle, whole_obstacle
from fastresnet.errors import UserError
from fastresnet.kernels.dispatch import Choice
from fastresnet.loaders.protocol import Batch
from fastresnet.recipe_parts import Tta
from fastresnet.run import RunConfig

# Compiling is tried when the eager run would last longer than this, and kept when it is faster by more than noise.
WORTH_COMPILING_S = {"cpu": 600.0, "cuda": 60.0}
KEEP_RATIO = 0.95
# So many trainings alike that on a GPU, where it takes minutes, everything is measured: of figures whose clock leaves
# that out, which would else hang on how many runs they are the mean of.
ALIKE_ON_GPU = 10_000
# Some seconds go into generating a CPU's code, and up to 20 steps into measuring each kind.
WORTH_GENERATING_S, WORTH_GENERATING_STEPS = 20.0, 100
PLAIN = {"compile": "off", "kernels": "eager", "convs": "direct", "graphs": "off"}
NOT_MEASURED = "deterministic, so not measured"


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What the warm-up found.

    Attributes:
        step_s: median seconds of a step as the run will do it, by the side of its images in pixels.
        way: how that is.
        reasons: why, in a few words, by option: ``compile``, ``kernels``, ``convs``, ``graphs``.
    """

    step_s: dict[int, float]
    way: Way
    reasons: dict[str, str]

    @property
    def options(self) -> dict[str, str]:
        """The way as a config has it, by option."""
        graphs = "on" if self.way.graphs else "off"
        return {
            "compile": self.way.compile,
            "kernels": self.way.kernels,
            "convs": self.way.convs,
            "graphs": graphs,
        }


class ChooseKernels(Protocol):
    """Chooses the norms' implementation."""

    def __call__(self, *, compiled: bool, launched: bool, worth_measuring: bool) -> Choice:
        """Choose it for a step that is compiled or not, launched or replayed."""


@dataclass(kw_only=True)
class Search:
    """Finds the way a run's steps are done: what the config asks for, and for ``auto`` the fastest.

    Attributes:
        step: the run's step.
        batches: random ones: first the batch that is repeated, then any other shape the run will meet.
        sizes: those below the images' own that the run will resize them to, in pixels; they decide nothing.
        config: its ``compile``, ``kernels``, ``convs``, ``graphs`` and ``deterministic`` are read.
        num_steps: steps that will be done in the way that is found.
        compiler_missing: why nothing can be compiled here; None when it can.
        convs_obstacles: why no convolution can be done so, by each of CONVS but ``direct``; None when some can.
        norms_obstacle: why no norm can be LLVM's; None when they can.
        choose_kernels: what ``kernels`` comes to.
        reasons: found so far, by option.
        times: of steps, measured so far.
    """

    step: TrainStep
    batches: list[Batch]
    sizes: Sequence[int]
    config: RunConfig
    num_steps: int
    compiler_missing: str | None
    convs_obstacles: Mapping[str, str | None]
    norms_obstacle: str | None
    choose_kernels: ChooseKernels
    reasons: dict[str, str] = field(default_factory=dict)
    times: StepTimes = field(init=False)

    def __post_init__(self) -> None:
        self.times = StepTimes(step=self.step, batches=self.batches)

    def find(self) -> WarmUp:
        """Run a few steps in each way that may be the fastest, and take it.

        Raises:
            UserError: a way was asked for that is not possible.
        """
        for convs, obstacle in self.convs_obstacles.items():
            self._refuse("convs", convs, obstacle)
        self._refuse("kernels", "llvm", self.norms_obstacle)
        way = self._graphed(self._compiled(self._normed(self._convolved())))
        plain = replace(way, kernels="eager" if way.compile == "off" else "inductor")
        if (
            self._measures("kernels")
            and way.kernels != plain.kernels
            and not way.graphs
            and not self._launched
        ):
            # They won as replays, which cost no launches, and this run launches after all.
            way = self._faster(plain, way, "kernels")
        self.step.take(way)
        self.step.forget_other_ways()
        full = self.batches[0].images.shape[-1]
        step_s = {full: self.times.of(way)} | {
            size: self.times.measure_taken(way, size) for size in self.sizes
        }
        return WarmUp(step_s=step_s, way=way, reasons=self.reasons)

    def _measures(self, option: str) -> bool:
        """Return whether a measurement decides ``option``: another day's may differ, so not where bits must not."""
        return getattr(self.config, option) == "auto" and not self.config.deterministic

    def _wanted(self, option: str) -> str:
        """Return what is asked of an option: the plain one, where none may be measured."""
        value = str(getattr(self.config, option))
        return PLAIN[option] if value == "auto" and not self._measures(option) else value

    @property
    def _launched(self) -> bool:
        """Steps will not be replayed."""
        return self._wanted("graphs") == "off" or graph_obstacle(self.step) is not None

    def _kernels(self, *, compiled: bool, worth: bool) -> str:
        choice = self.choose_kernels(compiled=compiled, launched=self._launched, worth_measuring=worth)
        chosen: tuple[str, str] = self.step.ranks.broadcast((choice.kernels, choice.reason))
        self.reasons["kernels"] = chosen[1]
        return chosen[0]

    def _convolved(self) -> Way:
        """Return the plain way with its convolutions decided."""
        plain = Way(kernels="eager" if self.config.kernels == "auto" else self.config.kernels)
        return self._generated(plain, "convs", self.convs_obstacles)

    def _normed(self, way: Way) -> Way:
        """Return the way with its norms decided, where they are an eager step's on a CPU."""
        compiles = self._wanted("compile") in ("on", "whole")
        if self.step.device_type != "cpu" or (compiles and self.config.kernels == "auto"):
            return way
        return self._generated(way, "kernels", {"llvm": self.norms_obstacle})

    def _refuse(self, option: str, generated: str, obstacle: str | None) -> None:
        """Refuse code that was asked for and cannot be generated, before anything is measured."""
        if getattr(self.config, option) == generated and obstacle is not None:
            raise UserError(
                f"--{option} {generated} is not possible here: {obstacle}; use auto or {PLAIN[option]}"
            )

    def _generated(self, way: Way, option: str, obstacles: Mapping[str, str | None]) -> Way:
        """Return ``way`` with an option decided that may be code generated for this CPU.

        Args:
            obstacles: why not, by the option's value; None where it may.
        """
        wanted = self._wanted(option)
        possible = [_changed(way, option, value) for value, why_not in obstacles.items() if why_not is None]
        obstacle = None if possible else next(iter(obstacles.values()))
        self.reasons[option] = (
            "as asked" if getattr(self.config, option) != "auto" else obstacle or NOT_MEASURED
        )
        if wanted != "auto":
            return _changed(way, option, wanted)
        if obstacle is not None:
            return way
        long_enough = self.num_steps >= WORTH_GENERATING_STEPS
        if not long_enough or self.num_steps * self.times.of(way) < WORTH_GENERATING_S:
            self.reasons[option] = "the run is too short for measuring to pay"
            return way
        return self._fastest(way, possible, option)

    def _compiled(self, plain: Way) -> Way:
        """Return the way with its compilation and kernels decided, without graphs."""
        wanted, missing, decided = self._wanted("compile"), self.compiler_missing, self.reasons.get("kernels")
        worth = True
        self.reasons["compile"] = "as asked" if wanted == self.config.compile else NOT_MEASURED
        if self.config.compile == "auto" and self.config.kernels == "inductor":
            wanted, self.reasons["compile"] = "on", "as --kernels inductor asks"
        if wanted == "auto" or (self.step.device_type == "cuda" and self._measures("kernels")):
            num_steps = WORTH_COMPILING_S[self.step.device_type] / self.times.of(plain)
            worth = self.num_steps >= num_steps
        if wanted in ("on", "whole"):
            if missing is not None:
                raise UserError(f"--compile {wanted} is not possible here: {missing}; use auto or off")
            return replace(plain, compile=wanted, kernels=self._kernels(compiled=True, worth=worth))
        if wanted == "auto" and missing is not None:
            self.reasons["compile"] = missing
        elif wanted == "auto" and not worth:
            self.reasons["compile"] = "the run is too short for compiling to pay"
        elif wanted == "auto":
            compiled = replace(plain, compile="on", kernels=self._kernels(compiled=True, worth=worth))
            found = self._faster(plain, compiled, "compile")
            # On a GPU most optimizers are one fused kernel already, and for Muon it is unmeasured.
            if found == compiled and self.step.device_type == "cpu" and whole_obstacle(self.step) is None:
                found = self._faster(found, replace(found, compile="whole"), "compile")
            if found != plain:
                return found
        if decided is not None:  # on a CPU, for an eager step
            self.reasons["kernels"] = decided
            return plain
        return replace(plain, kernels=self._kernels(compiled=False, worth=worth))

    def _graphed(self, way: Way) -> Way:
        """Return the way with graphs decided."""
        wanted, obstacle = self._wanted("graphs"), graph_obstacle(self.step)
        self.reasons["graphs"] = "as asked" if self.config.graphs != "auto" else obstacle or NOT_MEASURED
        if wanted != "auto":
            return replace(way, graphs=wanted == "on")
        if obstacle is not None:
            return way
        return self._faster(way, replace(way, graphs=True), "graphs")

    def _faster(self, first: Way, other: Way, option: str) -> Way:
        """Return ``other`` where its steps are faster than those of ``first`` by more than noise, else ``first``."""
        return self._fastest(first, [other], option)

    def _fastest(self, first: Way, others: Sequence[Way], option: str) -> Way:
        """Return that of ``others`` with the fastest steps, if faster than ``first``'s by more than noise."""
        self.times.of(first)
        measured, failed = [], []
        for other in others:
            try:
                self.times.seconds[other] = self.times.measure(other)
                measured.append(other)
            except Exception as error:
                if not self.step.ranks.is_alone:  # the others are in the midst of a step
                    raise UserError(
                        f"{_named(other, option)} a step failed on rank {self.step.ranks.rank}: {cause_of(error)}; "
                        f"train with --{option} {PLAIN[option]}"
                    ) from error
                failed.append(f"{_named(other, option)} failed: {cause_of(error)}")
        taken, told = first, []
        if measured:
            compared = self.times.compare(first, measured)
            best = min(measured, key=lambda way: compared[way][1])
            told = [
                f"{_in_ms(compared[way][0])} {_named(way, option)}"
                for way in (best, first, *(way for way in measured if way != best))
            ]
            told = [f"a step took {', '.join(told)}"]
            taken = best if compared[best][1] < KEEP_RATIO else first
        self.reasons[option] = "; ".join([*told, *failed])
        return taken


def warm_up(search: Search, eval_batch: Batch, ttas: Sequence[Tta]) -> WarmUp:
    """Find the way of the run's steps, and have all that it compiles or captures done; the state stays as it was.

    Args:
        search: over which ways.
        eval_batch: of EVAL_BATCH random images.
        ttas: the kinds of evaluation that the run will do.

    Raises:
        UserError: a way was asked for that is not possible.
    """
    step = search.step
    with step.state.preserved():
        found = search.find()
        scorer = step.scorer
        if scorer.fills_up or step.device_type == "cuda":
            training = scorer.model.training
            scorer.model.eval()
            for tta in ttas:
                scorer(eval_batch.images, eval_batch.labels, tta=tta)
            scorer.model.train(training)
    return found


def _changed(way: Way, option: str, value: str) -> Way:
    """Return ``way`` with other ``convs`` or ``kernels``."""
    return replace(way, convs=value) if option == "convs" else replace(way, kernels=value)


def _named(way: Way, option: str) -> str:
    """Say in words what sets ``way`` apart in ``option``."""
    if option == "kernels":
        return f"with {way.kernels} norms"
    if option == "convs":
        return f"with {way.convs} convolutions"
    if option == "graphs":
        return "as a CUDA graph" if way.graphs else "launched"
    return {"off": "eager", "on": "compiled", "whole": "compiled whole"}[way.compile]


def _in_ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
