"""The ways to do a step: they learn the same, are compiled or captured before the first step, and leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from made_steps import RECIPES, Made
from optional_parts import need
from replayed_ops import RecordedOps
from tiny_runs import (
    BATCH,
    STEPS,
    Heard,
    StopAt,
    assert_same_bits,
    assert_same_science,
    tiny_config,
    tiny_recipe,
    write_tiny,
)

import fastresnet
from fastresnet import training, training_run
from fastresnet.assembly import open_loaders
from fastresnet.engine import step_time, warmup
from fastresnet.engine.compiler import num_compiled
from fastresnet.engine.distributed import Ranks
from fastresnet.engine.evaluate import EVAL_BATCH, Scorer
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.graphs import Replays
from fastresnet.engine.listener import RunInfo
from fastresnet.engine.session import Session
from fastresnet.engine.step import TrainStep
from fastresnet.engine.way import Way, graph_obstacle, whole_obstacle
from fastresnet.errors import UserError
from fastresnet.kernels.dispatch import Choice
from fastresnet.recipe_parts import Tta
from fastresnet.torchrun import Launch
from fastresnet.training import resume, train
from fastresnet.training_warmup import warm_up_step


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz")


@pytest.mark.parametrize("name", RECIPES)
def test_replayed_steps_learn_what_launched_ones_do(name: str, data: Path) -> None:
    """With every tensor where it was, as a graph needs it."""
    plain = Made(data, RECIPES[name], Way())
    wanted = plain.learn()
    capture = RecordedOps()
    graphed = Made(data, RECIPES[name], Way(graphs=True), capture=capture)
    places = {key: t.data_ptr() for key, t in graphed.tensors().items()}
    assert graphed.learn() == pytest.approx(wanted, rel=1e-4)
    for key, tensor in graphed.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[key], rtol=1e-4, atol=1e-5, msg=key)
        assert tensor.data_ptr() == places[key], key
    # Whole batches with and without the average or of two sizes of images, the last of an epoch, and evaluations.
    captured = {"sgdn with an average": 4, "muon, mixup, dropout": 4, "small images first": 5}
    assert capture.num_captured == captured.get(name, 3)
    assert capture.num_replayed == 2 * 6 + 2 * 3  # steps, and batches of 10 and 300 images


def test_a_state_that_is_loaded_goes_on_in_the_captured_step(data: Path) -> None:
    """As a run that is resumed after the warm-up has captured: every value goes to the place that the graph knows."""
    first = Made(data, {}, Way(graphs=True), capture=RecordedOps())
    first.learn(1)
    saved = copy.deepcopy(first.step.state.state_dict())
    other = Made(data, {}, Way(graphs=True), capture=RecordedOps())
    other.learn(1)
    with torch.no_grad():
        for tensor in other.tensors().values():
            tensor.zero_()
    other.step.state.load_state_dict(saved)
    other.loaders = open_loaders(other.recipe, other.chosen.config, other.data, torch.device("cpu"))
    batch = next(iter(other.loaders.train))
    for made in (first, other):
        made.step(batch)
    other.loaders.close()
    assert_same_bits(first.tensors(), other.tensors())


def test_a_value_read_back_does_not_capture(data: Path) -> None:
    """What the host would decide at every step is refused beforehand, in words."""
    reasons = {
        "adagrad": ({"optimizer.name": "adagrad"}, "Adagrad counts its steps on the host"),
        "lookahead": (
            {"optimizer.lookahead": {"k": 2}},
            "the optimizer's Lookahead counts its steps on the host",
        ),
    }
    for overrides, reason in reasons.values():
        step = Made(data, overrides, Way(), capture=RecordedOps()).step
        assert reason in str(graph_obstacle(step)) and reason in str(whole_obstacle(step))
    step = Made(data, {}, Way()).step
    assert graph_obstacle(step) == "CUDA graphs are for GPUs" and whole_obstacle(step) is None
    step.capture = RecordedOps()
    assert graph_obstacle(step) is None
    step.state.scaler = torch.amp.GradScaler("cpu")
    assert "loss scale" in str(graph_obstacle(step))
    # Torch's foreach SGD takes the lr to the host: the stand-in notices, as a capture would.
    sgd = {"optimizer": {"name": "sgdn", "lr": 0.05}}
    unfused = Made(data, sgd, Way(graphs=True), capture=RecordedOps())
    for group in unfused.step.state.optimizer.param_groups:
        group |= {"fused": False, "foreach": True}
    with pytest.raises(RuntimeError, match="stream is capturing"):
        unfused.learn(1)


def test_each_kind_of_arguments_is_captured_once() -> None:
    capture, total = RecordedOps(), torch.zeros(3)

    def add(x: torch.Tensor, *, twice: bool) -> torch.Tensor:
        total.add_(x.sum(0))
        return total * 2 if twice else total + 0

    replays = Replays(add, capture)
    for size, twice in ((2, True), (2, False), (4, True), (2, True)):
        before = total.clone()
        out = replays(torch.full((size, 3), 0.5), twice=twice)
        if len(replays) == capture.num_captured and not torch.equal(total, before + size / 2):
            # a first call adds what its warm-up calls did too, having nothing to put it back
            assert torch.equal(total, before + 5 * size / 2)
        assert torch.equal(out, total * (2 if twice else 1))
    assert len(replays) == capture.num_captured == 3 and capture.num_replayed == 4


class Watcher(Heard):
    """Notes what was compiled by the first step too."""

    compiled = -1

    def on_start(self, info: RunInfo) -> None:
        super().on_start(info)
        self.compiled = num_compiled()


SMALL = {"arch": "n1-b1-c8", "drop_last": False, "ema.every": 4, "tta": "flip"}
GROWING = {"resize": [{"size": 5, "until": 0.7}]}  # in two epochs of three


@pytest.fixture
def few_graphs() -> Iterator[None]:
    """Fewer graphs of one function than two sizes of batches and of images need, unless a run allows itself more."""
    with torch._dynamo.config.patch(recompile_limit=2):
        yield


@pytest.mark.parametrize(
    ("compile", "loader", "changes"),
    [
        ("on", "resident", {"tta": "none"}),
        ("whole", "numba", {}),
        ("on", "numba", {"tta": "none"} | GROWING),
    ],
    ids=["on", "whole", "resized"],
)
def test_compiled_runs_compile_once_and_resume_to_the_same_bits(
    compile: str,
    loader: str,
    changes: Any,
    data: Path,
    tmp_path: Path,
    quick_compiler: None,
    few_graphs: None,
) -> None:
    """Nothing more by an epoch's incomplete last batch, the average's turns, sizes, evaluations or a resumption."""
    watcher, before = Watcher(), num_compiled()
    config = tiny_config(data, compile=compile, loader=loader, val=10, amp="off")
    recipe = tiny_recipe(SMALL | changes)
    whole = train(recipe, config, runs_dir=tmp_path / "whole", listener=watcher)
    assert whole.config.compile == compile and watcher.compiled > before
    assert num_compiled() == watcher.compiled and watcher.notices == []
    assert [row["clock"]["recompiled"] for row in whole.epochs] == [0] * recipe.epochs

    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir=tmp_path / "runs", listener=StopAt(9))
    watcher = Watcher()
    resumed = resume("last", runs_dir=tmp_path / "runs", listener=watcher)
    assert watcher.info is not None and set(watcher.info.reasons.values()) == {"as the run began"}
    assert resumed.config.compile == compile and num_compiled() == watcher.compiled
    assert_same_science(Path(resumed.path), Path(whole.path))


class Twins(Ranks):
    """The first of two ranks, of which the other sees the same images."""

    def __init__(self) -> None:
        super().__init__(Launch(rank=0, world_size=2, local_rank=0, local_world_size=2, address="x", port=1))

    def add(self, tensor: torch.Tensor) -> None:
        tensor.mul_(2)

    def highest(self, value: float) -> float:
        return value

    def broadcast_bytes(self, raw: bytes | None) -> bytes:
        assert raw is not None
        return raw

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_resume_after_the_last_whole_batch_with_all_compiled(
    drop_last: bool, data: Path, tmp_path: Path, quick_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up took its own whole batches for the incomplete one, which is done without the compiler."""
    session = Session(Launch())
    session.ranks = Twins()
    monkeypatch.setattr(training, "joined", lambda: nullcontext(session))
    monkeypatch.setattr(training_run, "AGREE_S", 1e-9)  # at every step
    recipe = tiny_recipe(SMALL | {"drop_last": drop_last, "epochs": 2})
    config = tiny_config(data, compile="on", amp="off", sync_bn=False)
    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir=tmp_path / "runs", listener=StopAt(STEPS))
    torch._dynamo.reset()
    watcher, before = Watcher(), num_compiled()
    resume("last", runs_dir=tmp_path / "runs", listener=watcher)
    assert watcher.info is not None and watcher.info.resumed_at == (0, STEPS)
    assert before < watcher.compiled == num_compiled() and watcher.notices == []


def test_a_way_is_measured_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whole images; on smaller ones, which decide nothing, the taken way alone."""
    measured: list[tuple[Way, int | None]] = []
    measure = step_time.StepTimes.measure

    def counted(times: step_time.StepTimes, way: Way, size: int | None = None) -> float:
        measured.append((way, size))
        return measure(times, way, size)

    monkeypatch.setattr(step_time.StepTimes, "measure", counted)
    monkeypatch.setattr(warmup, "WORTH_GENERATING_S", 0.0)
    monkeypatch.setattr(warmup, "WORTH_GENERATING_STEPS", 1)
    recipe = tiny_recipe({"arch": "n2-b1-c16", "resize": [{"size": 4, "until": 0.5}]})
    train(recipe, tiny_config(data, compile="off", amp="off"), runs_dir=tmp_path / "runs")
    assert len(measured) == len(set(measured)) and {size for _, size in measured} == {None, 4}
    assert len({way for way, size in measured if size is None}) == 3  # plain, convolutions, norms
    assert len([size for _, size in measured if size == 4]) == 1


def test_what_is_compiled_after_the_warm_up_is_counted_and_said(
    data: Path, tmp_path: Path, quick_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_time.StepTimes, "measure", lambda self, way, *_: self.step.take(way) or 1.0)
    monkeypatch.setattr(Scorer, "compile", lambda self, backend: None)
    watcher = Watcher()
    config = tiny_config(data, compile="on", amp="off")
    result = train(tiny_recipe(SMALL | {"epochs": 2}), config, runs_dir=tmp_path / "runs", listener=watcher)
    assert [row["clock"]["recompiled"] for row in result.epochs] == [2, 0]  # two sizes of batch
    assert watcher.notices == ["torch.compile compiled 2 more in epoch 1, which its time includes"]


def test_filled_up_batches_score_as_they_are(data: Path) -> None:
    """Images that fill a batch up for a compiled or captured evaluation count for nothing."""
    made = Made(data, {}, Way())
    plain = made.step.scorer
    filled = Scorer(made.step.state.eval_model, made.step.augment, torch.float32)
    filled.use_graphs(RecordedOps())
    made.step.state.eval_model.eval()
    images = torch.randint(0, 256, (37, 3, 8, 8), dtype=torch.uint8)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.arange(37) % 3
    for tta in get_args(Tta):
        wanted, found = plain(images, labels, tta=tta), filled(images, labels, tta=tta)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert found.logits.shape == (37, 3)
    assert EVAL_BATCH > 37


# The warm-up's choice


class Clock:
    """Makes the warm-up see what each way is said to take."""

    def __init__(self, seconds: dict[tuple[str, bool], float]) -> None:
        self.seconds = seconds
        self.seen: list[Way] = []

    def timed(self, times: step_time.StepTimes, *_: Any, **__: Any) -> float:
        way = times.step.way
        if not self.seen or self.seen[-1] != way:
            self.seen.append(way)
        return self.seconds[way.compile, way.graphs]


CHOICES: dict[str, tuple[dict[str, Any], dict[tuple[str, bool], float], Way]] = {
    "compiled is faster": (
        {},
        {("off", False): 1.0, ("on", False): 0.5, ("whole", False): 0.5, ("on", True): 0.5},
        Way(compile="on", kernels="inductor"),
    ),
    "whole is faster still": (
        {},
        {("off", False): 1.0, ("on", False): 0.5, ("whole", False): 0.4, ("whole", True): 0.4},
        Way(compile="whole", kernels="inductor"),
    ),
    "compiled is no faster": (
        {},
        {("off", False): 1.0, ("on", False): 0.97, ("off", True): 0.5},
        Way(graphs=True),
    ),
    "graphs as well": (
        {"compile": "on"},
        {("on", False): 1.0, ("on", True): 0.5},
        Way(compile="on", kernels="inductor", graphs=True),
    ),
    "graphs not wanted": ({"compile": "off", "graphs": "off"}, {("off", False): 1.0}, Way()),
    "deterministic, which no clock decides": (
        {"deterministic": True},
        {("off", False): 1.0},
        Way(),
    ),
    "inductor asks for a compiler": (
        {"kernels": "inductor", "graphs": "off"},
        {("on", False): 1.0},
        Way(compile="on", kernels="inductor"),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_fastest_way_is_taken(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, seconds, wanted = CHOICES[name]
    clock = Clock(seconds)
    monkeypatch.setattr(
        step_time.StepTimes, "_timed", lambda self, *args, **kwargs: clock.timed(self, *args, **kwargs)
    )
    made = Made(data, {"epochs": 10**5}, Way(), capture=RecordedOps())
    config = made.chosen.config.model_copy(update=options)
    chosen = replace(made.chosen, config=config)
    monkeypatch.setattr(Scorer, "__call__", lambda *args, **kwargs: None)
    found = warm_up_step(made.step, made.recipe, chosen, made.data)
    assert found.way == wanted == made.step.way, found.reasons
    assert set(found.reasons) == {"compile", "kernels", "convs", "graphs"}
    assert found.options["graphs"] == ("on" if wanted.graphs else "off")
    made.loaders.close()


@pytest.mark.parametrize(("launched_s", "kernels"), [(0.5, "triton"), (2.0, "eager")])
def test_kernels_that_won_as_replays_are_tried_as_launches(
    launched_s: float, kernels: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where graphs turn out to be no faster: a launch costs the kernels more than it costs plain PyTorch."""
    asked = []

    def choose(*args: Any, launched: bool, **kwargs: Any) -> Choice:
        asked.append(launched)
        return Choice(kernels="triton", reason="said so")

    def timed(times: step_time.StepTimes, *_: Any, **__: Any) -> float:
        return launched_s if times.step.way.kernels == "triton" else 1.0

    need("triton")
    monkeypatch.setattr("fastresnet.training_warmup.choose_kernels", choose)
    monkeypatch.setattr(step_time.StepTimes, "_timed", timed)
    monkeypatch.setattr(Scorer, "__call__", lambda *args, **kwargs: None)
    made = Made(data, {}, Way(), capture=RecordedOps())
    monkeypatch.setattr(
        made.step, "device_type", "cuda"
    )  # a CPU's norms are measured in steps from the start
    config = made.chosen.config.model_copy(update={"compile": "off", "graphs": "auto"})
    found = warm_up_step(made.step, made.recipe, replace(made.chosen, config=config), made.data)
    assert found.way == Way(kernels=kernels) and asked == [False]
    assert "with triton norms" in found.reasons["kernels"]
    # Where steps are launched in any case, that is what was measured.
    config = config.model_copy(update={"graphs": "off"})
    found = warm_up_step(made.step, made.recipe, replace(made.chosen, config=config), made.data)
    assert found.way == Way(kernels="triton") and asked == [False, True]
    made.loaders.close()


def test_a_way_that_was_asked_for_and_fails_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no Python.h\nand much more")

    monkeypatch.setattr(TrainStep, "backend", fail)
    with pytest.raises(UserError, match=r"a step with --compile on failed: RuntimeError: no Py") as e:
        train(tiny_recipe({}), tiny_config(data, compile="on"), runs_dir=tmp_path / "runs")
    assert str(e.value).endswith("no Python.h; train with --compile off")


def test_what_cannot_be_had_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    recipe, runs = tiny_recipe({"optimizer.lookahead": {"k": 2}}), tmp_path / "runs"
    with pytest.raises(
        UserError, match="--graphs on is not possible here: CUDA graphs are for GPUs; use auto"
    ):
        train(recipe, tiny_config(data, graphs="on"), runs_dir=runs)
    with pytest.raises(
        UserError, match="--compile whole is not possible here: the optimizer's Lookahead counts"
    ):
        train(recipe, tiny_config(data, compile="whole"), runs_dir=runs)
    with pytest.raises(UserError, match=r"--kernels inductor is what torch\.compile makes; add --compile on"):
        train(recipe, tiny_config(data, kernels="inductor", compile="off"), runs_dir=runs)
    assert not runs.exists()


def test_the_options_are_the_kernels_own() -> None:
    from typing import get_args

    from fastresnet.kernels.norm_act import KERNELS
    from fastresnet.run import Kernels

    assert set(get_args(Kernels)) == {"auto", *KERNELS}
    assert fastresnet.RunConfig().kernels == "auto"
    assert BATCH < EVAL_BATCH
