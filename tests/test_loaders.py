"""Every backend gives the order contract's bits, and leaves nothing behind."""

import functools
import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_parts import need

from fastresnet.errors import UserError
from fastresnet.loaders import registry
from fastresnet.loaders.epoch import loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.plan import plan_epoch
from fastresnet.loaders.protocol import Loader, LoaderSpec, Split
from fastresnet.loaders.registry import (
    OpenBackend,
    backend_names,
    default_backend,
    open_loader,
    register,
)
from fastresnet.loaders.resident_backend import ResidentLoader, gather_tensor
from fastresnet.loaders.testing import (
    CONTRACT,
    as_arrays,
    check_backend,
    check_protocol,
    example_split,
    reference_epoch,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def open_resident_as_on_gpu(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """The resident backend with the kernel it has on a GPU, here on the CPU."""
    return ResidentLoader(split, spec, device, gather_tensor)


BACKENDS: dict[str, OpenBackend] = {
    **{name: functools.partial(open_loader, name) for name in ("torch", "numba", "resident")},
    "resident-as-on-gpu": open_resident_as_on_gpu,
}
OPTIONAL = ("ffcv", "dali")


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*BACKENDS, *OPTIONAL])
def test_contract(name: str, check: Callable[..., None]) -> None:
    if name in OPTIONAL:
        need(name)
    check(BACKENDS[name] if name in BACKENDS else functools.partial(open_loader, name))


@settings(max_examples=60)
@given(data=st.data())
def test_any_spec_gives_the_references_bits(data: st.DataObject) -> None:
    side = data.draw(st.integers(1, 40), "side")
    padding_mode = data.draw(st.sampled_from(("zero", "reflect")), "padding_mode")
    spec = LoaderSpec(
        batch_size=data.draw(st.integers(1, 20), "batch_size"),
        seed=data.draw(st.integers(0, 2**62), "seed"),
        shuffle=data.draw(st.booleans(), "shuffle"),
        drop_last=data.draw(st.booleans(), "drop_last"),
        padding=data.draw(st.integers(0, side - 1 if padding_mode == "reflect" else 50), "padding"),
        padding_mode=padding_mode,
        flip=data.draw(st.sampled_from(("none", "random", "alternating")), "flip"),
    )
    num_images, epoch = data.draw(st.integers(1, 30), "num_images"), data.draw(st.integers(0, 1000), "epoch")
    with example_split(num_images, side, every=data.draw(st.integers(1, 3), "every")) as split:
        expected = reference_epoch(split, spec, epoch)
        for name, open_backend in BACKENDS.items():
            loader = open_backend(split, spec, torch.device("cpu"), workers=0)
            loader.set_epoch(epoch)
            got = [as_arrays(batch) for batch in loader]
            loader.close()
            assert len(got) == len(expected), name
            for a, b in zip(got, expected, strict=True):
                assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), name


def test_the_kernel_never_writes_outside_its_batch() -> None:
    with example_split(20, 7) as split:
        plan = plan_epoch(split, LoaderSpec(batch_size=20, padding=6, flip="random"), 0)
        fenced = np.full((22, 7, 7, 3), 77, np.uint8)
        gather(
            split.images, plan.indices, plan.crop_y, plan.crop_x, plan.flips, fenced[1:21],
            padding=6, padding_mode="reflect",
        )  # fmt: skip
    assert np.all(fenced[[0, 21]] == 77)


def test_the_triton_kernel_gives_the_same_bits() -> None:
    need("triton")
    run_python(
        """
        from fastresnet.loaders.gather_triton import gather_triton
        from fastresnet.loaders.resident_backend import ResidentLoader
        from fastresnet.loaders.testing import check_bits
        check_bits(lambda split, spec, device, *, workers: ResidentLoader(split, spec, device, gather_triton))
        """,
        TRITON_INTERPRET="1",
    )


def test_the_triton_kernel_compiles_for_a_gpu() -> None:
    need("triton")
    run_python(
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from fastresnet.loaders.gather_triton import BLOCK, _gather
        kinds = {"out": "*u8", "images": "*u8", "table": "*i64", "reflect": "constexpr", "BLOCK": "constexpr"}
        signature = {name: kinds.get(name, "i32") for name in _gather.arg_names}
        for reflect in (False, True):
            source = ASTSource(fn=_gather, signature=signature, constexprs={"reflect": reflect, "BLOCK": BLOCK})
            assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
        """,
        TRITON_INTERPRET="0",
    )


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_spawned_workers_map_the_pack_again(tmp_path: object) -> None:
    """A spawned worker inherits nothing: the dataset must travel, and as the map's place, not its bytes."""
    script = f"{tmp_path}/spawned.py"
    with open(script, "w") as file:
        file.write(
            textwrap.dedent(
                """
                import functools, pickle
                import torch
                from fastresnet.loaders.registry import open_loader
                from fastresnet.loaders.testing import check_start_step, example_split
                from fastresnet.loaders.torch_backend import PackDataset
                from fastresnet.loaders.protocol import LoaderSpec

                if __name__ == "__main__":
                    torch.multiprocessing.set_start_method("spawn")
                    check_start_step(functools.partial(open_loader, "torch"))
                    with example_split(1000, 32) as split:
                        print(len(pickle.dumps(PackDataset(split.images, LoaderSpec(batch_size=8)))))
                """
            )
        )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10_000


def test_without_a_cache_folder_the_kernel_still_compiles() -> None:
    run_python(
        """
        from numba.core import caching
        impl = caching.CacheImpl if hasattr(caching, "CacheImpl") else caching._CacheImpl
        impl._locator_classes = []
        import functools
        from fastresnet.loaders.registry import open_loader
        from fastresnet.loaders.testing import check_protocol
        check_protocol(functools.partial(open_loader, "numba"))
        """
    )


def test_two_iterations_of_one_loader_do_not_mix() -> None:
    spec = LoaderSpec(batch_size=4, padding=2)
    with example_split() as split:
        loader = open_loader("numba", split, spec, "cpu", workers=2)
        first = iter(loader)
        next(first)
        second = [as_arrays(batch) for batch in loader]
        for got, expected in zip(second, reference_epoch(split, spec, 0), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        with pytest.raises(UserError, match="begun anew"):
            list(first)
        loader.close()


def test_a_users_own_backend_is_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    @register("unhurried")
    def open_unhurried(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
        return ResidentLoader(split, spec, device, None)

    assert "unhurried" in backend_names()
    check_protocol(functools.partial(open_loader, "unhurried"))


def test_the_suite_catches_a_backend_that_flips_the_wrong_sample() -> None:
    class Wrong(ResidentLoader):
        def begin(self):  # type: ignore[no-untyped-def]
            epoch = super().begin()
            if len(epoch.plan.flips):
                epoch.plan.flips[-1] ^= True
            return epoch

    with pytest.raises(AssertionError, match="images differ"):
        check_backend(lambda split, spec, device, *, workers: Wrong(split, spec, device, None))


@pytest.mark.parametrize(
    ("backend", "spec", "message"),
    [
        ("nunba", LoaderSpec(batch_size=4), "did you mean 'numba'"),
        ("numba", LoaderSpec(batch_size=4, padding=12), "reflect padding of 12"),
    ],
)
def test_mistakes_are_named(backend: str, spec: LoaderSpec, message: str) -> None:
    with example_split() as split, pytest.raises(UserError, match=message):
        open_loader(backend, split, spec, "cpu")


def test_an_empty_split_is_refused() -> None:
    with example_split() as split:
        empty = Split(images=split.images, labels=split.labels, members=split.members[:0])
        with pytest.raises(UserError, match="no samples"):
            open_loader("numba", empty, LoaderSpec(batch_size=4), "cpu")


def test_the_default_on_a_cpu() -> None:
    with example_split() as split:
        assert default_backend([split], "cpu") == "numba"


@pytest.mark.parametrize(("name", "module"), [("ffcv", "ffcv"), ("dali", "nvidia.dali")])
def test_a_missing_backend_says_what_to_do(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it then fails
    backend = importlib.import_module(f"fastresnet.loaders.{name}_backend")
    monkeypatch.setattr(backend, "_library", getattr(backend._library, "__wrapped__", backend._library))
    with example_split() as split, pytest.raises(UserError, match="fastresnet doctor"):
        open_loader(name, split, LoaderSpec(batch_size=4), "cpu")


def test_ffcv_leaves_torchs_threads_alone() -> None:
    need("ffcv")
    run_python(
        """
        import torch
        from fastresnet.loaders.protocol import LoaderSpec
        from fastresnet.loaders.registry import open_loader
        from fastresnet.loaders.testing import example_split
        torch.set_num_threads(2)
        with example_split() as split:
            loader = open_loader("ffcv", split, LoaderSpec(batch_size=8), "cpu", workers=1)
            assert torch.get_num_threads() == 2
            for _ in loader:
                assert torch.get_num_threads() == 2
            loader.close()
        """
    )


def test_a_loader_without_memory_says_what_to_do() -> None:
    """It was told as a failure with no message."""
    told = str(loader_failed("numba", MemoryError()))
    assert told.startswith(
        "the machine's memory is too small for the numba loader; give a smaller batch size"
    )
    assert str(loader_failed("ffcv", ValueError("a\nb"))) == "the ffcv loader failed: ValueError: b"
