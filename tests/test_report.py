"""Pages about runs: what they say is what was recorded and evaluated, and any reader can read them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import CLASSES, NUM_TEST, NUM_VAL, Family, family, pages, refused, typed
from page_reader import Element, read_page, table
from PIL import Image
from tiny_runs import TINY_TRAIN

from fastresnet.evaluation import evaluate_samples
from fastresnet.recipe import load_recipe
from fastresnet.report import page as page_module
from fastresnet.report.confusion import confusion_counts
from fastresnet.report.facts import tiles
from fastresnet.report.page import write_report
from fastresnet.report.printed import setting_note
from fastresnet.report.records import read_run
from fastresnet.report.writing import Written, render, write_page
from fastresnet.run import RunConfig
from fastresnet.schedule import build_schedule

__all__ = ["family", "pages"]  # fixtures


@pytest.fixture
def page(pages: dict[str, Written]) -> Element:
    """The page about the child."""
    return read_page(pages["single"].page)


@pytest.fixture
def comparison(pages: dict[str, Written]) -> Element:
    """The page about both runs."""
    return read_page(pages["both"].page)


def columns(shown: Element) -> list[str]:
    return [cell.text for cell in shown.one("thead").all("th")]


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """What a run recorded of each of its epochs."""
    epochs: list[dict[str, Any]] = json.loads((folder / "result.json").read_text())["epochs"]
    return epochs


def check_readable(page: Element) -> None:
    """Check what a browser, a keyboard and a screen reader need."""
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert not list(page.all("script", "iframe", "object", "embed"))
    for element in page.all():
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            value = element.attributes.get(name, "")
            assert value.startswith(("data:", "#")) or not value, value
        target = element.attributes.get("href", "").partition("#")[2]
        assert not target or target in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
    style = page.one("style").text
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert page.one("html").attributes["lang"] == "en" and page.one("title").text
    for landmark in ("header", "nav", "main", "footer"):
        page.one(landmark)
    levels = [int(heading.name[1]) for heading in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(image.attributes["alt"] for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img" and len(svg.attributes["aria-label"]) > 20
        assert not re.search(r"#[0-9a-f]{6}", str(svg.attributes))
    for one in page.all("table"):
        assert one.one("caption").text
        assert all(heading.attributes["scope"] in ("row", "col") for heading in one.all("th"))
    assert all(figure.one("figcaption").text for figure in page.all("figure"))
    first = next(element for element in page.one("body").all("a"))
    assert first.attributes["href"] == "#main"


def test_a_page_about_a_run_is_readable(page: Element) -> None:
    check_readable(page)


def test_a_comparison_is_readable(comparison: Element) -> None:
    check_readable(comparison)


def test_figures_take_their_colours_from_the_page(pages: dict[str, Written]) -> None:
    text = pages["single"].page.read_text("utf-8")
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        assert re.findall(r"(?<![&\w(\"])#[0-9a-fA-F]{3,6}\b", figure) == []
        assert "var(--ink)" in figure or "var(--muted)" in figure


def test_the_summary_is_the_result(family: Family, page: Element) -> None:
    result = json.loads((family.child / "result.json").read_text())
    accuracy = f"{result['test_accuracy']:.2%}"
    assert accuracy in page.one("h1").text and "on tiny" in page.one("h1").text
    rows = {row[0]: row[1:] for row in table(page, "Loss and accuracy on tiny").rows()}
    assert rows["test"][:2] == [f"{result['test_loss']:.4f}", accuracy]
    last = result["epochs"][-1]
    assert rows["train, epoch 2"][:2] == [f"{last['train_loss']:.4f}", f"{last['train_accuracy']:.2%}"]
    assert rows["val, the same"][:2] == [f"{last['val_loss']:.4f}", f"{last['val_accuracy']:.2%}"]
    assert f"{result['num_params']:,}" in page.one("dl").text
    times = {row[0]: row[1] for row in table(page, "Times").rows()}
    assert times["training"] == f"{result['clocks']['train_s']:.1f} s"
    recipe = {row[0]: row[1] for row in table(page, "Recipe").rows()}
    assert recipe["augment.ops.0.degrees"] == "15.0" and recipe["mix.name"] == "mixup"


def test_layers_add_up(family: Family, page: Element) -> None:
    record = read_run(str(family.child), family.runs_dir)
    for caption in ("Parameters and multiply-adds by part", "Every layer"):
        found = table(page, caption)
        *_, params, multiply_adds = (cell.text for cell in found.one("tfoot").all("th", "td"))
        assert (params, multiply_adds) == (f"{record.num_params:,}", f"{record.multiply_adds:,}")
        columns = [[int(row[i].replace(",", "") or 0) for row in found.rows()] for i in (-2, -1)]
        assert [sum(column) for column in columns] == [record.num_params, record.multiply_adds]


def test_curves_join_the_runs_that_led_here(family: Family, page: Element) -> None:
    record = read_run(str(family.child), family.runs_dir)
    before, own = record.segments
    best = json.loads((family.parent / "result.json").read_text())["best"]["epoch"]
    assert (before.run, before.weights, before.start, len(before.rows)) == (
        family.parent.name,
        "best",
        0,
        best,
    )
    assert (own.start, len(own.rows)) == (best, 2)
    parents, own_rows = (epochs_of(folder) for folder in (family.parent, family.child))
    joined = parents[:best] + own_rows
    for what, style in (("Loss", ".4f"), ("Accuracy", ".2%")):
        shown = table(page, f"{what} by epoch")
        assert columns(shown) == ["epoch", "train", "val", "test"]
        keys = [f"{split}_{what.lower()}" for split in ("train", "val", "test")]
        assert shown.rows() == [
            [str(epoch), *(format(row[key], style) for key in keys)] for epoch, row in enumerate(joined, 1)
        ]
    assert f"from {before.run[-6:]}:best" in page.text
    assert f"The first {best} of the epochs shown are of {before.run}" in page.text


def test_the_learning_rate_curve_is_the_schedules(family: Family, page: Element) -> None:
    """At each epoch's last step, first of the parent and then, counted anew, of the child."""
    best = json.loads((family.parent / "result.json").read_text())["best"]["epoch"]
    rates = []
    for folder, shown in ((family.parent, best), (family.child, 2)):
        recipe = read_run(str(folder), family.runs_dir).recipe
        steps = (TINY_TRAIN - NUM_VAL) // recipe.batch_size
        schedule = build_schedule(recipe.schedule, recipe.epochs, steps)
        rates += [recipe.optimizer.lr * schedule.factor(epoch * steps - 1) for epoch in range(1, shown + 1)]
    assert len(set(rates)) > 1
    rows = table(page, "Learning rate by epoch").rows()
    assert rows == [[str(epoch), f"{rate:.3g}"] for epoch, rate in enumerate(rates, 1)]
    (label,) = (
        svg.attributes["aria-label"]
        for svg in page.all("svg")
        if svg.attributes["aria-label"].startswith("Learning rate")
    )
    assert f"from {rates[0]:g} to {rates[-1]:g}, highest {max(rates):g}" in label


def test_confusion_counts_every_test_image(family: Family, page: Element) -> None:
    outcomes = evaluate_samples(family.child.name, runs_dir=family.runs_dir)
    expected = np.zeros((3, 3), int)
    for label, prediction in zip(outcomes.labels, outcomes.predictions, strict=True):
        expected[label, prediction] += 1
    rows = table(page, "Confusion matrix").rows()
    assert [[int(text) for text in row[1:]] for row in rows] == expected.tolist()
    assert [row[0] for row in rows] == list(CLASSES)
    by_class = table(page, "Accuracy by class").rows()
    assert [int(row[1]) for row in by_class] == expected.sum(1).tolist()
    assert [row[3] for row in by_class] == [f"{expected[i, i] / expected[i].sum():.2%}" for i in range(3)]
    off = sorted(expected[~np.eye(3, dtype=bool)], reverse=True)
    assert [int(row[2]) for row in table(page, "Most confused pairs").rows()] == [n for n in off if n]
    assert f"{np.trace(expected)} of {NUM_TEST} test images" in page.text


def test_counts_of_classes_that_never_occur() -> None:
    counts = confusion_counts(np.array([0, 0, 2]), np.array([0, 2, 2]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


def test_the_worst_images_are_those_of_greatest_loss(family: Family, page: Element) -> None:
    outcomes = evaluate_samples(family.child.name, runs_dir=family.runs_dir)
    wrong = outcomes.predictions != outcomes.labels
    greatest = outcomes.indices[wrong][np.argsort(-outcomes.losses[wrong], kind="stable")][:24]
    (shown,) = (ul for ul in page.all("ul") if ul.attributes.get("class") == "images")
    alts = [image.attributes["alt"] for image in shown.all("img")]
    assert [int(re.match(r"Image (\d+):", alt)[1]) for alt in alts] == greatest.tolist()  # type: ignore[index]
    for alt, index in zip(alts, greatest, strict=True):
        place = int(np.flatnonzero(outcomes.indices == index)[0])
        label, taken = CLASSES[outcomes.labels[place]], CLASSES[outcomes.predictions[place]]
        assert f": {label}, taken for {taken} with " in alt


def test_best_weights_are_those_tested_when_asked_for(family: Family, tmp_path: Path) -> None:
    outcomes = evaluate_samples(f"{family.parent.name}:best", runs_dir=family.runs_dir)
    page = read_page(write_report([f"{family.parent}:best"], out=tmp_path).page)
    assert "The best weights, tested again" in page.text
    rows = table(page, "Confusion matrix").rows()
    right = sum(int(row[1 + i]) for i, row in enumerate(rows))
    assert right == (outcomes.predictions == outcomes.labels).sum()


def test_runs_side_by_side(family: Family, comparison: Element) -> None:
    ids = [folder.name[-6:] for folder in (family.parent, family.child)]
    rows = table(comparison, "The runs side by side").rows()
    assert [row[0] for row in rows] == ids
    results = [json.loads((folder / "result.json").read_text()) for folder in (family.parent, family.child)]
    assert [row[2] for row in rows] == [f"{result['test_accuracy']:.2%}" for result in results]
    differing = {row[0]: row[1:] for row in table(comparison, "What differs").rows()}
    assert differing["recipe.epochs"] == ["3", "2"] and "recipe.batch_size" not in differing
    assert differing["recipe.mix.name"] == ["\u2013", "mixup"] and "recipe.mix" not in differing
    assert [h2.text for h2 in comparison.all("h2")][2:] == [f"n2-b1-c4 fast ({name})" for name in ids]
    assert len([t for t in comparison.all("table") if t.one("caption").text.startswith("Confusion")]) == 2


def test_curves_of_two_runs_are_those_that_each_learned(family: Family, comparison: Element) -> None:
    names = [folder.name[-6:] for folder in (family.parent, family.child)]
    parents, childs = (epochs_of(folder) for folder in (family.parent, family.child))
    for caption, key, style in (
        ("Test accuracy on tiny by epoch", "test_accuracy", ".2%"),
        ("Training loss on tiny by epoch", "train_loss", ".4f"),
        ("Learning rate by epoch", "lr", ".3g"),
    ):
        shown = [t for t in comparison.all("table") if t.one("caption").text.startswith(caption)]
        (both,) = (t for t in shown if columns(t) == ["epoch", *names])
        wanted = [[format(row[key], style) for row in rows] for rows in (parents, childs)]
        assert both.rows() == [
            [str(epoch), *values] for epoch, values in enumerate(zip_longest(*wanted, fillvalue="\u2013"), 1)
        ]


def test_figures_lie_beside_the_page_as_png(family: Family, pages: dict[str, Written]) -> None:
    of_run = {"loss", "accuracy", "lr", "network", "confusion", "worst", "augmentation"}
    keys = [folder.name[-6:] for folder in (family.parent, family.child)]
    compared = {"compare-accuracy", "compare-loss", "compare-lr"}
    assert {path.stem for path in pages["single"].figures} == of_run
    assert {path.stem for path in pages["both"].figures} == compared | {
        f"{key}-{name}" for key in keys for name in of_run
    }
    for path in (*pages["single"].figures, *pages["both"].figures):
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200
            low, high = image.convert("L").getextrema()
            assert high - low > 100, f"{path} shows nothing"


def test_a_run_that_is_not_complete_has_a_page(family: Family, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / family.child.name
    shutil.copytree(family.child, folder)
    (folder / "result.json").unlink()
    written = write_report(["last"], runs_dir=tmp_path / "runs")
    assert written.page == folder / "report" / "report.html"
    page = read_page(written.page)
    assert "Not complete: 2 of 2 epochs done" in page.one("header").text
    assert [notice for notice in written.notices if family.parent.name in notice]
    assert len(table(page, "Loss by epoch").rows()) == 2
    check_readable(page)


def test_what_several_runs_lack_is_said_once(family: Family, tmp_path: Path) -> None:
    names = [family.parent.name, family.child.name]
    for run in (family.parent, family.child):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    ids = ", ".join(name[-6:] for name in names)
    kept = shutil.move(family.data, tmp_path / "kept.npz")
    try:
        written = write_report(names, runs_dir=tmp_path / "runs")
    finally:
        shutil.copy(kept, family.data)
    (notice,) = written.notices
    assert notice.startswith(f"runs {ids}: predictions and augmentation are not shown: no such data")
    (callout,) = (p for p in read_page(written.page).all("p") if p.attributes.get("class") == "callout")
    assert callout.text.startswith(f"{ids}: Predictions and augmentation are not shown: no such data")
    (tmp_path / "runs" / names[1] / "result.json").unlink()
    page = read_page(write_report(names, runs_dir=tmp_path / "runs").page)
    callouts = [p.text for p in page.all("p") if p.attributes.get("class") == "callout"]
    assert callouts == [f"{names[1][-6:]}: Not complete: 2 of 2 epochs done."]


def test_a_page_without_the_images_says_so(family: Family, tmp_path: Path) -> None:
    arrays = dict(np.load(family.data))
    kept = shutil.move(family.data, tmp_path / "kept.npz")
    out = tmp_path / "page"
    for reason in ("no such data", "not the data set of this run"):
        try:
            if "not" in reason:
                np.savez(family.data, **arrays | {"test_labels": 2 - arrays["test_labels"]})
            shown = typed("report", family.parent, "--out", out)
        finally:
            shutil.copy(kept, family.data)
        assert f"note: run {family.parent.name[-6:]}: predictions and augmentation are not shown" in shown
        page = read_page(out / "report.html")
        assert reason in page.one("header").text
        assert page.text.count("Not shown: the images could not be read") == 2
        assert table(page, "Accuracy by epoch").rows()
        check_readable(page)


def test_data_or_a_device_that_is_not_there_leaves_the_page_as_it_was(family: Family, tmp_path: Path) -> None:
    written = write_report([str(family.parent)], out=tmp_path)
    before = written.page.read_bytes()
    other = tmp_path / "other.npz"
    arrays = dict(np.load(family.data))
    np.savez(other, **arrays | {"test_labels": 2 - arrays["test_labels"]})
    for option, value, message in (
        ("--data", tmp_path / "gone.npz", "no such data"),
        ("--data", other, "not the data set of this run"),
        ("--device", "gpu", "gpu"),
    ):
        assert message in refused("report", family.parent, option, value, "--out", tmp_path)
    assert written.page.read_bytes() == before and all(path.exists() for path in written.figures)


def test_figures_that_are_no_longer_of_the_page_are_removed(tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(b"not ours")
    for names in (["loss", "worst"], ["loss"]):
        figures = dict.fromkeys(names, b"png")
        write_page(tmp_path, render("base.html.j2", figures=figures, title="x"), figures, ())
        assert {path.stem for path in tmp_path.glob("*.png")} == {"own", *names}


def test_a_setting_that_was_not_printed_is_told(family: Family) -> None:
    run = read_run(str(family.parent), family.runs_dir)
    run = replace(run, dataset=run.dataset | {"name": "CIFAR-10"}, config=RunConfig())

    def note(recipe: str, parent: str | None = None, **config: int) -> str:
        record = replace(run, recipe=load_recipe(recipe), config=RunConfig(**config), parent=parent)
        return setting_note(record).removeprefix("What was printed is of another setting. Here: ")

    assert note("r1-joint") == note("r1-joint", val=0) == note("r0-continue", "p", val=5000) == ""
    assert note("r1-joint", val=5000) == "val 5,000, not none."
    assert note("r0-continue", "p", val=0) == "val none, not 5,000."
    assert note("r0-continue").startswith(
        "begun from new weights, not from those of a run of r0-resnet24-as-run"
    )
    assert note("r1-joint", "p") == "begun from the weights of p, not from new ones."


def test_the_ring_is_told_to_be_of_this_run(page: Element, comparison: Element) -> None:
    assert "The ring marks the best epoch of this run by val accuracy" in page.text
    assert comparison.text.count("The ring marks the best epoch by val accuracy") == 1  # the parent's


def test_one_epoch_is_one_epoch(family: Family) -> None:
    run = read_run(str(family.parent), family.runs_dir)
    assert tiles(replace(run, rows=run.rows[:1]))[-1].note.startswith("1 epoch of ")


def test_what_cannot_be_reported_on_is_one_line(family: Family, tmp_path: Path) -> None:
    there = ("--runs-dir", family.runs_dir)
    assert "no run 'nothing'" in refused("report", "nothing", *there)
    assert "named twice" in refused("report", family.parent.name, family.parent, *there)
    assert "at most 10" in refused("report", *["x"] * (page_module.MOST_RUNS + 1), *there)
    assert "either runs" in refused("report", *there)
    assert "either runs" in refused("report", "last", "--sweep", "r1-c", *there)
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in refused("report", family.parent, "--out", tmp_path / "file" / "x")
