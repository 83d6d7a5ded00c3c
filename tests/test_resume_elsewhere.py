"""What a resumed run takes from where it is now, what it refuses, and a new run from its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    BATCH,
    STEPS,
    Heard,
    Killed,
    StopAt,
    assert_same_bits,
    only_run,
    stop,
    tiny_config,
    tiny_recipe,
    train_tiny,
    write_tiny,
)

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.engine.checkpoint import BEST, LAST, load_last, read_checkpoint
from fastresnet.engine.fit import Interrupted
from fastresnet.environment import environment, machine_difference
from fastresnet.errors import UserError
from fastresnet.inference import load_weights, split_reference
from fastresnet.kernels import dispatch
from fastresnet.resnet import build_model
from fastresnet.training import MachineDiffers, resume, train


def test_data_that_moved_is_taken_from_its_new_place_for_good(data: Path, runs: Path, tmp_path: Path) -> None:
    run = stop(data, runs, StopAt(2))
    moved = data.rename(tmp_path / "moved.npz")
    with pytest.raises(UserError, match=r"no such data: .*tiny.npz.*say where to with --data"):
        resume(run.name, runs_dir=runs)
    other = write_tiny(tmp_path / "other.npz", first=5)
    with pytest.raises(UserError, match="the data has changed since this run began: it was tiny"):
        resume(run.name, runs_dir=runs, data=str(other))
    assert read_sealed_json(run / "config.json")["config"]["data"] == str(data)
    with pytest.raises(Interrupted):
        resume(run.name, runs_dir=runs, data=str(moved), save_every_s=5, listener=StopAt(2))
    result = resume(run.name, runs_dir=runs)
    assert result.config.data == str(moved) and result.config.save_every_s == 5


def test_a_changed_recipe_file_is_named_and_not_taken(data: Path, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = fastresnet_recipe_text()
    file.write_text(text)
    with pytest.raises(Interrupted):
        train(str(file), tiny_config(data), runs_dir=runs, listener=StopAt(2), epochs=2, batch_size=BATCH)
    run = only_run(runs)
    recorded = read_sealed_json(run / "config.json")["recipe_file"]
    assert recorded["path"] == str(file) and len(recorded["sha256"]) == 64

    def notices() -> list[str]:
        listener = StopAt(1)
        with pytest.raises(Interrupted):
            resume(run.name, runs_dir=runs, listener=listener)
        return listener.notices

    assert notices() == []
    file.write_text(text.replace("lr = 0.05", "lr = 0.5"))
    with_recorded = "; going on with the recipe as the run began with it"
    assert notices() == [f"{file} has changed since the run began{with_recorded}"]
    file.unlink()
    assert notices() == [f"cannot read {file}: No such file or directory{with_recorded}"]
    assert resume(run.name, runs_dir=runs).recipe["optimizer"]["lr"] == 0.05


def fastresnet_recipe_text() -> str:
    return (
        'name = "mine"\narch = "n2-b1-c4"\nepochs = 1\nbatch_size = 16\n[optimizer]\nname = "sgd"\nlr = 0.05\n'
        + ('[schedule]\nname = "constant"\n')
    )


def test_another_machine_is_one_line_and_needs_leave(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stop(data, runs, StopAt(STEPS + 1))
    content = read_sealed_json(run / "config.json")
    content["environment"]["torch"] = "1.0"
    write_sealed_json(run / "config.json", content)
    with pytest.raises(MachineDiffers, match=r"torch was '1.0' and is .*--allow-different-machine"):
        resume(run.name, runs_dir=runs)
    # A GPU that is not here: the choices that were made for it are made again.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    content["config"] |= {"device": "cuda:0", "amp": "fp16", "loader": "resident"}
    content["environment"]["device_name"] = "NVIDIA H200"
    write_sealed_json(run / "config.json", content)
    with pytest.raises(MachineDiffers, match=r"started on NVIDIA H200 \(cuda:0\), which is not here"):
        resume(run.name, runs_dir=runs)
    result = resume(run.name, runs_dir=runs, allow_different_machine=True)
    assert result.config.device == "cpu" and result.config.amp in ("bf16", "off")
    assert result.config.loader == "numba" and len(result.epochs) == 3


def test_a_processor_of_the_same_name_with_other_instructions_is_another_machine() -> None:
    here = environment("cpu", 1)
    assert here["instructions"] and here["llvmlite"]
    assert machine_difference(here, here) is None
    found = machine_difference(here | {"instructions": "avx avx2 avx512_bf16"}, here)
    assert found is not None and found.startswith("instructions was 'avx avx2 avx512_bf16' and is '")
    assert "llvmlite was '0.1'" in str(machine_difference(here | {"llvmlite": "0.1"}, here))
    earlier = {key: value for key, value in here.items() if key not in ("instructions", "llvmlite")}
    assert machine_difference(earlier, here) is None, "which earlier versions did not record"


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"kernels": "triton-1"}, "kernels triton-1, which cannot be had here (Triton compiles for GPUs"),
        ({"compile": "on", "kernels": "inductor"}, "compile on, which cannot be had here (no C++ compiler"),
        ({"graphs": "on"}, "graphs on, which cannot be had here (CUDA graphs are for one process on a GPU)"),
    ],
)
def test_a_way_that_cannot_be_had_here_is_found_again(
    kept: dict[str, str], said: str, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told to give --kernels auto, which a run that goes on does not take."""
    run = stop(data, runs, StopAt(STEPS + 1), {"epochs": 2})
    content = read_sealed_json(run / "config.json")
    content["config"] |= kept
    write_sealed_json(run / "config.json", content)
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MachineDiffers, match=rf"{re.escape(said)}.*Give --allow-different-machine to go on"):
        resume(run.name, runs_dir=runs)
    listener = Heard()
    result = resume(run.name, runs_dir=runs, allow_different_machine=True, listener=listener)
    (notice,) = listener.notices
    assert said in notice and notice.endswith("; its steps are done in another way")
    assert (result.config.compile, result.config.kernels, result.config.graphs) == ("off", "eager", "off")
    assert listener.info is not None and "as the run began" not in listener.info.reasons.values()
    assert len(result.epochs) == 2


def test_a_checkpoint_of_another_run_or_network_is_refused(data: Path, tmp_path: Path) -> None:
    run = stop(data, tmp_path / "a", StopAt(2))
    other = stop(data, tmp_path / "b", StopAt(2), {"arch": "n2-b1-c6"})
    (run / LAST).write_bytes((other / LAST).read_bytes())
    with pytest.raises(UserError, match=f"is of another run, {other.name}; put this run's own back"):
        resume(str(run))
    with pytest.raises(UserError, match=r"are of another network \(n2-b1-c6\): .* choose the same arch"):
        train(tiny_recipe(), tiny_config(data), runs_dir=tmp_path / "c", init_from=str(other))
    assert not (tmp_path / "c").exists()


def first_step_state(
    data: Path, runs: Path, overrides: dict[str, Any] | None = None, init_from: str | None = None
) -> dict[str, Any]:
    """Return the state a run begins with."""
    with pytest.raises(Killed):
        train(
            tiny_recipe(overrides),
            tiny_config(data),
            runs_dir=runs,
            init_from=init_from,
            listener=StopAt(1, None),
        )
    (run,) = [path for path in runs.iterdir() if not (path / "result.json").exists()]
    return load_last(run)[0]["state"] | {"parent": read_sealed_json(run / "config.json")["parent"]}


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_run_starts_from_the_weights_that_were_evaluated(which: str, data: Path, runs: Path) -> None:
    run = train_tiny(data, runs, {"optimizer.lr": 0.5})
    checkpoint = load_last(run)[0] if which == "last" else read_checkpoint(run / BEST)
    weights = checkpoint["state"]["ema"]["model"] if which == "last" else checkpoint["model"]
    reference = f"{run.name}:{which}" if which == "best" else run.name
    overrides = {"optimizer.lookahead": {"k": 2}}
    state = first_step_state(data, runs, overrides, reference)
    assert_same_bits(state["model"], weights)
    assert_same_bits(state["ema"]["model"], weights)
    # Lookahead goes back to its slow weights, which must not be the drawn ones.
    fresh = build_model(tiny_recipe().arch_spec(), 3, 8)
    for (name, _), slow in zip(fresh.named_parameters(), slow_by_order(state), strict=True):
        assert torch.equal(slow, weights[name]), name
    assert state["parent"] == {"run": run.name, "weights": which, "sha256": checkpoint["sha256"]}
    assert state["step"] == 0 and state["best"] == {}


def slow_by_order(state: dict[str, Any]) -> list[torch.Tensor]:
    """Return Lookahead's slow weights in the order of the model's parameters."""
    model = build_model(tiny_recipe().arch_spec(), 3, 8)
    recipe = tiny_recipe({"optimizer.lookahead": {"k": 2}})
    from fastresnet.optim import build_optimizer

    optimizer = build_optimizer(model, recipe.optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    places = {id(p): place for place, p in enumerate(held)}
    return [state["optimizer"]["slow"][places[id(p)]] for p in model.parameters()]


def test_a_path_may_have_colons(data: Path, tmp_path: Path) -> None:
    """A run in such a folder could not be evaluated or exported."""
    runs = tmp_path / "a:b"
    run = train_tiny(data, runs, {"epochs": 1})
    for reference, wanted in ((str(run), "last"), (f"{run}:last", "last"), (f"{run}:best", "best")):
        assert split_reference(reference) == (str(run), wanted)
        assert load_weights(reference, runs).which == wanted
    colon = run.rename(runs / "c:d")
    assert split_reference(str(colon)) == (str(colon), "last")
    with pytest.raises(UserError, match="after the colon stands 'bets'; it must be last or best"):
        split_reference(f"{colon}:bets")


def test_weights_that_are_not_there_are_said_before_anything_slow(data: Path, runs: Path) -> None:
    run = stop(data, runs, StopAt(1))
    for reference, expected in (
        (f"{run.name}:best", "has no best checkpoint yet"),
        (f"{run.name}:bets", "after the colon stands 'bets'; it must be last or best"),
        ("nothing", "no run 'nothing'"),
    ):
        with pytest.raises(UserError, match=expected):
            train(tiny_recipe(), tiny_config(Path("/no/data")), runs_dir=runs, init_from=reference)
