"""Compile kernels for an H200 (compute capability 9.0) without one, and print what the machine code does.

Run by ``test_kernels_compile.py`` in a process of its own, where Triton is not interpreted. Prints a JSON list of
{"kernel", "registers", "stack", "loads", "stores"}: bytes of stack are registers that were spilled; loads and stores
count the instructions by the bits each moves.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastresnet.kernels import bn_act, bn_act_backward
from fastresnet.kernels.fusion import Fusion
from fastresnet.kernels.geometry import TUNINGS, plan_one_pass, plan_two_pass

TARGET = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ACTIVATIONS = {"x", "y", "dy", "g", "dx", "residual", "dresidual"}  # tensors of the activations' dtype
NORM_OF_RESIDUAL = {f"residual_{part}" for part in ("weight", "bias", "mean", "var")}


def compile_kernel(kernel: Any, dtype: str, num_warps: int, constants: dict[str, Any], fusion: Fusion) -> Any:
    """Compile for tensors that start at a multiple of 16 bytes and sizes that are multiples of 16."""
    absent = set() if fusion.added == "norm" else set(NORM_OF_RESIDUAL)
    if fusion.added == "none" or (fusion.saves_bits and "backward" in kernel.fn.__module__):
        absent.add("residual")
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        tensor = name.removesuffix("_ptr")
        if name in constants:
            signature[name] = "constexpr"
        elif tensor in absent:
            signature[name], constants = "constexpr", {**constants, name: None}
        elif tensor != name:
            signature[name] = "*" + (dtype if tensor in ACTIVATIONS else "u8" if tensor == "bits" else "fp32")
        else:
            signature[name] = "fp32" if name.endswith("eps") or name == "per_row" else "i32"
        if signature[name] not in ("constexpr", "fp32") and name not in ("fold", "num_partials"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGET, options={"num_warps": num_warps})


def inspect(name: str, compiled: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            return subprocess.run(
                [CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage"))
        assert usage
        moves = re.findall(r"\b(LDG|STG)\.E(?:\.[A-Z]+)*?(?:\.(U8|64|128))?\b", dump("-sass"))
    counts = {
        kind: Counter({"U8": 8, "": 32}.get(width) or int(width) for op, width in moves if op == kind)
        for kind in ("LDG", "STG")
    }
    registers, stack = map(int, usage.groups())
    return {
        "kernel": name,
        "registers": registers,
        "stack": stack,
        "loads": counts["LDG"],
        "stores": counts["STG"],
    }


def main() -> None:
    dtype, activation, added, tuning_index = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    fusion = Fusion(activation, added)  # type: ignore[arg-type]
    tuning = TUNINGS[tuning_index]
    two = plan_two_pass(512 * 32 * 32, 64, 132, tuning)
    one = plan_one_pass(1024, 64)
    assert one is not None
    flags = {"ACT": activation, "ADDED": added}
    bits = {"BITS": fusion.saves_bits}
    two_blocks = {
        "BLOCK_ROWS": two.block_rows,
        "BLOCK_COLUMNS": two.block_columns,
        "STAGES": two.num_stages,
    }
    one_blocks = {"BLOCK_ROWS": one.block_rows, "BLOCK_COLUMNS": one.block_columns}
    jobs = [
        (bn_act.apply, tuning.num_warps, flags | bits | two_blocks),
        (bn_act_backward.partial_sums, tuning.num_warps, flags | bits | two_blocks),
        (bn_act_backward.input_gradient, tuning.num_warps, flags | two_blocks),
    ]
    if added == "none":
        combine = {"BLOCK_PARTIALS": 256, "BLOCK_CHANNELS": 8}
        jobs += [
            (bn_act.partial_statistics, tuning.num_warps, two_blocks),
            (bn_act.combine_statistics, 4, combine),
            (bn_act_backward.combine_sums, 4, combine),
        ]
    if added != "norm" and tuning_index == 0:
        jobs += [
            (bn_act.forward_one_pass, one.num_warps, flags | bits | one_blocks),
            (bn_act_backward.backward_one_pass, one.num_warps, flags | bits | one_blocks),
        ]
    print(
        json.dumps(
            [
                inspect(kernel.fn.__name__, compile_kernel(kernel, dtype, warps, constants, fusion))
                for kernel, warps, constants in jobs
            ]
        )
    )


if __name__ == "__main__":
    main()
