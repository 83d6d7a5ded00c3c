"""``fastresnet archs``: what it prints, as a table and as JSON, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fastresnet.arch import get_arch
from fastresnet.catalogue import CATALOGUE
from fastresnet.cli.archs import archs
from fastresnet.errors import UserError


def run_archs(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(archs)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "40"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_archs_lists_printed_and_true_counts_side_by_side() -> None:
    output = run_archs()
    rows = [line.split() for line in output.splitlines()]
    for entry in CATALOGUE:
        printed = "-" if entry.printed_params is None else f"{entry.printed_params:,}"
        accuracy = "-" if entry.printed_accuracy is None else f"{entry.printed_accuracy:.4f}"
        row = [
            entry.name,
            printed,
            f"{entry.true_params:,}",
            f"{entry.multiply_adds:,}",
            accuracy,
        ]
        assert row + ["erratum"] * bool(entry.erratum) in rows
        for remark in (entry.erratum, entry.note):
            assert remark is None or any(line.endswith(f": {remark}") for line in output.splitlines())
    assert "…" not in output


def test_archs_json_lists_the_same() -> None:
    rows = json.loads(run_archs("--json"))
    assert [(row["name"], row["table"], row["true_params"]) for row in rows] == [
        (entry.name, entry.table, entry.true_params) for entry in CATALOGUE
    ]
    assert rows[0]["printed_params"] == 312_490 and rows[0]["erratum"] == CATALOGUE[0].erratum
    assert rows[0]["spec"]["blocks"] == [1, 2, 1]


def test_archs_budget_answers_width_85() -> None:
    arguments = ("--budget", "5000000", "--stages", "3", "--blocks", "2")
    assert "width 85: n3-b2-c85" in run_archs(*arguments)
    answer = json.loads(run_archs(*arguments, "--json"))
    assert (answer["width"], answer["slug"], answer["true_params"]) == (85, "n3-b2-c85", 4_895_755)
    listed = json.loads(run_archs("--budget", "5000000", "--stages", "2", "--blocks", "2,1", "--json"))
    assert listed["spec"]["blocks"] == [2, 1]


@pytest.mark.parametrize("name", ["resnet24", "n3-b1-c8-bottleneck-ds0.1-dh0.5", "resnet86"])
def test_archs_name_shows_every_layer(name: str) -> None:
    spec = get_arch(name)
    answer = json.loads(run_archs(name, "--json"))
    assert [layer["name"] for layer in answer["layers"]] == [layer.name for layer in spec.layers()]
    assert sum(layer["params"] for layer in answer["layers"]) == answer["true_params"] == spec.num_params()
    output = run_archs(name)
    rows = [line.split() for line in output.splitlines()]
    assert ["total", f"{spec.num_params():,}", f"{spec.num_multiply_adds():,}"] in rows
    for layer in spec.layers():
        counts = [f"{count:,}" for count in (layer.params, layer.multiply_adds) if count]
        shape = "x".join(map(str, layer.shape))
        own_name = layer.name.split("blocks.")[-1].lstrip("0123456789.")
        assert [own_name, *layer.detail.split(), shape, *counts] in rows
    assert "…" not in output and max(map(len, output.partition("\nslug ")[0].splitlines())) <= 80


@pytest.mark.parametrize("command", [(), ("resnet86",)], ids=["all", "one"])
def test_a_narrow_terminal_wraps_words_and_keeps_every_digit(command: tuple[str, ...]) -> None:
    """Of 40 columns, digits and whole columns had gone without a sign."""
    wide = run_archs(*command)
    narrow = seen_on_a_terminal("archs", *command, columns=40)
    assert "…" not in narrow and narrow.split() == wide.split()
    assert max(map(len, narrow.splitlines())) > 60  # a row that counts on the terminal to wrap it
    assert [line for line in wide.splitlines() if len(line) > 80] or command  # remarks whole, in a pipe


@pytest.mark.parametrize("words", [("recipes",), ("sweep", "r1-joint", "--list")])
def test_other_tables_are_whole_too(words: tuple[str, ...]) -> None:
    narrow, wide = (seen_on_a_terminal(*words, columns=columns) for columns in (40, 200))
    assert "…" not in narrow
    # A column of words may wrap, and the rule under the names of the columns is as long as they are wide.
    assert sorted(narrow.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def seen_on_a_terminal(*words: str, columns: int) -> str:
    """Return what a command shows on a terminal of that width, without its colours."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "50", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "fastresnet", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while read := os.read(ours, 1 << 16):
                shown += read
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resnet25",), "unknown architecture 'resnet25'; did you mean"),
        (("n4-b1-c4-p5",), "P may be 1 to 4"),
        (("--budget", "5000000"), "--budget, --stages and --blocks go together"),
        (("resnet24", "--stages", "3"), "give either a name"),
        (("--budget", "9", "--stages", "3", "--blocks", "1"), "no width fits a budget of 9"),
        (("--budget", "9000", "--stages", "3", "--blocks", "1,x"), "--blocks is '1,x'"),
        (("--budget", "9000", "--stages", "3", "--blocks", "1,2"), "blocks has 2 values for 3 stages"),
        (("--budget", "9000", "--stages", "1", "--blocks", "1,2"), "blocks has 2 values for 1 stage; give"),
        (("--budget", "9000", "--stages", "99", "--blocks", "1"), "number of stages is 99"),
        (("--budget", "9000", "--stages", "2", "--blocks", "0"), "blocks[0] is 0"),
    ],
)
def test_archs_refuses(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as caught:
        run_archs(*arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_output_that_meets_a_full_disk_is_one_line() -> None:
    """It was a traceback, or with little to print nothing but an exit status of 120."""
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "fastresnet", "archs"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "fastresnet: error: cannot write what is printed, or read a file: No space left on device; free some space and "
        "try again"
    ]
