"""Several ranks: they learn what one process does, and end together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from optional_parts import need
from ranks_worker import BY_SHARES, CASES
from tiny_runs import (
    ARCH,
    BATCH,
    StopAt,
    assert_same_science,
    flat,
    science,
    tiny_config,
    tiny_recipe,
    write_tiny,
)
from torch.nn import functional
from train_processes import await_line

from fastresnet.engine.checkpoint import load_last
from fastresnet.engine.fit import Interrupted
from fastresnet.errors import UserError
from fastresnet.folder import find_run
from fastresnet.kernels.norm_act import BatchNormAct2d, activate
from fastresnet.losses import Filter
from fastresnet.torchrun import Launch, read_launch
from fastresnet.training import MachineDiffers, resume, train

FAR = 300.0  # seconds after which a process that should have ended or spoken is taken to hang
# Gradients are added up in another order. Three epochs of the cases make at most a tenth of this of it.
RTOL, ATOL = 2e-4, 2e-6
WORKER = Path(__file__).with_name("ranks_worker.py")
TRAIN = ("-m", "fastresnet", "train")
TINY = ("--arch", ARCH, "--batch-size", str(BATCH), "--threads", "1", "--device", "cpu", "--compile", "off")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    folder: Path, world_size: int, *arguments: str | Path, cwds: Mapping[int, Path] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start python with ``arguments`` as every rank, as torchrun does, in ``folder`` or a folder of their own."""
    folder.mkdir(exist_ok=True)
    shared = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"},
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **{"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)},
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=(cwds or {}).get(rank, folder),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def ended(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    """Return every rank's exit code, output and errors."""
    said = [rank.communicate(timeout=FAR) for rank in ranks]
    return [rank.returncode for rank in ranks], [out for out, _ in said], [errors for _, errors in said]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    need("torchrun")
    return write_tiny(tmp_path / "tiny.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[int, list[str]]]:
    """The data, the folder of runs by number of ranks and case, and what each rank said on stderr."""
    need("torchrun")
    folder = tmp_path_factory.mktemp("ranks")
    data = write_tiny(folder / "tiny.npz")
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(folder / "cache"))
        for world_size, expected in ((2, [0, 0]), (4, [2, 2, 2])):
            with started(folder, world_size, WORKER, data, folder) as ranks:
                codes, _, said[world_size] = ended(ranks[: len(expected)])
            assert codes == expected, said[world_size]
        for name, (overrides, options) in CASES.items():
            if name not in BY_SHARES:
                train(
                    tiny_recipe(overrides), tiny_config(data, **options), runs_dir=folder / "1", run_name=name
                )
    return data, folder, said


def assert_near(ranks: Path, alone: Path) -> None:
    """Assert that two runs came to the same weights, averages, losses and accuracies but for rounding."""
    found, wanted = flat(science(ranks)), flat(science(alone))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[path], value, rtol=RTOL, atol=ATOL, msg=lambda m: f"{path}: {m}")  # noqa: B023
        elif isinstance(value, float):
            assert found[path] == pytest.approx(value, rel=RTOL, abs=ATOL), path
        else:
            assert found[path] == value, path


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", [name for name in CASES if name not in BY_SHARES])
def test_ranks_learn_what_one_process_does(
    trained: tuple[Path, Path, dict[int, list[str]]], name: str, world_size: int
) -> None:
    _, folder, _ = trained
    assert_near(folder / str(world_size) / name, folder / "1" / name)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_with_norms_of_their_own_learn_what_one_process_does_that_normalises_by_shares(
    trained: tuple[Path, Path, dict[int, list[str]]],
    world_size: int,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> None:
    data, folder, _ = trained

    def by_shares(
        norm: BatchNormAct2d,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        residual_norm: BatchNormAct2d | None = None,
    ) -> torch.Tensor:
        if residual_norm is not None:
            assert residual is not None
            residual = residual_norm(residual)
        statistics = [norm.running_mean, norm.running_var]
        before = [t.clone() for t in statistics]
        after = [torch.zeros_like(t) for t in statistics]
        parts = []
        for part in x.tensor_split(world_size):
            if len(part) or not norm.training:
                own = [t.clone() for t in before]
                parts.append(
                    functional.batch_norm(
                        part, *own, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps
                    )
                )
                for total, t in zip(after, own, strict=True):
                    total += t * (len(part) / len(x))
        if norm.training:
            norm.num_batches_tracked += 1
            for t, total in zip(statistics, after, strict=True):
                t.copy_(total)
        y = torch.cat(parts)
        return activate(y if residual is None else y + residual, norm.activation)

    monkeypatch.setattr(BatchNormAct2d, "forward", by_shares)
    overrides, options = CASES["own norms"]
    shares = f"{world_size} shares"
    train(tiny_recipe(overrides), tiny_config(data, **options), runs_dir=folder / "1", run_name=shares)
    assert_near(folder / str(world_size) / "own norms", folder / "1" / shares)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", [name for name in BY_SHARES if "low loss" in name])
def test_ranks_that_keep_what_they_have_of_highest_loss_learn_what_one_process_does_that_keeps_by_shares(
    trained: tuple[Path, Path, dict[int, list[str]]],
    name: str,
    world_size: int,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> None:
    data, folder, _ = trained
    choose = Filter.__call__

    def by_shares(
        self: Filter, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(len(labels)).tensor_split(world_size)
        kept = [share[choose(self, logits[share], labels[share])[0]] for share in places if len(share)]
        return torch.cat(kept), choose(self, logits, labels)[1]

    monkeypatch.setattr(Filter, "__call__", by_shares)
    overrides, options = CASES[name]
    shares = f"{name} by {world_size}"
    train(tiny_recipe(overrides), tiny_config(data, **options), runs_dir=folder / "1", run_name=shares)
    assert_near(folder / str(world_size) / name, folder / "1" / shares)


def test_a_run_that_was_stopped_on_one_rank_learns_the_same_bits(
    trained: tuple[Path, Path, dict[int, list[str]]],
) -> None:
    _, folder, _ = trained
    assert_same_science(folder / "2" / "stopped", folder / "2" / "fast")


def test_a_loss_that_is_not_finite_ends_every_rank_at_the_same_step(
    trained: tuple[Path, Path, dict[int, list[str]]],
) -> None:
    _, folder, _ = trained
    told = [(folder / "2" / f"broken-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and re.match(r"the (loss is|weights are) not finite", told[0])


def test_a_frozen_rank_ends_the_others_with_one_line(
    trained: tuple[Path, Path, dict[int, list[str]]],
) -> None:
    _, _, said = trained
    assert "".join(said[4]) == "fastresnet: error: rank 3 of 4 is lost: killed, or cut off\n"


def test_a_batch_that_does_not_divide_is_one_line_of_rank_0(data: Path, tmp_path: Path) -> None:
    arguments = (*TRAIN, *TINY, "--data", data, "--batch-size", "15")
    with started(tmp_path / "here", 2, *arguments) as ranks:
        codes, said, errors = ended(ranks)
    line = "fastresnet: error: batch size 15 does not divide over 2 processes; choose a multiple of 2\n"
    assert (codes, said, errors) == ([2, 2], ["", ""], [line, ""])


def test_what_is_wrong_on_another_rank_is_one_line_of_rank_0(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    arguments = (*TRAIN, *TINY, "--data", data.name)
    with started(tmp_path, 2, *arguments, cwds={1: tmp_path / "elsewhere"}) as ranks:
        codes, _, errors = ended(ranks)
    assert codes == [2, 2] and errors[1] == ""
    assert re.fullmatch(r"fastresnet: error: .*tiny.npz.*\n", errors[0])
    assert not (tmp_path / "runs").exists()


def test_a_lost_rank_ends_the_other_and_the_last_checkpoint_resumes(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    arguments = (*TRAIN, *TINY, "--data", data, "--epochs", "100000", "--save-every", "0.1")
    with started(folder, 2, *arguments) as ranks:
        await_line(ranks[0], "epoch      3/")
        ranks[1].kill()
        _, errors = ranks[0].communicate(timeout=FAR)
    run = find_run("last", folder / "runs")
    on = run.name.rsplit("-", 1)[-1]
    assert (ranks[0].returncode, errors) == (
        2,
        "fastresnet: error: rank 1 of 2 is lost: killed, or cut off; the last checkpoint is kept: go on with train "
        f"--resume {on}\n",
    )
    assert load_last(run)[0]["state"]["step"] > 0
    with pytest.raises(MachineDiffers, match="the number of ranks was 2 and is 1; "):
        resume(str(run))
    with pytest.raises(Interrupted):
        resume(str(run), allow_different_machine=True, listener=StopAt(1))


def test_a_signal_to_any_rank_stops_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    with started(folder, 2, *TRAIN, *TINY, "--data", data, "--epochs", "100000") as ranks:
        await_line(ranks[0], "epoch      1/")
        ranks[1].send_signal(signal.SIGTERM)
        codes, said, errors = ended(ranks)
    assert (codes, said[1], errors) == ([143, 143], "", ["", ""])
    stopped, command = said[0].splitlines()[-2:]
    found = re.fullmatch(r"stopped by SIGTERM; saved after step (\d) of epoch (\d+); to go on:", stopped)
    assert found, stopped
    run = find_run("last", folder / "runs")
    state = load_last(run)[0]["state"]
    assert (state["epoch_step"], state["epoch"] + 1) == (int(found[1]), int(found[2]))
    on = run.name.rsplit("-", 1)[-1]
    assert command == f"  torchrun --nproc-per-node 2 -m fastresnet train --resume {on}"


def test_ranks_end_before_the_interpreter_is_torn_down_under_their_threads(
    data: Path, tmp_path: Path
) -> None:
    program = """
import atexit, os, pathlib
atexit.register(pathlib.Path("torn down " + os.environ["RANK"]).touch)
from fastresnet.cli.main import main
main()
"""
    folder = tmp_path / "here"
    with started(folder, 2, "-c", program, "train", *TINY, "--data", data, "--epochs", "1") as ranks:
        codes, said, errors = ended(ranks)
    assert (codes, errors) == ([0, 0], ["", ""])
    assert "test accuracy" in said[0] and said[1] == ""
    assert not list(folder.glob("torn down *"))


def test_torchrun_starts_a_lost_rank_again_and_the_run_goes_on_by_itself(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    options = (*TINY, "--data", str(data), "--epochs", "60", "--save-every", "0.05")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    job = subprocess.Popen(
        [sys.executable, *torchrun, *TRAIN, *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_line(job, "epoch  3/60")
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said, errors = job.communicate(timeout=FAR)
    finally:
        with contextlib.suppress(psutil.Error):
            for rank in psutil.Process(job.pid).children(recursive=True):  # which hold its pipes
                rank.kill()
        job.kill()
        job.communicate()
    run = find_run("last", folder / "runs")
    assert job.returncode == 0 and list(run.parent.iterdir()) == [run], errors
    assert f"note: torchrun has started the ranks again; going on with run {run.name}\n" in said
    lost = "fastresnet: error: rank 1 of 2 is lost: killed, or cut off; torchrun starts all ranks again"
    assert [line for line in errors.splitlines() if line.startswith("fastresnet")] == [lost]
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 61))
    assert rows[-1]["clock"]["segment"] == 1


def test_half_of_what_torchrun_sets_is_one_line(tmp_path: Path) -> None:
    half = {"RANK": "0", "WORLD_SIZE": "2"}
    environment = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"} | half
    for arguments, code, words in ((["--version"], 0, ""), (["train"], 2, "MASTER_ADDR")):
        command = [sys.executable, "-m", "fastresnet", *arguments]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == code and words in found.stderr, found.stderr
        assert found.stderr.count("\n") == bool(words)


def test_torchrun_is_for_training_alone(tmp_path: Path) -> None:
    need("torchrun")
    with started(tmp_path, 2, "-m", "fastresnet", "recipes") as ranks:
        codes, _, errors = ended(ranks)
    line = "fastresnet: error: `fastresnet recipes` is for one process; start it without torchrun\n"
    assert (codes, errors) == ([2, 2], [line, ""])


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


def test_how_torchrun_starts_a_process() -> None:
    assert read_launch({}) == Launch() and read_launch({"RANK": "0", "WORLD_SIZE": "1"}).is_alone
    elastic = {
        **{"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "1"},
    }
    assert read_launch(TORCHRUN | elastic) == Launch(
        rank=3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        address="here",
        port=29500,
        has_agent=True,
        restarts_left=2,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "4"}, "RANK is 4 and WORLD_SIZE 4"),
        ({"MASTER_ADDR": ""}, "no MASTER_ADDR"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
)
def test_half_an_environment_is_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_launch(TORCHRUN | changes)
