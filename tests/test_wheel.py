"""What is shipped: the wheel and the sdist are built, read, installed and used, away from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "loaders", "bench")

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="the files to ship are those that git knows"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return what ``command`` prints; fail with all of its output when it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def known_to_git() -> list[PurePosixPath]:
    """Return the files of a commit made now: tracked ones, and new ones that are not ignored."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    paths = [PurePosixPath(name) for name in listed.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_symlink() or (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the .tar.gz of a copy of the tree, and the .whl made from it."""
    folder = tmp_path_factory.mktemp("shipped")
    copy = folder / "copy"
    for path in known_to_git():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_symlink():
            target.symlink_to(os.readlink(ROOT / path))
        else:
            target.write_bytes((ROOT / path).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", copy, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(shipped: Path) -> Path:
    (found,) = shipped.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment that sees our libraries; return its bin folder."""
    environment = tmp_path_factory.mktemp("elsewhere") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=environment.parent)
    packages = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=environment).strip()
    )
    # Plain folders on the path: the .pth files in them, an editable fastresnet's among them, are not read.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return environment / "bin"


def package_files() -> set[str]:
    """Return the import package's files as they are to be in an archive; records of measurements stay behind."""
    names = set()
    for path in known_to_git():
        inside = path.parts[0] in (*LINKED, "fastresnet") and path.parts[:2] != ("bench", "records")
        if inside and not (ROOT / path).is_symlink():
            names.add(str(path if path.parts[0] == "fastresnet" else "fastresnet" / path))
    return names


def test_the_wheel_holds_one_import_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = {name for name in names if PurePosixPath(name).parts[0].endswith(".dist-info")}
    assert set(names) - metadata == package_files()
    wanted = ("py.typed", "recipes/fast.toml", "sweeps/r1-c.toml", "factors/fast.toml", "kernels/norm_act.py")
    wanted += ("report/base.html.j2", "report/run.html.j2", "report/sweep.html.j2", "report/page.css")
    assert {f"fastresnet/{name}" for name in wanted} <= set(names)
    assert any(name.endswith("LICENSE") for name in metadata)


def test_the_sdist_holds_what_the_links_point_to(shipped: Path) -> None:
    (archive,) = shipped.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])): m for m in tar.getmembers()}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    assert package_files() <= {name for name, member in members.items() if member.isfile()}
    assert {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} <= members.keys()
    assert "tests/test_wheel.py" in members


def test_the_installed_wheel_trains_elsewhere(installed: Path, tmp_path: Path) -> None:
    environment = {"FASTRESNET_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    where = run(installed / "python", "-c", "import fastresnet; print(fastresnet.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "train" in run(installed / "fastresnet", "--help", cwd=tmp_path)
    options = (
        "--data",
        "shapes",
        "--arch",
        "n2-b1-c4",
        "--epochs",
        "1",
        "--limit-train",
        "500",
        "--compile",
        "off",
    )
    shown = run(installed / "fastresnet", "train", *options, cwd=tmp_path, **environment)
    assert "shapes" in shown
    (result,) = tmp_path.glob("runs/*/result.json")
    assert result.stat().st_size > 0
