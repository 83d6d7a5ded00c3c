"""Which part may import which, read from the source; what starting the command line loads, by running it."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

import fastresnet

PACKAGE = Path(fastresnet.__file__).parent
OPTIONAL = {"ffcv", "nvidia", "triton", "optuna", "psycopg", "onnx", "onnxscript", "onnxruntime", "pynvml"}
SLOW_TO_IMPORT = {"torch", "torchvision", "numba", "matplotlib", *OPTIONAL}


class Room(NamedTuple):
    """Modules and folders that belong together, as patterns, and the other rooms they may import."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]


ENGINE_MAY = ("draws", "arch", "recipe", "run", "resnet", "parts", "kernels", "protocol")
TRAIN_MAY = (*ENGINE_MAY, "engine", "loaders", "inference")
EVERYTHING_BUT_CLI = (*TRAIN_MAY, "train", "sweep", "report")

# A module is of the first room that claims it. Every room may import "base" and fastresnet/__init__.py.
ROOMS = {
    "base": Room(("errors", "atomic", "installing", "signals", "thread_start", "torchrun", "words"), ()),
    "draws": Room(("draws",), ()),
    "arch": Room(("arch", "slug", "layers", "catalogue", "widest"), ()),
    "recipe": Room(("recipe*", "toml_*"), ("arch",)),
    "run": Room(("run", "recorded", "folder", "environment"), ("recipe",)),
    "kernels": Room(("kernels",), ()),
    "resnet": Room(("resnet",), ("arch", "kernels")),
    "parts": Room(("augment*", "mix", "optim", "muon", "schedule", "losses"), ("draws", "recipe")),
    "protocol": Room(("loaders.protocol",), ()),
    "loaders": Room(("loaders", "torchvision_import"), ("draws", "protocol")),
    "engine": Room(("engine",), ENGINE_MAY),
    # loaders: an image to predict goes through the decoder that packs data sets
    "inference": Room(("inference", "export"), (*ENGINE_MAY, "engine", "loaders")),
    "train": Room(("training*", "assembly", "whiten", "evaluation", "determinism"), TRAIN_MAY),
    "sweep": Room(("sweep*",), ("arch", "recipe", "run", "engine", "loaders", "train")),
    # train: a confusion matrix is an evaluation, an augmentation grid what the training loader yields
    "report": Room(("report",), (*TRAIN_MAY, "train", "sweep")),
    "bench": Room(("bench",), EVERYTHING_BUT_CLI),
    "cli": Room(("cli", "__main__"), (*EVERYTHING_BUT_CLI, "bench")),
}

# These start fast: what they import when they are loaded reaches nothing slow, however far it is followed.
LIGHT_ROOMS = ("base", "draws", "arch", "recipe", "run", "cli")


class Import(NamedTuple):
    """One imported module, by its full dotted name."""

    name: str
    when_loaded: bool  # rather than inside a function or for type checkers alone
    line: int


def read_imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Yield every import of ``source``; ``from a import b`` gives ``a.b``, whatever ``b`` is."""

    def visit(node: ast.AST, when_loaded: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, when_loaded, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                origin = ".".join([*kept, *filter(None, [origin])])
            yield from (Import(f"{origin}.{alias.name}", when_loaded, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, when_loaded)
        else:
            inner = when_loaded and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inner)

    return visit(ast.parse(source), True)


class Module(NamedTuple):
    """One source file of the package."""

    name: str
    path: Path
    imports: tuple[Import, ...]


def read_package() -> dict[str, Module]:
    modules = {}
    for path in find_sources(PACKAGE):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        imports = tuple(read_imports(path.read_text(encoding="utf-8"), name, is_package))
        modules[name] = Module(name, path, imports)
    return modules


def find_sources(folder: Path) -> Iterator[Path]:
    """Yield the .py files below ``folder``, through the links to kernels/, loaders/ and bench/ too."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from find_sources(path)
        elif path.suffix == ".py":
            yield path


MODULES = read_package()


def own_module(imported: str) -> str | None:
    """Return the module of ours that ``imported`` names or lies in, or None for another library's."""
    while imported not in MODULES:
        imported, dot, _ = imported.rpartition(".")
        if not dot:
            return None
    return imported


def room_of(module: str) -> str | None:
    """Return the room of one of our modules; None for the root, which belongs to all."""
    inner = module.split(".")[1:]
    names = [".".join(inner[:length]) for length in range(1, len(inner) + 1)]
    for room, (patterns, _) in ROOMS.items():
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
            return room
    return None


def imported_when_loaded(module: str) -> Iterator[tuple[str, Import]]:
    """Yield (importer, import) for all that loading ``module`` loads, its parent packages included."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        for entry in MODULES[name].imports:
            if entry.when_loaded:
                yield name, entry
                ours = own_module(entry.name)
                if ours:
                    waiting.append(ours)


def test_every_module_has_a_room() -> None:
    homeless = [name for name in MODULES if name != "fastresnet" and room_of(name) is None]
    assert homeless == [], "give each a room in ROOMS, so that its imports are checked"


def test_the_table_has_no_cycle() -> None:
    graphlib.TopologicalSorter({name: room.may_import for name, room in ROOMS.items()}).prepare()


def test_imports_follow_the_table() -> None:
    wrong = []
    for module in MODULES.values():
        room = room_of(module.name)
        for entry in module.imports:
            target = own_module(entry.name)
            target_room = room_of(target) if target else None
            if room is None or target_room in (None, room, "base"):
                continue
            if target_room not in ROOMS[room].may_import:
                wrong.append(f"{module.path}:{entry.line}: {room} may not import {target_room} ({target})")
    assert wrong == []


LIGHT_MODULES = ["fastresnet", *(name for name in MODULES if room_of(name) in LIGHT_ROOMS)]


def slow_imports(module: str, libraries: set[str]) -> list[str]:
    """Return where ``module``, once loaded, has loaded one of ``libraries``."""
    return [
        f"{MODULES[importer].path}:{entry.line}: {entry.name}"
        for importer, entry in imported_when_loaded(module)
        if entry.name.split(".")[0] in libraries
    ]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_nothing_slow(module: str) -> None:
    found = slow_imports(module, SLOW_TO_IMPORT)
    assert found == [], f"loading {module} loads these; import them in the function that needs them"


def test_optional_libraries_are_loaded_only_where_they_are_used() -> None:
    """A file of kernels/, loaders/ or bench/ may need one to load at all; no other part loads that file."""
    found = {
        place
        for module in MODULES
        if room_of(module) not in ("kernels", "loaders", "bench")
        for place in slow_imports(module, OPTIONAL)
    }
    assert found == set()


def test_the_reader_tells_imports_apart() -> None:
    source = """
import torch.nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import numba
try:
    from . import sibling
except ImportError:
    from ..loaders import pack as renamed
class Box:
    import onnx
    def open(self):
        import ffcv
"""
    found = {(entry.name, entry.when_loaded) for entry in read_imports(source, "fastresnet.cli.x", False)}
    assert found == {
        ("torch.nn", True),
        ("typing.TYPE_CHECKING", True),
        ("numba", False),
        ("fastresnet.cli.sibling", True),
        ("fastresnet.loaders.pack", True),
        ("onnx", True),
        ("ffcv", False),
    }
    inside = read_imports("from .a import b", "fastresnet.engine", True)
    assert [entry.name for entry in inside] == ["fastresnet.engine.a.b"]


def test_help_loads_no_slow_library() -> None:
    program = """
import json, sys
sys.argv = ["fastresnet", "--help"]
from fastresnet.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print()
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *shown, loaded = done.stdout.rstrip().splitlines()
    assert any("train" in line for line in shown)
    assert SLOW_TO_IMPORT.intersection(json.loads(loaded)) == set()


def test_a_machine_that_is_prepared_has_loaded_no_compiler_unless_its_bits_are_to_be_the_same() -> None:
    program = """
import sys
import torch
from fastresnet.engine.machine import prepare
from fastresnet.run import RunConfig

def prepared(deterministic):
    prepare(RunConfig(device="cpu", threads=1, deterministic=deterministic), torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled() == deterministic

prepared(False)
assert not {"torch._dynamo", "torch._inductor"} & sys.modules.keys()
for deterministic in (True, False):  # as one run after another in a process
    prepared(deterministic)
    assert torch._inductor.config.deterministic == deterministic
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
