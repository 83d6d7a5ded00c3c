"""Training, from a recipe and a config to a result: the one place that joins data, loaders and engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, find_run, new_run_name
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import Clocks, RunConfig, RunResult, environment, machine_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from fastresnet.engine.listener import Listener
    from fastresnet.loaders.dataset import Dataset
    from fastresnet.loaders.protocol import Loader, Split

EVAL_BATCH = 256  # fixed, so that an evaluation's last bits do not hang on the recipe's batch size


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Weights that a run starts from: another run's.

    Attributes:
        run: the other run's name.
        weights: ``last`` or ``best``.
        sha256: of the checkpoint that held them.
    """

    run: str
    weights: str
    sha256: str


def train(
    recipe: Recipe | str = "fast",
    config: RunConfig | None = None,
    *,
    runs_dir: Path | str = "runs",
    init_from: str | None = None,
    listener: Listener | None = None,
    **overrides: Any,
) -> RunResult:
    """Train a recipe in a new run folder and return what came of it.

    Args:
        recipe: a recipe, or the name or path of one.
        config: the machine and data; None takes CIFAR-10 and chooses the rest.
        runs_dir: where the run folder is made.
        init_from: start from another run's weights: a path, name, id or ``last``, with ``:best`` for its best.
        listener: told how it goes on.
        overrides: top-level recipe keys, as in ``arch="resnet8", epochs=4``.

    Raises:
        UserError: a recipe, value or data set that is not allowed, a full disk, a loss that is not finite.
        Interrupted: a signal asked the run to stop; it has saved.
    """
    from fastresnet.engine.listener import Listener

    config = config or RunConfig()
    start = load_recipe(recipe) if isinstance(recipe, str) else recipe
    start = start.with_overrides(overrides)
    run = _Run(start, config, listener or Listener())
    return run.start(Path(runs_dir), init_from)


def resume(
    reference: str,
    *,
    runs_dir: Path | str = "runs",
    data: str | None = None,
    save_every_s: float | None = None,
    allow_different_machine: bool = False,
    listener: Listener | None = None,
) -> RunResult:
    """Go on with a run from its last checkpoint, to the same bits as if it had not stopped.

    Args:
        reference: the run's path, name, id, or ``last``.
        runs_dir: where to look for it.
        data: where its data set lies now; its contents must be the same.
        save_every_s: seconds between checkpoints from now on.
        allow_different_machine: accept other versions or hardware, and so other bits.
        listener: told how it goes on.

    Raises:
        UserError: no such run, a damaged one, one in use, other data or another machine.
    """
    from fastresnet.engine.listener import Listener

    listener = listener or Listener()
    folder = RunFolder(find_run(reference, Path(runs_dir)))
    finished = folder.read_result()
    if finished is not None:
        finished.pop("events")
        return RunResult(**finished)
    folder.lock()
    try:
        content = folder.read_config()
        changes = {"data": data, "save_every_s": save_every_s}
        values = content["config"] | {key: value for key, value in changes.items() if value is not None}
        run = _Run(Recipe.from_json_dict(content["recipe"]), RunConfig.parse(**values), listener)
        return run.go_on(folder, content, allow_different_machine)
    finally:
        folder.close()


class _Run:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, config: RunConfig, listener: Listener) -> None:
        self.recipe = recipe
        self.config = config
        self.listener = listener
        self.spec = recipe.arch_spec()
        self.clocks = Clocks()
        self.cleanup = ExitStack()

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        setattr(self.clocks, name, getattr(self.clocks, name) + time.perf_counter() - start)

    def start(self, runs_dir: Path, init_from: str | None) -> RunResult:
        """Train from the beginning."""
        with self.cleanup, _memory_errors(self.recipe):
            self._choose_machine()
            self._open_data()
            self._build()
            origin = self._take_weights(init_from, runs_dir) if init_from else None
            path = runs_dir / new_run_name(self.recipe.arch, self.recipe.name)
            self._warm_up(path)
            self.state.clocks = self.clocks
            content = {
                "recipe": self.recipe.to_json_dict(),
                "config": self.config.model_dump(mode="json"),
                "environment": self.environment,
                "dataset": self.dataset_info,
                "parent": asdict(origin) if origin else None,
            }
            self.folder = RunFolder.create(path, content, self._write_first_state)
            self.cleanup.callback(self.folder.close)
            return self._fit(content["parent"])

    def go_on(self, folder: RunFolder, content: dict[str, Any], allow_different_machine: bool) -> RunResult:
        """Train from the last checkpoint of ``folder``, which is locked."""
        from fastresnet.engine.checkpoint import load_last

        with self.cleanup, _memory_errors(self.recipe):
            self._choose_machine()
            difference = machine_difference(content["environment"], self.environment)
            if difference and not allow_different_machine:
                raise UserError(
                    f"this run was started on another machine: {difference}; it would not give the same bits. "
                    "Give --allow-different-machine to go on all the same"
                )
            self._open_data()
            recorded = content["dataset"]
            if recorded["digest"] != self.dataset.digest:
                raise UserError(
                    f"the data set is not the one this run was trained on ({recorded['name']}, sha256 "
                    f"{recorded['digest'][:12]}..., now {self.dataset.digest[:12]}...); give --data with the same images"
                )
            self._build()
            checkpoint, passed_over = load_last(folder.path)
            for line in passed_over:
                self.listener.on_notice(f"{line}; going on from the checkpoint before it")
            self.rows = folder.restore_events(checkpoint["events"])
            spent, self.clocks = self.clocks, Clocks()
            self.state.load_state_dict(checkpoint["state"])
            self.state.segment += 1
            self._warm_up(folder.path)
            for name in ("data_s", "build_s"):
                setattr(self.state.clocks, name, getattr(self.state.clocks, name) + getattr(spent, name))
            self.state.clocks.compile_s += self.clocks.compile_s
            self.folder = folder
            return self._fit(content["parent"])

    def _choose_machine(self) -> None:
        from fastresnet.engine import machine

        config = self.config
        self.device = machine.resolve_device(config.device)
        self.config = config.model_copy(
            update={
                "device": str(self.device),
                "amp": machine.resolve_amp(config.amp, self.device),
                "kernels": machine.resolve_kernels(config.kernels),
                "threads": machine.resolve_threads(config.threads),
            }
        )
        machine.prepare(self.config, self.device)
        self.device_name = machine.device_name(self.device)
        self.amp_dtype = machine.AMP_DTYPES[self.config.amp]
        self.environment = environment(self.device_name, self.config.threads)

    def _open_data(self) -> None:
        from fastresnet.loaders.dataset import hold_out, limit, open_dataset

        config, recipe = self.config, self.recipe
        with self._clock("data_s"):
            self.dataset: Dataset = open_dataset(
                config.data, image_size=config.image_size, progress=self.listener.on_data
            )
        for notice in self.dataset.notices:
            self.listener.on_notice(notice)
        train = self.dataset.train
        if config.limit_train is not None:
            train = limit(train, config.limit_train, config.seed)
        num_val = config.val if config.val is not None else recipe.val.num if recipe.val else 0
        self.splits: dict[str, Split] = {"train": train, "test": self.dataset.test}
        if num_val:
            val_seed = recipe.val.seed if recipe.val else config.seed
            self.splits["train"], self.splits["val"] = hold_out(train, num_val, val_seed)
        if recipe.drop_last and len(self.splits["train"].members) < recipe.batch_size:
            raise UserError(
                f"batch size {recipe.batch_size} exceeds the {len(self.splits['train'].members)} training images, "
                "and the recipe drops incomplete batches; give a smaller --batch-size"
            )
        self.dataset_info = {
            "name": self.dataset.name,
            "digest": self.dataset.digest,
            "class_names": list(self.dataset.class_names),
            "image_size": self.dataset.image_size,
            "is_builtin": self.dataset.is_builtin,
            **{f"num_{name}": len(split.members) for name, split in self.splits.items()},
        }

    def _open_loaders(self) -> None:
        from fastresnet.loaders.protocol import LoaderSpec
        from fastresnet.loaders.registry import default_backend, open_loader

        recipe, config = self.recipe, self.config
        if config.loader == "auto":
            chosen = default_backend(self.splits["train"], self.device)
            self.config = config = config.model_copy(update={"loader": chosen})
        crop = recipe.augment.crop
        spec = LoaderSpec(
            batch_size=recipe.batch_size,
            seed=config.seed,
            drop_last=recipe.drop_last,
            padding=crop.padding if crop else 0,
            padding_mode=crop.mode if crop else "zero",
            flip=recipe.augment.flip,
        )
        in_order = LoaderSpec(batch_size=EVAL_BATCH, shuffle=False)

        def opened(name: str, spec: LoaderSpec) -> Loader:
            loader = open_loader(
                config.loader, self.splits[name], spec, self.device, workers=config.workers
            )
            self.cleanup.callback(loader.close)
            return loader

        self.train_loader = opened("train", spec)
        self.eval_loaders = {name: opened(name, in_order) for name in ("val", "test") if name in self.splits}

    def _build(self) -> None:
        import torch

        from fastresnet.augment import Augment
        from fastresnet.draws import Purpose, scalar_seed
        from fastresnet.engine.state import EmaModel, TrainState
        from fastresnet.engine.step import TrainStep
        from fastresnet.losses import build_loss
        from fastresnet.mix import Mix
        from fastresnet.optim import build_optimizer
        from fastresnet.resnet import build_model
        from fastresnet.schedule import build_schedule

        recipe, config, dataset = self.recipe, self.config, self.dataset
        with self._clock("build_s"):
            self._open_loaders()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(scalar_seed(config.seed, Purpose.INIT, 0))
                model = build_model(
                    self.spec,
                    dataset.num_classes,
                    dataset.image_size,
                    zero_gamma=recipe.init.zero_gamma,
                    kernels=config.kernels,
                )
            model = model.to(self.device, memory_format=torch.channels_last)
            scaled = self.amp_dtype == torch.float16
            self.state = TrainState(
                model=model,
                optimizer=build_optimizer(model, recipe.optimizer),
                schedule=build_schedule(recipe.schedule, recipe.epochs, len(self.train_loader)),
                ema=EmaModel(model, recipe.ema) if recipe.ema else None,
                scaler=torch.amp.GradScaler(self.device.type) if scaled else None,
                sums=torch.zeros(3, dtype=torch.float64, device=self.device),
                first_bad_step=torch.tensor(-1, device=self.device),
            )
            normalise = recipe.normalise
            self.step = TrainStep(
                self.state,
                augment=Augment(
                    recipe.augment,
                    normalise.mean if normalise else dataset.mean,
                    normalise.std if normalise else dataset.std,
                    dataset.image_size,
                ).to(self.device),
                mix=Mix(
                    recipe.mix,
                    seed=config.seed,
                    batch_size=recipe.batch_size,
                    drop_last=recipe.drop_last,
                )
                if recipe.mix
                else None,
                loss=build_loss(recipe.loss),
                clip_grad_norm=recipe.clip_grad_norm,
                amp_dtype=self.amp_dtype,
                seed=config.seed,
                has_dropout=any(asdict(self.spec.dropout).values()),
            )
        self.rows: list[dict[str, Any]] = []

    def _take_weights(self, reference: str, runs_dir: Path) -> Origin:
        """Load another run's weights into the model and its average."""
        from fastresnet.inference import load_weights

        origin = load_weights(reference, runs_dir)
        self.state.model.load_state_dict(origin.for_model(self.state.model))
        if self.state.ema is not None:
            self.state.ema.model.load_state_dict(self.state.model.state_dict())
        return Origin(run=origin.run, weights=origin.which, sha256=origin.sha256)

    def _warm_up(self, path: Path) -> None:
        import torch

        from fastresnet.engine.listener import RunInfo
        from fastresnet.engine.warmup import compiler_missing, random_batches, warm_up

        recipe, state = self.recipe, self.state
        members = self.splits["train"].members
        steps_left = recipe.epochs * len(self.train_loader) - state.step
        rest = len(members) % recipe.batch_size
        sizes = [recipe.batch_size] if len(members) >= recipe.batch_size else []
        sizes += [rest] if rest and not recipe.drop_last else []
        self.listener.on_phase("warming up on random labels")
        with self._clock("compile_s"):
            self.step.augment.begin_epoch(self.config.seed, state.epoch, members, self.device)
            batches = random_batches(
                sizes, self.dataset.image_size, self.dataset.num_classes, torch.from_numpy(members), self.device
            )
            found = warm_up(
                self.step,
                batches,
                compile=self.config.compile,
                num_steps=steps_left,
                compiler_missing=compiler_missing(self.device),
            )
        self.config = self.config.model_copy(update={"compile": found.compile})
        self.listener.on_start(
            RunInfo(
                path=str(path),
                recipe=recipe,
                spec=self.spec,
                config=self.config,
                dataset=self.dataset_info,
                device_name=self.device_name,
                num_params=self._counts()[0],
                multiply_adds=self._counts()[1],
                compile_reason=found.reason,
                steps_per_epoch=len(self.train_loader),
                steps_left=steps_left,
                epoch_s=found.step_s * len(self.train_loader),
                resumed_at=(state.epoch, state.epoch_step) if state.segment else None,
            )
        )

    def _counts(self) -> tuple[int, int]:
        sizes = self.dataset.num_classes, self.dataset.image_size
        return self.spec.num_params(*sizes), self.spec.num_multiply_adds(*sizes)

    def _write_first_state(self, folder: RunFolder) -> None:
        from fastresnet.engine.checkpoint import save_last

        save_last(folder.path, {"state": self.state.state_dict(), "events": folder.events_mark()})

    def _fit(self, parent: dict[str, Any] | None) -> RunResult:
        from fastresnet.engine.fit import Fit

        recipe, config = self.recipe, self.config
        fit = Fit(
            step=self.step,
            folder=self.folder,
            train=self.train_loader,
            members=self.splits["train"].members,
            evals=self.eval_loaders,
            epochs=recipe.epochs,
            eval_every=config.eval_every,
            tta=recipe.tta == "flip",
            save_every_s=config.save_every_s,
            target=config.target,
            listener=self.listener,
        )
        test = fit.run()["test"]
        num_params, multiply_adds = self._counts()
        result = RunResult(
            run=self.folder.name,
            path=str(self.folder.path),
            recipe=recipe.to_json_dict(),
            config=config,
            environment=self.environment,
            dataset=self.dataset_info,
            num_params=num_params,
            multiply_adds=multiply_adds,
            epochs=self.rows + fit.rows,
            clocks=self.state.clocks,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            test_accuracy_tta=test.accuracy_tta,
            best=self.state.best,
            parent=parent,
        )
        self.folder.write_result(result.model_dump(mode="json"))
        return result


@contextmanager
def _memory_errors(recipe: Recipe) -> Iterator[None]:
    """Turn a device or host out of memory into one line."""
    import torch

    advice = f"give a smaller --batch-size than {recipe.batch_size}, or a narrower --arch than {recipe.arch}"
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory is too small for this training; {advice}") from error
    except MemoryError as error:
        raise UserError(f"the machine's memory is too small for this training; {advice}") from error


