"""Small data sets of every kind, made of real files; a cache folder of each test's own; commands run in place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import kernel_interpreter  # noqa: F401 - first, for what it sets
import pytest
import torch
from hypothesis import settings
from made_data import OFFICIAL_CLASSES, write_images, write_npz, write_official, write_tar
from tiny_runs import ARCH, BATCH, STEPS, StopAt, only_run, write_tiny
from typed_commands import Command

from fastresnet.cli.main import main
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.step import TrainStep
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.sources import download
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig
from fastresnet.signals import SIGNALS
from fastresnet.training import train

# A machine that is busy makes no property untrue.
settings.register_profile("fastresnet", deadline=None)
settings.load_profile("fastresnet")


# Files whose tests take longest: begun last, one of them would keep a single worker busy at the end.
BEGUN_FIRST = {
    "test_distributed.py",
    "test_compiled.py",
    "test_sweep_killed.py",
    "test_kill.py",
    "test_bench_parallel.py",
    "test_bench_time_to.py",
    "test_bench_loaders.py",
    "test_ways.py",
    "test_sync_norm.py",
    "test_torture.py",
    "test_determinism.py",
    "test_postgres_sweep.py",
    "test_wheel.py",
    "test_sources.py",
    "test_augment.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in BEGUN_FIRST)  # stable


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Call bytes by their parameter's name: a compressor may write the time, and all workers must collect the same."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache folder; it is ``$FASTRESNET_CACHE``, for subprocesses too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTRESNET_CACHE", str(folder))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 32x32 JPEGs: classes ant, bee, cat; 8 train and 4 test images each."""
    return write_images(tmp_path / "photos")


@pytest.fixture
def image_tar(image_folder: Path, tmp_path: Path) -> Path:
    """``photos.tar.xz`` of :func:`image_folder`'s files."""
    return write_tar(image_folder, tmp_path / "photos.tar.xz")


@pytest.fixture
def official_folder(tmp_path: Path) -> Path:
    """A folder of pickles like CIFAR-10's, 20 images each."""
    return write_official(tmp_path / "cifar-10-batches-py")


@pytest.fixture
def npz_file(tmp_path: Path) -> Path:
    """An .npz of 30 train and 12 test images in three named classes."""
    return write_npz(tmp_path / "arrays.npz")


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``$FASTRESNET_IMAGES`` (a folder or tar of images), else a tar of 500 made JPEGs in ten classes.

    In CI the variable names CIFAR-10-J75 where that is at hand; the made images are stripes.
    """
    chosen = os.environ.get("FASTRESNET_IMAGES")
    if chosen:
        return Path(chosen)
    root = tmp_path_factory.mktemp("generated")
    write_images(root / "generated", OFFICIAL_CLASSES, {"train": 40, "test": 10})
    return write_tar(root / "generated", root / "generated.tar")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that lasts the session, all of pytest's workers' own: where ``real_dataset`` is packed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def real_dataset(real_images: Path, shared_cache: Path) -> Dataset:
    """``real_images``, packed once a session; a second worker waits for the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(shared_cache))
        return open_dataset(str(real_images))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``tiny.npz``: three classes of 8x8 images, learned in a second."""
    return write_tiny(tmp_path / "tiny.npz")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes that the test starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where run folders are to be made; it is not there yet."""
    return tmp_path / "runs"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in, where nothing can be downloaded."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody answers
    return folder


@pytest.fixture
def signals_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the test does about signals ends with it."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def fastresnet(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], signals_of_its_own: None
) -> Command:
    """Run a command line in this process: ``fastresnet("train", ...)`` gives exit code, stdout, stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(here / ".venv" / "bin" / "fastresnet"), *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capfd.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return command


@pytest.fixture
def stopped(data: Path, here: Path) -> Path:
    """A run that was stopped in its second epoch, in ``runs``."""
    recipe = load_recipe("fast").with_overrides({"arch": ARCH, "epochs": 3, "batch_size": BATCH})
    config = RunConfig.parse(data=str(data), device="cpu", threads=1, save_every_s=1e-9)
    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir="runs", listener=StopAt(STEPS + 1))
    return only_run(here / "runs")


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile's own tracing and autograd, but PyTorch's operations in place of generated C++."""
    torch._dynamo.reset()
    monkeypatch.setattr(TrainStep, "backend", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """What the test starts is ended by SIGHUP, although these tests may run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
