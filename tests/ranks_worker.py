"""One rank of ``test_distributed.py``: ``ranks_worker.py DATA FOLDER``, with torchrun's variables set.

Trains every case into ``FOLDER/WORLD_SIZE/CASE``; then two ranks interrupt a run, resume it and break another, and
of four the last one freezes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tiny_runs import BATCH, STEPS, StopAt, tiny_config, tiny_recipe

from fastresnet.cli.launched import leave
from fastresnet.engine import pulse
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.session import joined
from fastresnet.errors import ToldElsewhere, UserError
from fastresnet.training import resume, train

# One epoch of 97 images has an incomplete batch of one: only rank 0 has it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast": ({}, {}),
    "incomplete": (
        {"drop_last": False, "clip_grad_norm": 0.5, "schedule.name": "plateau", "schedule.metric": "loss"},
        {"limit_train": 97},
    ),
    # An eps that outweighs rounding: by the usual one, a gradient of nothing but rounding makes a step of the whole lr.
    "lookahead": (
        {"optimizer": {"name": "adamw", "lr": 0.01, "eps": 1e-3, "decay": "filters", "lookahead": {"k": 4}}}
        | {"mix": {"name": "mixup", "block": BATCH // 4}, "ema": None},
        {"loader": "resident", "val": 20},
    ),
    "muon": (
        {"optimizer.name": "muon", "tta": "flip"}
        | {"optimizer.weight_decay": 5e-4, "optimizer.decay": "filters"}
        | {"augment.ops": [{"name": "rotation", "degrees": 20}, {"name": "cutout", "size": 2}]}
        | {"init.whiten": {"num": 50}, "ema.every": 2, "ema.lookahead": True},
        {},
    ),
    "resized": (
        {"drop_last": False, "resize": [{"size": 4, "until": 0.3}, {"size": 6, "until": 0.7}]},
        {"limit_train": 97},
    ),
    # The last batch has 7 images, of which two ranks keep 2 each; or one, and other ranks none. One epoch: in time
    # rounding decides which of two images with nearly the same loss is kept.
    "low loss": (
        {"loss.keep": 0.4, "drop_last": False, "optimizer.lr": 0.01, "epochs": 1},
        {"limit_train": 87},
    ),
    "low loss of one": (
        {"loss.keep": 0.4, "drop_last": False, "optimizer.lr": 0.01, "epochs": 1},
        {"limit_train": 97},
    ),
    "own norms": ({"drop_last": False}, {"sync_bn": False, "limit_train": 97}),
}

# In float32 on any machine: what ranks and one process learn is the same but for rounding.
FLOAT32 = {"amp": "off"}
CASES = {name: (overrides, FLOAT32 | options) for name, (overrides, options) in CASES.items()}

# What each rank does with its share of a batch, one process does not do with the whole.
BY_SHARES = ("low loss", "low loss of one", "own norms")


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with joined() as session:
        ranks = session.ranks
        own = folder / str(ranks.world_size)
        for name, (overrides, options) in CASES.items():
            recipe, config = tiny_recipe(overrides), tiny_config(data, **options)
            train(recipe, config, runs_dir=own, run_name=name)
        if ranks.world_size == 2:
            try:
                listener = StopAt(STEPS + 3)  # on rank 0; the signal reaches no other rank
                config = tiny_config(data, **FLOAT32)
                train(tiny_recipe(), config, runs_dir=own, run_name="stopped", listener=listener)
            except Interrupted as interrupted:
                assert interrupted.signum == signal.SIGTERM
                # another session ends here for good; this one goes on
                session.ends_together = False
            resume("stopped", runs_dir=own)
            try:
                train(tiny_recipe({"optimizer.lr": 1e30}), tiny_config(data), runs_dir=own, run_name="broken")
            except UserError as error:
                Path(own / f"broken-{ranks.rank}").write_text(str(error))
        else:
            pulse.FROZEN_S, pulse.GRACE_S = 2.0, 0.5
            if ranks.rank == ranks.world_size - 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            ranks.barrier()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        if not isinstance(error, ToldElsewhere):
            print(f"fastresnet: error: {error}", file=sys.stderr)
        leave(2)
