"""The locks: what they hold fits pyproject.toml and constraints.txt, every file by its hash, and no host is named."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAIN = ROOT / "requirements.lock"
TOOL = ROOT / ".ci" / "audit.lock"  # pip-audit lives in an environment of its own
LOCKS = (MAIN, *(ROOT / ".ci" / f"{name}.lock" for name in ("extras", "ffcv", "cuda")))
PAIR = {"torch", "torchvision"}


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {str(canonicalize_name(name)): version for name, version in found}


CHOSEN = pins(ROOT / "constraints.txt")
LOCKED = {path: pins(path) for path in LOCKS}


def test_every_lock_has_the_versions_of_the_constraints() -> None:
    for path, found in LOCKED.items():
        differing = {name for name, version in found.items() if CHOSEN.get(name, version) != version}
        assert not differing, f"{path}: make lock"
    locked = {name for found in LOCKED.values() for name in found}
    assert CHOSEN.keys() - locked - PAIR == set(), "make lock, or take them out of constraints.txt"
    assert not locked & PAIR, "these come from another index, where there is no NVIDIA driver"


def test_every_package_has_hashes_and_no_host_is_named() -> None:
    for path in (*LOCKS, TOOL):
        text = path.read_text()
        assert "//" not in text and "index" not in text
        blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
        assert blocks
        for block in blocks:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}$", block, re.MULTILINE), block


def test_what_is_required_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        MAIN: [*project["dependencies"], *extras["dev"]],
        ROOT / ".ci" / "ffcv.lock": extras["ffcv"],
        ROOT / ".ci" / "extras.lock": [
            text for extra in ("sweep", "export", "dali", "energy") for text in extras[extra]
        ],
    }
    for path, texts in wanted.items():
        for text in texts:
            requirement = Requirement(text)
            name = str(canonicalize_name(requirement.name))
            if name not in PAIR:
                version = (LOCKED[MAIN] | LOCKED[path])[name]
                assert requirement.specifier.contains(version), f"{path}: {text}, locked is {version}"


def test_what_torch_requires_is_locked() -> None:
    for name in PAIR:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in {*LOCKED[MAIN], *LOCKED[LOCKS[3]], *PAIR}, text


def test_the_list_of_licences_names_what_is_locked() -> None:
    listed = re.findall(r"^\| ([\w.-]+) \| ", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE)
    locked = {name for found in LOCKED.values() for name in found}
    assert set(listed) - {"package"} == locked | PAIR, "make licences"
