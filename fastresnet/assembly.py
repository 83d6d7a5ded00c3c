"""What a run is made of, put together from its recipe and config: machine, data, loaders, step."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fastresnet.augment import build_augment
from fastresnet.draws import Purpose, scalar_seed
from fastresnet.engine import machine
from fastresnet.engine.distributed import ALONE, Ranks
from fastresnet.engine.evaluate import EVAL_BATCH
from fastresnet.engine.exchange import Exchange
from fastresnet.engine.listener import Listener
from fastresnet.engine.state import EmaModel, TrainState
from fastresnet.engine.step import TrainStep
from fastresnet.engine.way import Way
from fastresnet.environment import environment
from fastresnet.errors import UserError
from fastresnet.inference import Weights
from fastresnet.kernels.conv import check_convs
from fastresnet.kernels.dispatch import check_kernels
from fastresnet.loaders.cache import cache_folder
from fastresnet.loaders.dataset import Dataset, hold_out, limit, open_dataset
from fastresnet.loaders.encoded import open_encoded
from fastresnet.loaders.protocol import Loader, LoaderSpec, Split
from fastresnet.loaders.registry import default_backend, open_loader
from fastresnet.losses import Filter, build_loss
from fastresnet.mix import Mix
from fastresnet.optim import build_optimizer
from fastresnet.recipe import Recipe
from fastresnet.resnet import build_model
from fastresnet.run import RunConfig
from fastresnet.schedule import build_schedule


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run computes on.

    Attributes:
        config: with device, precision and threads resolved.
        device, device_name: where, and what that is called.
        amp_dtype: dtype of activations.
        environment: versions and machine that the run's figures hold for.
        ranks: the processes that train together, this one among them.
    """

    config: RunConfig
    device: torch.device
    device_name: str
    amp_dtype: torch.dtype
    environment: dict[str, Any]
    ranks: Ranks = ALONE


def resolve_machine(config: RunConfig, ranks: Ranks = ALONE) -> tuple[RunConfig, torch.device]:
    """Return the config with device, precision and threads resolved, and the device; the process stays as it is.

    Raises:
        UserError: something was asked for that this machine cannot do, or it has too few GPUs for its ranks.
    """
    device = machine.resolve_device(config.device, ranks)
    check_kernels(config.kernels, device, config.compile)
    amp = machine.resolve_amp(config.amp, device)
    check_convs(config.convs, device.type, amp)
    resolved = config.model_copy(
        update={
            # each rank has the GPU of its number
            "device": str(device) if ranks.is_alone else device.type,
            "amp": amp,
            "threads": machine.resolve_threads(config.threads, ranks),
        }
    )
    return resolved, device


def choose_machine(config: RunConfig, ranks: Ranks = ALONE) -> Machine:
    """Resolve what the config leaves to the machine, and set the process up for it.

    How steps are done (``compile``, ``kernels``, ``convs``, ``graphs``) is measured later, in the warm-up.

    Raises:
        UserError: as :func:`resolve_machine`.
    """
    resolved, device = resolve_machine(config, ranks)
    # torch keeps what it has compiled, for every process: beside our own cache, and not where a reboot clears it.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    machine.prepare(resolved, device)
    name = machine.device_name(device)
    return Machine(
        config=resolved,
        device=device,
        device_name=name,
        amp_dtype=machine.AMP_DTYPES[resolved.amp],
        environment=environment(name, resolved.threads, ranks.world_size),
        ranks=ranks,
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """A run's data set and what it uses of it.

    Attributes:
        dataset: all of it.
        splits: ``train``, ``test`` and, where some of train is held out, ``val``.
    """

    dataset: Dataset
    splits: dict[str, Split]

    @property
    def info(self) -> dict[str, Any]:
        """What a run's config records of the data, in JSON types."""
        dataset = self.dataset
        return {
            "name": dataset.name,
            "digest": dataset.digest,
            "class_names": list(dataset.class_names),
            "image_size": dataset.image_size,
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "is_builtin": dataset.is_builtin,
            **{f"num_{name}": len(split.members) for name, split in self.splits.items()},
        }


def open_data(recipe: Recipe, config: RunConfig, listener: Listener) -> Data:
    """Open a run's data set, packing it the first time, and split it.

    Raises:
        UserError: the data is missing or damaged, or too small for what is asked; sizes that the arch does not take.
    """
    dataset = None
    if config.loader == "dali":  # which decodes image files itself
        dataset = open_encoded(config.data, image_size=config.image_size, progress=listener.on_data)
    if dataset is None:
        dataset = open_dataset(config.data, image_size=config.image_size, progress=listener.on_data)
    for notice in dataset.notices:
        listener.on_notice(notice)
    return split_data(dataset, recipe, config)


def split_data(dataset: Dataset, recipe: Recipe, config: RunConfig) -> Data:
    """Return what a run uses of a data set.

    Raises:
        UserError: the data is too small for what is asked; sizes that the arch does not take.
    """
    splits = splits_of(dataset, recipe, config)
    num_train = len(splits["train"].members)
    if recipe.drop_last and num_train < recipe.batch_size:
        raise UserError(
            f"batch size {recipe.batch_size} exceeds the {num_train} training images, and the recipe drops "
            f"incomplete batches; give a smaller one"
        )
    recipe.image_sizes(dataset.image_size)  # refuses what cannot be before anything slow
    return Data(dataset=dataset, splits=splits)


def splits_of(dataset: Dataset, recipe: Recipe, config: RunConfig) -> dict[str, Split]:
    """Return ``train``, ``test`` and, where some of train is held out, ``val``.

    The config's ``limit_train`` is taken first; its ``val``, where given, replaces the recipe's number.

    Raises:
        UserError: more samples are asked for than there are.
    """
    train = dataset.train
    if config.limit_train is not None:
        train = limit(train, config.limit_train, config.seed)
    num_val = config.val if config.val is not None else recipe.val.num if recipe.val else 0
    if not num_val:
        return {"train": train, "test": dataset.test}
    train, val = hold_out(train, num_val, recipe.val.seed if recipe.val else config.seed)
    return {"train": train, "val": val, "test": dataset.test}


@dataclass(kw_only=True)
class Loaders:
    """A run's loaders.

    Attributes:
        backend: which one, resolved.
        train: shuffled, cropped and flipped as the recipe says.
        evals: the splits to evaluate, in index order; the best epoch is chosen on the first.
    """

    backend: str
    train: Loader
    evals: dict[str, Loader]
    _opened: ExitStack = field(default_factory=ExitStack)

    @property
    def move_s(self) -> float:
        """Seconds it took to move the data to the device, where loaders keep it there."""
        return sum(getattr(loader, "move_s", 0.0) for loader in (self.train, *self.evals.values()))

    def close(self) -> None:
        """Close them all; calling it again does nothing."""
        self._opened.close()


def open_loaders(
    recipe: Recipe, config: RunConfig, data: Data, device: torch.device, ranks: Ranks = ALONE
) -> Loaders:
    """Open a run's loaders, of which each rank has its share; ``auto`` takes the registry's default."""
    backend = config.loader if config.loader != "auto" else default_backend(data.splits.values(), device)
    shuffled = train_loader_spec(recipe, config, ranks)
    in_order = LoaderSpec(
        batch_size=EVAL_BATCH * ranks.world_size, shuffle=False, rank=ranks.rank, world_size=ranks.world_size
    )
    with ExitStack() as stack:

        def opened(name: str, spec: LoaderSpec) -> Loader:
            loader = open_loader(backend, data.splits[name], spec, device, workers=config.workers)
            stack.callback(loader.close)
            return loader

        train = opened("train", shuffled)
        evals = {name: opened(name, in_order) for name in data.splits if name != "train"}
        return Loaders(backend=backend, train=train, evals=evals, _opened=stack.pop_all())


def check_loader(config: RunConfig, dataset: Dataset, device: torch.device) -> None:
    """Raise UserError where the loader that a config names cannot be had: it is opened for one image."""
    if config.loader != "auto":
        one_image = limit(dataset.test, 1, config.seed)
        open_loader(config.loader, one_image, LoaderSpec(batch_size=1, shuffle=False), device).close()


def train_loader_spec(recipe: Recipe, config: RunConfig, ranks: Ranks = ALONE) -> LoaderSpec:
    """Return what the training loader yields: shuffled, cropped and flipped as the recipe says.

    Raises:
        UserError: a batch size that does not divide over the ranks.
    """
    crop = recipe.augment.crop
    return LoaderSpec(
        batch_size=recipe.batch_size,
        seed=config.seed,
        drop_last=recipe.drop_last,
        padding=crop.padding if crop else 0,
        padding_mode=crop.mode if crop else "zero",
        flip=recipe.augment.flip,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def build_step(
    recipe: Recipe,
    chosen: Machine,
    data: Data,
    steps_per_epoch: int,
    *,
    weights: Weights | None = None,
    patterns: torch.Tensor | None = None,
) -> TrainStep:
    """Return the run's step, and in it the state before the first one.

    Args:
        weights: another run's, to start from; None starts from drawn ones.
        patterns: the stem's first filters, in place of drawn ones: of its dtype and shape, perhaps fewer.

    The step is done as the config says, and with ``auto`` as plain as can be: the warm-up finds what is faster.

    Raises:
        UserError: weights of another network; sizes of images that the arch does not take.
    """
    config, device, dataset, ranks = chosen.config, chosen.device, data.dataset, chosen.ranks
    spec = recipe.arch_spec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scalar_seed(config.seed, Purpose.INIT, 0))
        model = build_model(
            spec,
            dataset.num_classes,
            dataset.image_size,
            zero_gamma=recipe.init.zero_gamma,
            dirac=recipe.init.dirac,
            head_scale=recipe.init.head_scale,
            train_stem=recipe.init.whiten is None or not recipe.init.whiten.frozen,
            norm_momentum=recipe.norm.momentum,
            train_scale=recipe.norm.train_scale,
        )
    # What the model starts with comes before averages and slow weights are taken of it.
    if weights is not None:
        model.load_state_dict(weights.for_model(model))
    if patterns is not None:
        with torch.no_grad():
            model.stem.conv.weight[: len(patterns)] = patterns
    # torch's stubs leave memory_format out
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainState(
        model=model,
        optimizer=build_optimizer(
            model,
            recipe.optimizer,
            loss_scale=chosen.amp_dtype == torch.float16,
            bf16_products=chosen.amp_dtype == torch.bfloat16,
        ),
        schedule=build_schedule(recipe.schedule, recipe.epochs, steps_per_epoch),
        ema=EmaModel(model, recipe.ema, recipe.epochs * steps_per_epoch) if recipe.ema else None,
        scaler=torch.amp.GradScaler(device.type) if chosen.amp_dtype == torch.float16 else None,
        sums=torch.zeros(3, dtype=torch.float64, device=device),
        first_bad_step=torch.tensor(-1, device=device),
    )
    mix = None
    if recipe.mix:
        mix = Mix(
            recipe.mix,
            seed=config.seed,
            batch_size=recipe.batch_size,
            drop_last=recipe.drop_last,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
    filter = Filter(recipe.loss) if recipe.loss.keep < 1 else None
    exchange = None
    if not ranks.is_alone:
        exchange = Exchange(
            model,
            ranks,
            batch_size=recipe.batch_size,
            num_samples=len(data.splits["train"].members),
            sync_norms=config.sync_bn,
            filter=filter,
        )
    step = TrainStep(
        state,
        augment=build_augment(recipe, dataset.mean, dataset.std, dataset.image_size).to(device),
        mix=mix,
        loss=build_loss(recipe.loss),
        image_sizes=recipe.image_sizes(dataset.image_size),
        clip_grad_norm=recipe.clip_grad_norm,
        amp_dtype=chosen.amp_dtype,
        seed=config.seed,
        has_dropout=any(asdict(spec.dropout).values()),
        filter=filter,
        exchange=exchange,
    )
    step.take(Way.asked(config))
    return step
