"""The kernels compile to the machine code they are designed for, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from optional_parts import need

need("triton")

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(
    ("dtype", "activation", "added", "tuning"),
    [
        ("bf16", "relu", "none", 0),
        ("fp32", "relu", "plain", 0),  # saves and reads bits; twice the loads
        ("bf16", "gelu", "none", 0),  # with the next, what the recipe `fast` trains with
        ("bf16", "gelu", "plain", 0),
        ("bf16", "gelu", "norm", 1),  # holds the most in registers; pipelined through shared memory
    ],
)
def test_sixteen_bytes_a_load_and_hardly_anything_spilled(
    dtype: str, activation: str, added: str, tuning: int, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, dtype, activation, added, str(tuning)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len(kernels) >= 3
    for kernel in kernels:
        crowded = activation == "gelu" and tuning == 0 and kernel["kernel"] == "backward_one_pass"
        assert kernel["stack"] <= (48 if crowded else 0), kernel  # bytes a thread, at its largest slab
        # the only narrow ones: bits, and a channel's results at the end of a program
        assert set(kernel["loads"]) <= {"128", "8"}, kernel
        assert set(kernel["stores"]) <= {"128", "32", "8"}, kernel
        if kernel["kernel"] in ("apply", "input_gradient"):
            assert "32" not in kernel["stores"] and kernel["stores"]["128"] >= 2, kernel
        bits = added == "plain" and activation in ("relu", "leaky_relu")
        writes_bits = bits and kernel["kernel"] in ("apply", "forward_one_pass")
        assert ("8" in kernel["stores"]) == writes_bits, kernel
