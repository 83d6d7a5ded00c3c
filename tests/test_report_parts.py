"""The parts that pages are made of: colours, the diagram, augmentation grids, bars, and pages about sweeps."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import Family, family, refused, typed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from page_reader import read_page, table
from PIL import Image
from test_report import check_readable
from tiny_runs import tiny_config, tiny_recipe

from fastresnet.arch import get_arch
from fastresnet.assembly import splits_of, train_loader_spec
from fastresnet.atomic import write_sealed_json
from fastresnet.loaders.dataset import open_dataset
from fastresnet.loaders.registry import open_loader
from fastresnet.report import facts
from fastresnet.report.augmentation import augmentation_grid
from fastresnet.report.bars import arrange, sweep_charts
from fastresnet.report.chart import PNG_DPI
from fastresnet.report.confusion import matrix_chart
from fastresnet.report.diagram import network_diagram
from fastresnet.report.palette import DARK, LEVELS, LIGHT, NUM_SERIES, SHADES, contrast, level_of, shade
from fastresnet.report.records import read_run
from fastresnet.report.sweep_page import write_sweep_report
from fastresnet.sweep_spec import load_sweep
from fastresnet.sweep_table import row, write_table
from fastresnet.sweep_table import table as sweep_table
from fastresnet.training import train

__all__ = ["family"]  # a fixture

AA_TEXT, AA_GRAPHICS = 4.5, 3.0  # WCAG 2.2, success criteria 1.4.3 and 1.4.11


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_what_it_stands_on(palette: dict[str, str]) -> None:
    texts = ["ink", "muted", "accent", "good", "bad", *(f"series{i}" for i in range(NUM_SERIES))]
    for name in texts:
        for background in ("page", "panel"):
            assert contrast(palette[name], palette[background]) >= AA_TEXT, (name, background)
    assert len(set(palette.values())) == len(palette), "the SVG's colours are told apart by their values"
    assert palette.keys() == LIGHT.keys()


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize("kind", list(SHADES))
@pytest.mark.parametrize("dark", [False, True])
def test_counts_can_be_read_on_every_shade(kind: str, dark: bool) -> None:
    backgrounds = [shade(kind, level, dark)[0] for level in range(LEVELS + 1)]
    assert len(set(backgrounds)) == LEVELS + 1
    assert all(contrast(*shade(kind, level, dark)) >= AA_TEXT for level in range(LEVELS + 1))
    assert contrast(backgrounds[0], backgrounds[-1]) >= AA_GRAPHICS
    assert (level_of(0), level_of(1e-6), level_of(0.5), level_of(1)) == (0, 1, LEVELS // 2, LEVELS)


@pytest.mark.parametrize(
    "name",
    [
        "resnet24",
        "resnet86",
        "n1-b1-c1",
        "n3-b3-c64-stem3x32-bottleneck-leaky_relu-db0.2-dh0.5",
        "n5-b1-c8",
        "n4-b0,1,6,0-c8-maxpool",
        "n3-b2,1,6-c8-plain",
    ],
)
def test_every_network_can_be_drawn(name: str) -> None:
    spec = get_arch(name)
    chart = network_diagram(spec, 10, 32)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)
    assert [text for text in texts if text.startswith("Stage")] == [
        f"Stage {i + 1}" for i in range(spec.num_stages)
    ]
    for stage, blocks in enumerate(spec.blocks):
        line = f"{spec.kernels[stage]}x{spec.kernels[stage]}, {spec.channels[stage]}"
        drawn = min(blocks, 4) if blocks > 5 else blocks
        same_width = sum(width == spec.channels[stage] for width in spec.channels)
        if same_width == 1:
            halved = stage > 0 and spec.down == "maxpool"
            assert texts.count(line) == drawn * {"basic": 2, "bottleneck": 1, "plain": 1}[spec.block] + halved
        if blocks > 5:
            assert f"{blocks - 4} more" in texts
    if spec.down == "maxpool":
        assert texts.count("max pool") == spec.num_stages - 1 and texts.count("no blocks") == 1
    assert ("it has no shortcut" in chart.svg) == (spec.block == "plain")
    strided = [layer.detail for layer in spec.layers() if layer.name.endswith(".shortcut.conv")]
    assert [text for text in texts if text in ("1x1", "1x1, stride 2")] == strided
    assert f"{spec.num_stages}" in chart.alt and "10 logits" in chart.alt


def test_the_grid_shows_what_training_shows(tmp_path: Path, family: Family) -> None:
    """Crop and flip alone: pixel by pixel what the training loader yields for these images in each epoch."""
    recipe = tiny_recipe(
        {"augment.crop": {"padding": 2, "mode": "zero"}, "augment.flip": "random", "epochs": 2}
    )
    config = tiny_config(family.data, seed=3, val=20, compile="off")
    result = train(recipe, config, runs_dir=tmp_path)
    record = read_run(result.run, tmp_path)
    dataset = open_dataset(str(family.data))
    grid = augmentation_grid(record, dataset)
    split = splits_of(dataset, recipe, config)["train"]
    assert {row.index for row in grid.rows} <= set(split.members.tolist())
    loader = open_loader("numba", split, train_loader_spec(recipe, record.config), "cpu")
    differing = 0
    assert grid.epochs == ("epoch 1", "epoch 2")  # there were four more, which never happened
    columns, column_inches = 3, 0.95
    assert Image.open(io.BytesIO(grid.png)).width == round(columns * column_inches * PNG_DPI)
    try:
        for epoch in range(2):
            loader.set_epoch(epoch)
            seen = {
                int(index): image.permute(1, 2, 0).numpy().copy()
                for batch in loader
                for image, index in zip(batch.images, batch.indices, strict=True)
            }
            for row in grid.rows:
                if row.index in seen:  # an incomplete batch is dropped
                    shown = np.asarray(
                        Image.open(io.BytesIO(base64.b64decode(row.after[epoch].split(",")[1])))
                    )
                    np.testing.assert_array_equal(shown, seen[row.index])
                    differing += bool((shown != split.images[row.index]).any())
    finally:
        loader.close()
    assert differing > len(grid.rows)
    assert grid.steps == (
        "random crop after 2 pixels of zero padding",
        "flip left to right with probability one half",
    )


def test_the_grid_shows_small_images_in_their_epochs(family: Family) -> None:
    grid = augmentation_grid(read_run(family.child.name, family.runs_dir), open_dataset(str(family.data)))
    sides = [
        {Image.open(io.BytesIO(base64.b64decode(row.after[epoch].split(",")[1]))).size for row in grid.rows}
        for epoch in range(len(grid.epochs))
    ]
    assert sides == [{(6, 6)}] + [{(8, 8)}] * (len(grid.epochs) - 1) and len(sides) > 1
    assert grid.epochs[0].endswith(", 6x6") and "8x8" not in "".join(grid.epochs)
    assert grid.steps[-1] == "resize to 6x6 for 1 epoch"


def test_a_matrix_of_many_classes_is_a_figure_in_the_pages_colours() -> None:
    counts = np.diag(np.arange(1, 31)) + np.eye(30, k=3, dtype=int)
    chart = matrix_chart(counts, tuple(f"class {i}" for i in range(30)), "many", "confusion")
    assert not re.search(r"#[0-9a-f]{6}\b", chart.svg)
    assert chart.svg.count("fill: var(--series0)") == 30 and chart.svg.count("fill: var(--series1)") == 27
    assert "465 of 492 images are on its diagonal" in chart.alt


def test_intervals_of_accuracies() -> None:
    low, high = facts.wilson(0.9, 10_000)
    assert (low, high) == pytest.approx((0.89396, 0.90573), abs=1e-5)
    assert facts.wilson(1.0, 10)[1] == pytest.approx(1) and facts.wilson(0.0, 10)[0] == pytest.approx(0)


@pytest.mark.parametrize("name", ["r1-c", "r0-optimizers"])
def test_the_legend_of_a_picture_is_beside_its_title(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lay one upon the other."""
    drawn = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr("fastresnet.report.chart.Figure", Kept)
    content = cells(name)
    sweep_charts(content["rows"], content["columns"], "CIFAR-10-J75")
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
        boxes = [legend.get_window_extent() for legend in legends if legend is not None]
        title = next(text for text in figure.texts if "Test accuracy" in text.get_text())
        assert boxes and not any(box.overlaps(title.get_window_extent()) for box in boxes)


def cells(name: str, **conditions: Any) -> dict[str, Any]:
    """A packaged sweep's table, each cell's accuracy a little above what was printed; the last one failed."""
    sweep = load_sweep(name)
    rows = []
    for step, found in sweep.all_cells():
        for cell in found:
            entry = row(step, cell, None)
            if entry["state"] != "over budget":
                entry |= {"state": "done", "accuracy": (cell.printed_accuracy or 0.5) + 0.01}
            rows.append(entry)
    at = {"epoch": 2, "split": "val", "accuracy": 0.1}
    rows[-2] |= {"state": "pruned", "accuracy": 0.1, "pruned_at": at}  # the accuracy as it once was
    rows[-1] |= {"state": "failed", "accuracy": None, "error": "the loss <is> not finite"}
    given = {"dataset_name": "CIFAR-10-J75", "dataset_is_builtin": False, "seed": 0, "limit_train": None}
    return sweep_table(name, sweep.spec.title, rows, given | conditions)


@pytest.mark.parametrize("name", ["r1-c", "r0-optimizers", "r0-lr", "r1-joint", "r3-sequential"])
def test_a_page_about_a_sweep(name: str, tmp_path: Path) -> None:
    content = cells(name)
    (tmp_path / name).mkdir()
    write_table(tmp_path / name, content)
    written = write_sweep_report(name, sweeps_dir=tmp_path)
    page = read_page(written.page)
    check_readable(page)
    rows = table(page, "Cells on CIFAR-10-J75").rows()
    assert len(rows) == len(content["rows"])
    for shown, entry in zip(rows, content["rows"], strict=True):
        if entry["state"] == "done":
            assert f"{entry['accuracy']:.2%}" in shown
        if entry["printed_accuracy"] is not None:
            assert f"{entry['printed_accuracy']:.2%}" in shown
        compared = entry["state"] == "done" and entry["printed_accuracy"] is not None
        assert ("+1.00" in shown) == compared
    assert "the loss <is> not finite" in rows[-1][-1] and rows[-2][-1].startswith(
        "pruned at validation accuracy 0.1000 after epoch 2"
    )
    drawn = page.one("main").text + "".join(svg.attributes["aria-label"] for svg in page.all("svg"))
    assert "10.00%" not in drawn  # the pruned cell's, which is of the validation split
    assert "CIFAR-10-J75" in page.one("h1").text and "JPEG of quality 75" in page.one("header").text
    assert written.page == tmp_path / name / "report" / "report.html"
    (cells_table,) = [found for found in page.all("table") if found.one("caption").text.startswith("Cells")]
    headings = [cell.text for cell in cells_table.one("thead").all("th")]
    assert all(headings) and headings[len(content["columns"])] == "accuracy"
    assert len(written.figures) == (3 if name == "r3-sequential" else 1)
    assert all(Image.open(path).size[0] > 300 for path in written.figures)


def test_bars_are_grouped_by_what_the_cells_differ_in() -> None:
    rows = cells("r0-optimizers")["rows"]
    bars = arrange(rows, ["arch", "recipe"])
    assert (bars.axis, bars.legend) == ("arch", "recipe")
    assert bars.series == ("adam", "adadelta", "adagrad", "sgdn", "sgd")
    assert len(bars.ours) == len(rows) - 1  # all but the failed one
    place = bars.groups.index("resnet24"), bars.series.index("adadelta")
    assert (bars.printed[place], bars.ours[place]) == pytest.approx((0.8906, 0.9006))
    by_cell = arrange(cells("r1-joint")["rows"], ["N", "B", "C"])
    assert by_cell.axis == "" and len(by_cell.groups) == 28
    assert sweep_charts(rows[:1], ["arch", "recipe"], "x") == []


def test_learning_rates_stand_beside_each_other_by_optimizer() -> None:
    content = cells("r0-lr")
    rows, columns = content["rows"], content["columns"]
    names = ("adam", "adadelta", "adagrad", "sgdn", "sgd")
    pairs = [(f"r0-optimizers-{name}", lr) for name in names for lr in (0.1, 0.001)]
    assert columns == ["recipe", "optimizer.lr"]
    assert [tuple(entry["cell"].values()) for entry in rows] == pairs
    bars = arrange(rows, columns)
    assert (bars.axis, bars.legend) == ("recipe", "optimizer.lr")
    assert (bars.groups, bars.series) == (names, ("0.1", "0.001"))
    assert {pairs[2 * group + lr] for group, lr in bars.ours} == set(pairs[:-1])  # the last one failed
    printed = {names[group]: bars.series[lr] for group, lr in bars.printed}
    assert len(bars.printed) == 5 and printed == dict.fromkeys(names, "0.1") | {"adam": "0.001"}


@pytest.mark.parametrize("name", ["r0-optimizers", "r1-joint"])  # standing bars, and lying ones
def test_the_label_of_a_low_bar_stands_beyond_it(name: str) -> None:
    content = cells(name)
    (chart,) = sweep_charts(content["rows"], content["columns"], "x")
    assert "fill: var(--page)" in label_of(chart.svg, "51.0")
    content["rows"][0] |= {"accuracy": 0.02, "printed_accuracy": None}
    (chart,) = sweep_charts(content["rows"], content["columns"], "x")
    assert "fill: var(--ink)" in label_of(chart.svg, "2.0")


def label_of(svg: str, text: str) -> str:
    """Return the text elements that hold no more than ``text``."""
    return "".join(re.findall(rf"<text[^>]*>{re.escape(text)}</text>", svg))


def test_a_page_about_a_sweep_without_printed_figures_has_none(tmp_path: Path) -> None:
    content = cells("r1-c")
    for entry in content["rows"]:
        entry |= {"printed_accuracy": None, "printed_params": None}
    write_table(tmp_path, content)
    page = read_page(write_sweep_report(str(tmp_path)).page)
    found = table(page, "Cells on CIFAR-10-J75")
    assert found.one("caption").text.strip() == "Cells on CIFAR-10-J75"
    headings = [cell.text for cell in found.one("thead").all("th")]
    assert headings == ["C", "accuracy", "parameters", "network", "remark"]
    assert "printed" not in page.one("main").text


def test_a_sweep_on_drawn_images_says_so(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "table.json", cells("r1-k", dataset_name="shapes", dataset_is_builtin=True))
    page = read_page(write_sweep_report(str(tmp_path), sweeps_dir=tmp_path / "none").page)
    assert "none speaks of photographs" in page.one("header").text
    assert "shapes (drawn images, not photographs)" in page.one("h1").text
    assert all("shapes (drawn images, not photographs)" in caption.text for caption in page.all("figcaption"))


def test_a_sweep_that_is_not_there_is_named(tmp_path: Path) -> None:
    there = ("--sweeps-dir", tmp_path)
    assert "train it first: fastresnet sweep r1-c" in refused("report", "--sweep", "r1-c", *there)
    (tmp_path / "r1-c").mkdir()
    assert "no table yet" in refused("report", "--sweep", "r1-c", *there)
    write_table(tmp_path / "r1-c", cells("r1-c"))
    assert "did you mean 'r1-c'" in refused("report", "--sweep", "r1-x", *there)
    page, figures = typed("report", "--sweep", "r1-c", *there).splitlines()
    assert re.search(r"r1-c/report/report.html \([1-9][0-9]* KB, self-contained\)$", page)
    assert figures == "1 figure as PNG beside it"
    (tmp_path / "one").mkdir()
    write_table(tmp_path / "one", content := cells("r1-c") | {"rows": cells("r1-c")["rows"][:1]})
    assert len(content["rows"]) == 1 and len(typed("report", "--sweep", "one", *there).splitlines()) == 1
    path = tmp_path / "r1-c" / "table.json"
    path.write_text(path.read_text().replace("0.48", "0.98"))
    assert "was altered" in refused("report", "--sweep", "r1-c", *there)
