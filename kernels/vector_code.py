"""Writing machine code for a CPU with LLVM, a vector instruction at a time, and compiling it in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numpy.typing import NDArray

from fastresnet.signals import held

Matrix = NDArray[np.float64]
FLOAT, INT16, INT32, INT64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Products and sums may be fused, and -0 be 0; NaN and infinity stay what they are.
_FLAGS = ("contract", "nsz")


class Function:
    """A function that is being written, and words for what is often written."""

    def __init__(self, module: ir.Module, name: str, num_arguments: int, lanes: int) -> None:
        self.module, self.lanes = module, lanes
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64] * num_arguments), name)
        self.at = ir.IRBuilder(self.function.append_basic_block())
        self.vector = ir.VectorType(FLOAT, lanes)

    def number(self, value: int) -> Any:
        return ir.Constant(INT64, value)

    def add(self, *terms: Any) -> Any:
        total = terms[0]
        for term in terms[1:]:
            total = self.at.add(total, term)
        return total

    def times(self, *factors: Any) -> Any:
        product = factors[0]
        for factor in factors[1:]:
            product = self.at.mul(product, self.number(factor) if isinstance(factor, int) else factor)
        return product

    def least(self, a: Any, b: Any) -> Any:
        return self.at.select(self.at.icmp_signed("<", a, b), a, b)

    def place(self, base: Any, *offsets: Any, size: int = 4) -> Any:
        """Return the address of an element, ``offsets`` counted in elements of ``size`` bytes."""
        return self.add(base, *(self.times(offset, size) for offset in offsets))

    def pointer(self, address: Any, kind: Any) -> Any:
        return self.at.inttoptr(address, kind.as_pointer())

    def local(self, kind: Any) -> Any:
        with self.at.goto_entry_block():
            return self.at.alloca(kind)

    @contextmanager
    def counting(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        """Write the body of a loop."""
        counter = self.local(INT64)
        self.at.store(start, counter)
        head, body, after = (self.at.append_basic_block() for _ in range(3))
        self.at.branch(head)
        self.at.position_at_end(head)
        value = self.at.load(counter)
        self.at.cbranch(self.at.icmp_signed("<", value, stop), body, after)
        self.at.position_at_end(body)
        yield value
        self.at.store(self.at.add(value, self.number(step)), counter)
        self.at.branch(head)
        self.at.position_at_end(after)

    def load(self, address: Any) -> Any:
        return self.at.load(self.pointer(address, self.vector), align=4)

    def store(self, value: Any, address: Any) -> None:
        self.at.store(value, self.pointer(address, self.vector), align=4)

    def load_pixel(self, address: Any, size: int) -> Any:
        """Return a vector of a pixel's channels, which are float32, or bfloat16 where ``size`` is 2."""
        if size == 4:
            return self.load(address)
        bits = self.at.load(self.pointer(address, ir.VectorType(INT16, self.lanes)), align=2)
        wide = self.at.zext(bits, ir.VectorType(INT32, self.lanes))
        return self.at.bitcast(self.at.shl(wide, self.alike_bits(16)), self.vector)

    def store_pixel(
        self, value: Any, address: Any, size: int, *, streamed: bool = False, exact: bool = False
    ) -> None:
        """Write a vector of channels; to bfloat16 by rounding to the nearest, of ties to the even one.

        ``streamed``: past the caches, to the address of a whole vector; other threads see it after a fence. ``exact``:
        they are such numbers already.
        """
        kind = self.vector if size == 4 else ir.VectorType(INT16, self.lanes)
        align = size * self.lanes if streamed else size
        written = (
            value if size == 4 else self.at.trunc(self._high(value) if exact else self._rounded(value), kind)
        )
        store = self.at.store(written, self.pointer(address, kind), align=align)
        if streamed:
            store.set_metadata("nontemporal", self.module.add_metadata([ir.Constant(INT32, 1)]))

    def _rounded(self, value: Any) -> Any:
        """Return the nearest bfloat16s of a vector, in the low bits of int32s."""
        bits = self.at.bitcast(value, ir.VectorType(INT32, self.lanes))
        high = self._high(value)
        up = self.at.add(self.alike_bits(0x7FFF), self.at.and_(high, self.alike_bits(1)))
        rounded = self.at.lshr(self.at.add(bits, up), self.alike_bits(16))
        is_nan = self.at.fcmp_unordered("uno", value, value)
        return self.at.select(is_nan, self.at.or_(high, self.alike_bits(0x40)), rounded)

    def _high(self, value: Any) -> Any:
        """Return a vector's upper halves, in the low bits of int32s."""
        return self.at.lshr(self.at.bitcast(value, ir.VectorType(INT32, self.lanes)), self.alike_bits(16))

    def alike_bits(self, value: int) -> Any:
        """Return a vector of one int32."""
        return ir.Constant(ir.VectorType(INT32, self.lanes), [value] * self.lanes)

    def alike(self, value: float) -> Any:
        """Return a vector of one float32."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def spread(self, scalar: Any) -> Any:
        """Return a vector of one number."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.at.insert_element(nothing, scalar, ir.Constant(INT32, 0))
        return self.at.shuffle_vector(first, nothing, self.alike_bits(0))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        name = f"llvm.fma.v{self.lanes}f32"
        found = self.module.globals.get(name)
        return self.at.call(
            found or ir.Function(self.module, ir.FunctionType(self.vector, [self.vector] * 3), name),
            [a, b, c],
        )

    def combined(self, matrix: Matrix, values: list[Any]) -> list[Any]:
        """Return ``matrix @ values``.

        Points come in pairs, 1 and -1, 2 and -2: where two columns, or two rows, differ in every second sign alone,
        their sums and differences are shared.
        """
        for j in range(1, matrix.shape[1] - 1, 2):
            if _alternates(matrix[:, j], matrix[:, j + 1]):
                pair = (
                    self.at.fadd(*values[j : j + 2], flags=_FLAGS),
                    self.at.fsub(*values[j : j + 2], flags=_FLAGS),
                )
                even = np.arange(len(matrix)) % 2 == 0
                values = [*values[:j], *pair, *values[j + 2 :]]
                matrix = matrix.copy()
                matrix[:, j], matrix[:, j + 1] = matrix[:, j] * even, matrix[:, j] * ~even
        results = [self.sum(row, values) for row in matrix]
        for i in range(1, len(matrix) - 1, 2):
            if _alternates(matrix[i], matrix[i + 1]):
                even = np.arange(matrix.shape[1]) % 2 == 0
                shared = self.sum(matrix[i] * even, values), self.sum(matrix[i] * ~even, values)
                results[i] = self.at.fadd(*shared, flags=_FLAGS)
                results[i + 1] = self.at.fsub(*shared, flags=_FLAGS)
        return results

    def sum(self, factors: Matrix, values: list[Any]) -> Any:
        """Return the sum of ``factors * values``; nothing is written for a 0."""
        total = None
        for factor, value in zip(factors, values, strict=True):
            scale = self.alike(float(factor))
            if factor == 0:
                continue
            if total is None:
                total = value if factor == 1 else self.at.fmul(value, scale, flags=_FLAGS)
            elif factor == 1:
                total = self.at.fadd(total, value, flags=_FLAGS)
            elif factor == -1:
                total = self.at.fsub(total, value, flags=_FLAGS)
            else:
                total = self.at.fadd(total, self.at.fmul(value, scale, flags=_FLAGS), flags=_FLAGS)
        return total

    def transformed(self, matrix: Matrix, tile: list[Any]) -> list[Any]:
        """Return ``matrix @ tile @ matrix.T``, both tiles row by row."""
        size = matrix.shape[1]
        columns = [self.combined(matrix, tile[column::size]) for column in range(size)]
        return [value for row in zip(*columns, strict=True) for value in self.combined(matrix, list(row))]


class TeamFunction(Function):
    """The function ``run`` of a team of threads: see :func:`fastresnet.kernels.team.run_team`.

    Indexed by the names of its call's words, it gives their values.
    """

    def __init__(self, module: ir.Module, lanes: int, names: Sequence[str]) -> None:
        super().__init__(module, "run", 1, lanes)
        words = self.pointer(self.function.args[0], INT64)
        self.words = {
            name: self.at.load(self.at.gep(words, [self.number(place)])) for place, name in enumerate(names)
        }

    def __getitem__(self, name: str) -> Any:
        return self.words[name]

    def taken(self, name: str) -> Any:
        """Return a number that no other thread gets."""
        return self.at.atomic_rmw("add", self.pointer(self[name], INT64), self.number(1), "monotonic")

    @contextmanager
    def taking(self, limit: str) -> Iterator[Any]:
        """Write what is done with each number below a word, by whichever thread takes it; then the function ends."""
        head, work, end = (self.at.append_basic_block() for _ in range(3))
        self.at.branch(head)
        self.at.position_at_end(head)
        number = self.taken("NEXT")
        self.at.cbranch(self.at.icmp_signed("<", number, self[limit]), work, end)
        self.at.position_at_end(work)
        yield number
        self.at.branch(head)
        self.at.position_at_end(end)
        self.at.ret_void()


def _alternates(first: Matrix, second: Matrix) -> bool:
    """Return whether ``second`` is ``first`` with every second sign turned."""
    return bool(np.any(first != second) and np.all(second == first * (1 - 2 * (np.arange(len(first)) % 2))))


@cache
@held()
def host_lanes() -> int:
    """Return the float32s in a vector of this machine's processor: 8 or 16."""
    return 16 if binding.get_host_cpu_features().get("avx512f") else 8


_engines: list[Any] = []  # own the code for as long as the process lives


# A stop amid what llvmlite disposes of would have it disposed of twice, which aborts the process.
@held()
def compiled(write: Callable[[ir.Module], None]) -> int:
    """Return the address of the function ``run`` that ``write`` writes."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = ir.Module()
    module.triple = binding.get_process_triple()
    write(module)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    options = binding.create_pipeline_tuning_options(speed_level=3)
    # The vectors are written as such.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address("run"))
