"""Records of ``fastresnet bench``: shown by the command that made them alone, and written where they can be."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from family import refused
from made_data import write_npz
from PIL import Image
from typer.testing import CliRunner

from fastresnet.assembly import Data
from fastresnet.bench.board import Row, runs_of, standings
from fastresnet.bench.board_plot import drawn_runs
from fastresnet.bench.comparison import compare, find_row
from fastresnet.bench.intervals import lower_bound
from fastresnet.bench.record import KINDS, check_insert, check_out, insert_marked
from fastresnet.cli.bench_time_to import contestants
from fastresnet.cli.main import app
from fastresnet.errors import UserError
from fastresnet.run import duration

ROOT = Path(__file__).resolve().parents[1]
RECORDS = sorted((ROOT / "bench" / "records").glob("*.json"))
SHOWN = re.compile(
    r"<!-- bench (time-to|ablation) (\S+): begin -->\n\n(.*?)<!-- bench \1 \2: end -->", re.DOTALL
)
EARLIER = "throughput-resnet24-j75-cpu.json"
MEASURES = [kind for kind in KINDS if kind != "sweep"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_shows_no_record_of_another(kind: str, tmp_path: Path) -> None:
    """It was a traceback, or called an earlier form."""
    made = tmp_path / "made.json"
    for other in KINDS:
        made.write_text(json.dumps({"kind": other}))
        own = "is damaged, or of an earlier form, which only its own version shows"
        told = own if other == kind else f"is a record of `bench {other}`; show it with that"
        assert refused("bench", kind, "--show", made) == f"{made} {told}"
    for record in RECORDS:
        content = json.loads(record.read_bytes())
        its = content.get("kind")
        if its == kind and record.name != EARLIER:
            shown = CliRunner().invoke(app, ["bench", kind, "--show", str(record)])
            assert shown.exit_code == 0 and "|" in shown.stdout, record
            continue
        told = refused("bench", kind, "--show", record)
        if its == kind:
            assert "is damaged, or of an earlier form" in told
        elif its in KINDS:
            assert told == f"{record} is a record of `bench {its}`; show it with that"
        else:  # a run's result, or of what is no command
            assert "is no record of" in told


def test_a_picture_is_of_its_records_runs_and_can_be_drawn_again(tmp_path: Path) -> None:
    def drawn_of(picture: Path) -> str:
        with Image.open(picture) as image:
            return str(image.info["Comment"])

    pictures = sorted((ROOT / "bench" / "records").glob("time-to-*.png"))
    assert pictures
    for picture in pictures:
        record = picture.with_suffix(".json")
        runs = drawn_runs(json.loads(record.read_bytes()))
        assert drawn_of(picture) == runs, (
            f"`bench time-to --show {record.name} --plot {picture.name}` draws it"
        )
        again = tmp_path / "again.png"
        shown = CliRunner().invoke(app, ["bench", "time-to", "--show", str(record), "--plot", str(again)])
        assert shown.exit_code == 0 and drawn_of(again) == runs
    told = refused("bench", "time-to", "--show", record, "--plot", "again.svg")
    assert told == "--plot is again.svg; give the name of a file that ends in .png"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"", "is no record: it is not JSON"),
        (b"\xff\xfe", "is no record: it is not JSON"),
        (b"[" * 100_000, "is no record: it is not JSON"),
        (b"[1]", "is no record of a measurement"),
        (b'{"kind": []}', "is no record of a measurement"),
        (b'{"kind": "regression"}', "is no record of `bench "),
    ],
)
def test_what_is_no_record_is_one_line(kind: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    message = refused("bench", kind, "--show", path)
    assert str(path) in message and told in message and "\n" not in message
    assert "is a directory" in refused("bench", kind, "--show", tmp_path).lower()


def fail(*args: Any, **options: Any) -> Any:
    raise AssertionError("it was measured first")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data set, with no command able to measure anything on it."""
    for name in ("loaders.measure", "throughput.measure", "kernels.bench_kernels"):
        monkeypatch.setattr(f"fastresnet.bench.{name}", fail)
    for command in ("time_to", "ablation"):
        monkeypatch.setattr(f"fastresnet.cli.bench_{command}.fill_board", fail)
    return write_npz(tmp_path / "arrays.npz")


@pytest.mark.parametrize("kind", MEASURES)
def test_where_nothing_can_be_written_nothing_is_measured(
    kind: str, unmeasured: Path, tmp_path: Path
) -> None:
    """What `loaders` had measured was lost; `time-to` said that its board was kept."""
    (file := tmp_path / "file").write_text("")
    page = tmp_path / "page.md"
    page.write_text("no marks")
    before = sorted(tmp_path.iterdir())
    for out in (
        tmp_path,
        file / "r.json",
        file / "sub" / "r.json",
        Path("/proc/none/r.json"),
        tmp_path / "r.md",
    ):
        told = refused("bench", kind, "--out", out)
        assert told.startswith((f"cannot write {out}: ", f"--out is {out}, the name of what goes beside"))
    out = tmp_path / "new" / "r.json"
    assert "has no place for the table" in refused("bench", kind, "--out", out, "--insert", page)
    missing = tmp_path / "missing.md"
    told = refused("bench", kind, "--out", out, "--insert", missing)
    assert told == f"cannot update {missing}: No such file or directory"
    assert sorted(tmp_path.iterdir()) == before and page.read_text() == "no marks"


def test_a_look_whether_a_record_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (there := tmp_path / "there.json").write_text("as it was")
    check_out(there, ".md", ".png")
    check_out(tmp_path / "a" / "b" / "c.json", ".md")
    assert list(tmp_path.iterdir()) == [there] and there.read_text() == "as it was"
    (tmp_path / "there.png").mkdir()
    with pytest.raises(UserError, match=r"there.png: it is a folder"):
        check_out(there, ".md", ".png")
    check_out(there)
    with pytest.raises(UserError, match="File name too long"):
        check_out(tmp_path / ("x" * 300 + ".json"))


def test_a_page_that_cannot_be_changed_is_told_before_and_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_bytes(b"\xff<!-- x: begin --><!-- x: end -->")
    with pytest.raises(UserError, match="it is not UTF-8 text"):
        check_insert("x", page)
    page.write_text("a <!-- x: begin -->old<!-- x: end --> b")
    check_insert("x", page)
    assert page.read_text() == "a <!-- x: begin -->old<!-- x: end --> b"
    insert_marked("x", "new", page)
    assert page.read_text() == "a <!-- x: begin -->\n\nnew\n<!-- x: end --> b"


def test_boards_in_texts_are_what_their_records_show() -> None:
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [block for text in texts for block in SHOWN.findall(text.read_text())]
    assert found
    for kind, name, shown in found:
        record = ROOT / "bench" / "records" / f"{name}.json"
        page = CliRunner().invoke(app, ["bench", kind, "--show", str(record)]).stdout
        assert shown.strip() == page.partition("\n\n")[2].strip(), (
            f"bench {kind} --show {record.name} --insert"
        )


def test_what_the_readme_says_of_the_board_in_words() -> None:
    text = (ROOT / "README.md").read_text()
    name = "time-to-fastest-airbench94-j75-cpu"
    record = json.loads((ROOT / "bench" / "records" / f"{name}.json").read_bytes())
    against = find_row(record, "airbench94")
    assert against is not None
    (ours,) = compare(record, against)
    assert ours.cpu_s is not None and ours.cpu_s.low is not None and ours.cpu_s.high is not None
    assert ours.difference_half is not None
    told = (
        f"takes {ours.cpu_s.mean:.3f} times the CPU seconds of airbench94 ({ours.cpu_s.low:.3f} to "
        f"{ours.cpu_s.high:.3f}) and ends {100 * ours.difference:.2f} points above it "
        f"(± {100 * ours.difference_half:.2f};"
    )
    assert told in " ".join(text.split())
    assert ours.cpu_s.high < 1 and ours.rounds >= 5
    without_tta = [run["accuracy_without_tta"] for run in runs_of(record, ours.row)]
    assert f"without it `fastest` ends at {statistics.fmean(without_tta):.3f}" in " ".join(text.split())
    (line,) = (each for each in standings(record) if each.row == ours.row)
    assert line.verdict == "reaches"
    settings = record["settings"]
    assert f"On {settings['dataset']}, to a test accuracy of {settings['target']:g}," in text


def test_what_the_readme_says_of_fresh_seeds() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    record = json.loads((ROOT / "bench" / "records" / "time-to-fastest-fresh-j75-cpu.json").read_bytes())
    against = find_row(record, "airbench94")
    assert against is not None
    (ours,) = compare(record, against)
    assert ours.cpu_s is not None and ours.difference_half is not None
    lines = {each.row: each for each in standings(record)}
    line = lines[ours.row]
    assert line.verdict == "reaches" and lines[against].verdict == "below" and line.runs == 5
    planned = [run["accuracy"] for run in runs_of(record, ours.row)[:3]]
    bound = lower_bound(planned)
    assert bound is not None and bound < record["settings"]["target"]
    assert (
        f"Those of `fastest` end at {statistics.fmean(planned):.4f} with a lower bound of {bound:.4f}, just not shown"
    ) in text
    assert (
        f"five runs end at {line.accuracy:.4f} (lower bound {line.accuracy_low:.4f}), "
        f"{100 * ours.difference:.2f} points above airbench94 (± {100 * ours.difference_half:.2f}), "
        f"whose mean of {lines[against].accuracy:.4f} is below 0.906"
    ) in text
    ratio = f"{ours.cpu_s.mean:.3f} times the CPU seconds ({ours.cpu_s.low:.3f} to {ours.cpu_s.high:.3f}; four rounds;"
    assert ratio in text and ours.rounds == 4
    assert min(run["seed"] for run in record["runs"]) == 10


def test_the_row_of_fastest_is_todays() -> None:
    """So runs of another day are added to it. A digest that was made in another way once cut it off."""
    record = json.loads((ROOT / "bench" / "records" / "time-to-fastest-airbench94-j75-cpu.json").read_bytes())
    (ours,) = contestants("fastest", "fast", None, {}, [])
    sizes = SimpleNamespace(dataset=SimpleNamespace(num_classes=10, image_size=32))
    assert ours.row(cast(Data, sizes)) in (Row(**each) for each in record["rows"])


def test_what_the_readme_shows_of_a_training_is_its_records() -> None:
    text = (ROOT / "README.md").read_text()
    result = json.loads((ROOT / "bench" / "records" / "train-resnet8-8-epochs-j75-cpu.json").read_bytes())
    accuracy, clocks = result["test_accuracy"], result["clocks"]
    assert (
        f"test accuracy on CIFAR-10-J75: {accuracy:.4f} (loss {result['test_loss']:.4f}), last epoch" in text
    )
    assert (
        f"times    train {duration(clocks['train_s'])}, final evaluation {duration(clocks['eval_s'])};"
        in text
    )
    assert f"run      {result['path']}\n" in text
