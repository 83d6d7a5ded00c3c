"""``fastresnet doctor``: what this machine has, and what each missing part would take."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fastresnet.cli.options import Json
from fastresnet.installing import near, pip_install
from fastresnet.words import counted

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
TRITON_OF_TORCH = {
    "2.11": "3.6.0",
    "2.13": "3.7.1",
}  # torch's CUDA builds bring theirs; its CPU build brings none
FFCV = "ffcv==1.0.2"
FFCV_APT = "build-essential python3-dev pkg-config libturbojpeg0-dev libopencv-dev"
FFCV_SCRIPT = (
    Path(__file__).resolve().parents[2] / ".ci" / "install-ffcv"
)  # in a clone: a gigabyte less of apt
DALI = {
    "12": "nvidia-dali-cuda120>=1.50",
    "13": "nvidia-dali-cuda130>=2.0",
}  # by the CUDA version of the driver
SWEEP = ("optuna>=4.5", "psycopg[binary]>=3.2")
EXPORT = ("onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20")

_KIND = {"cuda": "GPU", "cpu": "CPU"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One part of the machine.

    Attributes:
        part: its name.
        found: what is there, in words.
        present: False where something is missing.
        takes: what the missing part would take, a command where one will do; None where nothing is missing.
    """

    part: str
    found: str
    present: bool = True
    takes: str | None = None


def doctor(
    determinism: Annotated[
        bool,
        typer.Option(
            "--determinism", help="Train and compare for a minute: which runs give the same bits here."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine has (device, bf16, compile, optional parts) and what each missing part takes."""
    if determinism:
        from fastresnet.cli.determinism import show_determinism

        show_determinism(as_json)
        return
    findings = examine()
    if as_json:
        typer.echo(json.dumps({finding.part: asdict(finding) for finding in findings}, indent=2))
        return
    for finding in findings:
        typer.echo(f"{'ok' if finding.present else '--'}  {finding.part:<12}{finding.found}")
        if finding.takes:
            typer.echo(f"{'':16}it takes: {finding.takes}")


def examine() -> list[Finding]:
    """Return a finding a part; it loads torch and starts a compiler's ``--version``, nothing slower."""
    return [
        _system(),
        _processor(),
        _torch(),
        _torchvision(),
        _device(),
        _bf16(),
        _compiler(),
        _triton(),
        _kernels(),
        _convs(),
        _ffcv(),
        _dali(),
        _libraries("sweep", SWEEP, "for `fastresnet sweep`"),
        _libraries("onnx", EXPORT, "for `fastresnet export --to onnx`"),
        _chromium(),
        _cache(),
    ]


def _apt(packages: str) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {packages}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _system() -> Finding:
    from fastresnet import __version__

    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding(
        part="system", found=f"fastresnet {__version__}, Python {platform.python_version()}, {system}"
    )


def _processor() -> Finding:
    import psutil
    import torch

    from fastresnet.environment import cpu_model

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = psutil.virtual_memory()
    cores = f"{usable} of {counted(os.cpu_count() or 1, 'core')} usable"
    threads = counted(torch.get_num_threads(), "thread")
    return Finding(
        part="cpu",
        found=f"{cpu_model()}: {cores}, {threads} in torch, {memory.total / 2**30:.0f} GiB of memory, "
        f"{memory.available / 2**30:.0f} GiB of it free",
    )


def _torch() -> Finding:
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding(part="torch", found=f"{torch.__version__}, {build}")


def _torchvision() -> Finding:
    version = _version("torchvision")
    if version is None:
        return Finding(
            part="torchvision", found="not installed", present=False, takes=pip_install("torchvision")
        )
    return Finding(part="torchvision", found=version)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(
            f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor})"
            for gpu in gpus
        )
        return Finding(part="device", found=f"cuda: {names}")
    if not NVIDIA_DRIVER.exists():
        return Finding(
            part="device",
            found="cpu",
            present=False,
            takes="an NVIDIA GPU and its driver; nothing needs one, training is faster with one",
        )
    driver = NVIDIA_DRIVER.read_text().splitlines()[0]
    if torch.version.cuda is None:
        version = torch.__version__.split("+")[0]
        takes = f"torch built for CUDA, as a driver is here: {pip_install('--force-reinstall', f'torch=={version}')}"
    else:
        takes = f"a driver for CUDA {torch.version.cuda}, which this torch is built for; here is {driver}"
    return Finding(part="device", found="cpu", present=False, takes=takes)


def _bf16() -> Finding:
    from fastresnet.engine.machine import has_fast_bf16, resolve_device

    device = resolve_device("auto")
    if has_fast_bf16(device):
        return Finding(part="bf16", found=f"in the hardware of this {_KIND[device.type]}")
    takes = {
        "cuda": "a GPU of compute capability 8.0 or more; fp16 with loss scaling is used here",
        "cpu": "a CPU with AVX512-BF16, AMX or Arm BF16; float32 is used here",
    }
    found = f"not in the hardware of this {_KIND[device.type]}"
    return Finding(part="bf16", found=found, present=False, takes=takes[device.type])


def _compiler() -> Finding:
    """Look for what torch.compile needs: a C++ compiler and Python's headers (Triton has its own finding)."""
    from fastresnet.engine.compiler import cxx_compiler, python_headers

    compiler, headers = cxx_compiler(), python_headers()
    if compiler is None:
        return Finding(part="compile", found="no C++ compiler", present=False, takes=_apt("g++ python3-dev"))
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=10).stdout
    name = shown.splitlines()[0] if shown else compiler
    if not headers.exists():
        return Finding(
            part="compile",
            found=f"{name}, but no {headers}",
            present=False,
            takes=_apt(f"python{sys.version_info.major}.{sys.version_info.minor}-dev"),
        )
    return Finding(part="compile", found=f"{name}, with Python's headers")


def _triton() -> Finding:
    import torch

    version = _version("triton")
    if version:
        use = "" if torch.cuda.is_available() else ", used on a GPU only"
        return Finding(part="triton", found=f"{version}{use}")
    fitting = TRITON_OF_TORCH.get(".".join(torch.__version__.split(".")[:2]))
    return Finding(
        part="triton",
        found="not installed; it compiles for GPUs only",
        present=False,
        takes=pip_install(f"triton=={fitting}" if fitting else "triton"),
    )


def _kernels() -> Finding:
    from fastresnet.engine.machine import resolve_device
    from fastresnet.kernels.dispatch import describe_choices
    from fastresnet.loaders.cache import cache_folder

    return Finding(
        part="kernels", found=f"auto is {describe_choices(resolve_device('auto'), cache_folder())}"
    )


def _convs() -> Finding:
    from fastresnet.engine.machine import resolve_amp, resolve_device
    from fastresnet.kernels.conv import convs_obstacle

    device = resolve_device("auto")
    amp = resolve_amp("auto", device)
    if (obstacle := convs_obstacle("winograd", device.type, amp)) is not None:
        return Finding(part="convs", found=f"direct: {obstacle}")
    obstacle = convs_obstacle("amx", device.type, amp)
    others = "Winograd's and AMX's" if obstacle is None else f"Winograd's; not AMX's: {obstacle}"
    return Finding(part="convs", found=f"auto is measured by each run: PyTorch's against {others}")


def _ffcv() -> Finding:
    version = _version("ffcv")
    if version:
        return Finding(part="ffcv", found=version)
    takes = f"{_apt(FFCV_APT)} && {pip_install(FFCV)}"
    if FFCV_SCRIPT.exists():
        takes = shlex.join(["bash", near(FFCV_SCRIPT), sys.executable])
    return Finding(part="ffcv", found="not installed", present=False, takes=takes)


def _dali() -> Finding:
    import torch

    for distribution in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        version = _version(distribution)
        if version:
            return Finding(part="dali", found=f"{version} ({distribution})")
    cuda = "12" if (torch.version.cuda or "").startswith("12.") else "13"
    return Finding(part="dali", found="not installed", present=False, takes=pip_install(DALI[cuda]))


def _libraries(part: str, requirements: tuple[str, ...], use: str) -> Finding:
    """Look for the Python packages of one of our extras, the first of which gives the version shown."""
    names = {text: re.split(r"[>=\[]", text)[0] for text in requirements}
    missing = [text for text, name in names.items() if _version(name) is None]
    if not missing:
        return Finding(part=part, found=", ".join(f"{name} {_version(name)}" for name in names.values()))
    return Finding(part=part, found=f"not installed; {use}", present=False, takes=pip_install(*missing))


def _chromium() -> Finding:
    """Look for the browser that the tests of report pages drive; a report itself opens in any."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return Finding(part="chromium", found=f"{shutil.which('chromium')}, for the tests of report pages")
    found = f"no {' and no '.join(missing)}; only tests of report pages need it"
    return Finding(part="chromium", found=found, present=False, takes=_apt("chromium chromium-driver"))


def _cache() -> Finding:
    from fastresnet.loaders.cache import cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    found = f"{folder}, {shutil.disk_usage(existing).free / 2**30:.1f} GiB free"
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        return Finding(part="cache", found=found)
    return Finding(
        part="cache",
        found=f"{folder} cannot be written",
        present=False,
        takes="set FASTRESNET_CACHE to a folder that can be written",
    )
