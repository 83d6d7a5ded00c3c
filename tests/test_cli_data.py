"""fastresnet data info, pack, verify and jpeg, as typed."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_data import write_npz
from PIL import Image
from typer.testing import CliRunner, Result

from fastresnet.cli import progress
from fastresnet.cli.data import app
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset


def data(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args: object) -> str:
    result = data(*args)
    assert isinstance(result.exception, UserError) and "\n" not in str(result.exception)
    return str(result.exception)


def test_info_says_what_is_in_it(image_folder: Path) -> None:
    result = data("info", image_folder)
    dataset = open_dataset(str(image_folder))
    assert result.exit_code == 0
    for part in ("photos", "24 train, 12 test, 32x32 RGB", dataset.digest, str(dataset.folder), "bee  8  4"):
        assert part in result.stdout
    content = json.loads(data("info", image_folder, "--json").stdout)
    assert content["classes"]["cat"] == {"train": 8, "test": 4}
    assert content["mean"] == list(dataset.mean) and content["digest"] == dataset.digest


def test_pack_tells_where_and_what_it_did_to_the_images(image_folder: Path) -> None:
    result = data("pack", image_folder, "--image-size", 16)
    assert result.exit_code == 0
    assert "photos: 36 images in" in result.stdout
    assert re.search(r"^notice: images of other sizes .*16x16", result.stdout, re.MULTILINE)


def test_verify_finds_the_damaged_pack(image_folder: Path, npz_file: Path) -> None:
    assert "no packs in" in data("verify").stdout
    assert "is not packed yet" in refused("verify", npz_file)
    photos, arrays = open_dataset(str(image_folder)), open_dataset(str(npz_file))
    result = data("verify")
    assert result.exit_code == 0 and result.stdout.count("ok ") == 2
    path = photos.folder / "test_images.u8"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    result = data("verify")
    assert result.exit_code == 1
    assert (
        f"damaged  {path}" in result.stdout
        and f"ok       arrays, 42 images: {arrays.folder}" in result.stdout
    )
    assert data("verify", npz_file).exit_code == 0
    assert data("verify", image_folder).exit_code == 1
    assert data("pack", image_folder).exit_code == 0
    assert data("verify").exit_code == 0


def test_jpeg_makes_an_image_tar_of_any_data_set(official_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.tar"
    result = data("jpeg", "--from", official_folder, "--to", out, "--quality", 75)
    assert result.exit_code == 0, result.exception
    source, made = open_dataset(str(official_folder)), open_dataset(str(out))
    assert f"pixel hash  {made.digest}" in result.stdout
    names, psnrs = [], []
    with tarfile.open(out) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None and (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            split, name, rest = member.name.split("/")
            samples = getattr(source, split)
            index = int(rest.removesuffix(".jpg"))
            names.append((split == "test", index))
            assert source.class_names[samples.labels[index]] == name and rest == f"{index:05d}.jpg"
            image = Image.open(io.BytesIO(file.read()))
            assert image.layer[0][1:3] == (2, 2) and image.layer[1][1:3] == (1, 1)  # 4:2:0
            error = np.square(np.asarray(image).astype(float) - samples.images[index]).mean()
            psnrs.append(10 * np.log10(255**2 / error))
    assert names == sorted(names) and len(names) == 120
    assert f"mean PSNR   {np.mean(psnrs):.2f} dB" in result.stdout
    again = tmp_path / "again.tar"
    assert data("jpeg", "--from", official_folder, "--to", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_jpeg_refuses_what_it_cannot_write(npz_file: Path, tmp_path: Path) -> None:
    assert "must end in .tar" in refused("jpeg", "--from", npz_file, "--to", tmp_path / "out.tar.xz")
    assert "choose 1 to 95" in refused(
        "jpeg", "--from", npz_file, "--to", tmp_path / "out.tar", "--quality", 0
    )
    assert "cannot write" in refused("jpeg", "--from", npz_file, "--to", tmp_path / "no" / "out.tar")
    bad = write_npz(tmp_path / "bad.npz", class_names=np.array(["a", "../b", "c"]))
    assert "'../b' cannot name a folder" in refused("jpeg", "--from", bad, "--to", tmp_path / "out.tar")
    assert not list(tmp_path.glob("**/*out.tar*"))


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    for command in ("info", "pack", "verify"):
        assert "no such data" in refused(command, tmp_path / "nowhere")


def test_real_images_through_the_command(
    real_dataset: Dataset, real_images: Path, shared_cache: Path
) -> None:
    command = f"from fastresnet.cli.data import app; app(['info', {str(real_images)!r}, '--json'])"
    process = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "FASTRESNET_CACHE": str(shared_cache)},
    )
    assert json.loads(process.stdout)["digest"] == real_dataset.digest
    assert process.stderr == ""  # no bar where there is no terminal


@pytest.mark.parametrize(("interval_s", "expected"), [(1e9, 0), (0.0, 2)])
def test_progress_without_a_terminal_is_lines_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, interval_s: float, expected: int
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", interval_s)
    with progress.shown_progress() as show:
        show("decoding images", 450, 1000)
        show("listing the archive", 7, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["decoding images: 450 of 1,000 (45%)", "listing the archive: 7"][:expected]


def test_progress_on_a_terminal_is_a_bar(image_tar: Path) -> None:
    """A pseudo-terminal gets control sequences and the stage's name."""
    import pty

    controller, terminal = pty.openpty()
    command = f"from fastresnet.cli.data import app; app(['pack', {str(image_tar)!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # the other end has closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(controller)
    assert process.communicate(timeout=60)[0].startswith(b"photos: 36 images")
    assert b"\x1b[" in shown
