"""The catalogue against the reports: every row, its true count, what was printed, and errata."""

from __future__ import annotations

import pytest

from fastresnet.arch import ArchSpec, get_arch
from fastresnet.catalogue import BUDGET, CATALOGUE, TABLES, entries_named, joint_grid
from fastresnet.errors import UserError

# What the reports' networks truly count, worked out apart from this code: table -> name -> parameters.
TRUE_PARAMS: dict[str, dict[str, int]] = {
    "r0-table1": {
        "resnet10-1": 1_530_698,
        "resnet10-2": 4_903_242,
        "resnet12": 4_977_226,
        "resnet16": 4_909_642,
        "resnet20": 4_335_434,
        "resnet24": 4_935_242,
        "resnet32": 4_754_218,
        "resnet48": 4_994_378,
        "resnet86": 4_987_162,
    },
    "r0-logs": {"resnet8": 312_490, "resnet34": 21_282_122},
    "r1-n": {
        "n2-b2-c64": 676_682,
        "n3-b2-c64": 2_777_674,
        "n4-b2-c64": 11_173_962,
        "n5-b2-c64": 44_743_754,
        "n6-b2-c64": 178_992_202,
    },
    "r1-b": {f"n4-b{b}-c64": 4_903_242 + 6_270_720 * (b - 1) for b in range(1, 11)},
    "r1-c": {
        "n4-b2-c2": 11_420,
        "n4-b2-c4": 44_622,
        "n4-b2-c8": 176_402,
        "n4-b2-c16": 701_466,
        "n4-b2-c32": 2_797_610,
        "n4-b2-c64": 11_173_962,
        "n4-b2-c128": 44_662_922,
        "n4-b2-c256": 178_585_866,
    },
    "r1-f": {
        "n4-b2-c64-f1-stem1": 1_407_562,
        "n4-b2-c64": 11_173_962,
        "n4-b2-c64-f5-stem1": 30_702_154,
    },
    "r1-p": {
        "n4-b2-c64-p1": 11_250_762,
        "n4-b2-c64-p2": 11_189_322,
        "n4-b2-c64-p3": 11_173_962,
        "n4-b2-c64-p4": 11_173_962,
    },
    "r1-k": {"n4-b2-c64": 11_173_962, "n4-b2-c64-k3": 12_550_218, "n4-b2-c64-k5": 15_302_730},
    "r1-table8": {
        "n2-b1-c256": 4_866_314,
        "n2-b2-c172": 4_865_030,
        "n2-b3-c140": 4_990_870,
        "n2-b4-c120": 4_965_730,
        "n2-b5-c106": 4_888_412,
        "n2-b6-c96": 4_841_194,
        "n2-b7-c90": 4_985_740,
        "n3-b1-c128": 4_896_394,
        "n3-b2-c85": 4_895_755,
        "n3-b3-c68": 4_884_926,
        "n3-b4-c58": 4_828_452,
        "n3-b5-c52": 4_905_742,
        "n4-b1-c64": 4_903_242,
        "n4-b2-c42": 4_815_940,
        "n4-b3-c34": 4_928_412,
        "n4-b4-c29": 4_875_287,
        "n4-b5-c26": 4_955_636,
        "n5-b1-c32": 4_904_618,
        "n5-b2-c20": 4_376_350,
        "n5-b3-c17": 4_939_173,
        "n5-b4-c14": 4_556_072,
        "n5-b5-c13": 4_968_077,
    },
    "r1-corrected": {
        "n2-b1-c259": 4_980_839,
        "n2-b2-c174": 4_978_672,
        "n2-b5-c107": 4_980_967,
        "n2-b6-c97": 4_942_451,
        "n3-b1-c129": 4_973_089,
        "n3-b4-c59": 4_996_189,
        "n5-b2-c21": 4_824_403,
        "n4-b2-c64-f1": 1_409_098,
        "n4-b2-c64-f5": 30_703_690,
    },
    "r1-missing": {
        "n3-b6-c47": 4_845_005,
        "n3-b7-c44": 4_979_974,
        "n4-b6-c23": 4_689_917,
        "n4-b7-c21": 4_586_641,
        "n5-b6-c11": 4_302_561,
        "n5-b7-c10": 4_171_780,
    },
    "r1-final": {"n3-b2-c85-p8": 4_895_755},
    "r2": {"improved-resnet": 4_903_082},
    "r3": {"resnet18-c42": 4_815_940, "resnet18-c64": 11_173_962, "resnet18-c80": 17_454_170},
    "ours": {"fastresnet8": 1_973_186},
}

# The rows whose printed count is not the true one: (table, name) -> printed.
WRONG_COUNTS = {
    ("r0-table1", "resnet10-1"): 312_490,
    ("r0-table1", "resnet86"): 4_994_378,
    ("r1-table8", "n2-b1-c256"): 4_943_114,
    ("r1-table8", "n2-b2-c172"): 4_916_630,
    ("r1-table8", "n2-b5-c106"): 4_920_212,
    ("r1-table8", "n2-b6-c96"): 4_962_154,
    ("r1-table8", "n3-b1-c128"): 4_911_754,
    ("r1-table8", "n3-b4-c58"): 4_835_412,
    ("r1-table8", "n5-b2-c20"): 4_824_403,
    ("r1-corrected", "n4-b2-c64-f1"): 1_407_562,
    ("r1-corrected", "n4-b2-c64-f5"): 30_702_154,
}


def test_every_row_is_in_the_catalogue_with_its_true_count() -> None:
    found: dict[str, dict[str, int]] = {table: {} for table in TABLES}
    for entry in CATALOGUE:
        assert entry.name not in found[entry.table], "a table has a name twice"
        found[entry.table][entry.name] = entry.true_params
    assert found == TRUE_PARAMS


def test_printed_counts_differ_from_true_ones_exactly_where_known_and_say_why() -> None:
    wrong = {
        (entry.table, entry.name): entry.printed_params
        for entry in CATALOGUE
        if entry.printed_params not in (None, entry.true_params)
    }
    assert wrong == WRONG_COUNTS
    marked = {(entry.table, entry.name) for entry in CATALOGUE if entry.erratum}
    # right counts beside a wrong text (P=3 in the sweep of N) or a wrong accuracy (ResNet-24)
    others = {("r1-n", name) for name in TRUE_PARAMS["r1-n"]} | {("r0-table1", "resnet24")}
    assert marked == set(WRONG_COUNTS) | others


def test_printed_accuracies_of_every_table() -> None:
    def printed(table: str) -> list[float | None]:
        return [entry.printed_accuracy for entry in CATALOGUE if entry.table == table]

    assert printed("r1-n") == [0.8154, 0.8352, 0.8292, 0.8136, 0.8174]
    assert printed("r1-b") == [0.8016, 0.8258, 0.8338, 0.8333, 0.8366, 0.8371, 0.8481, 0.8418, 0.8340, 0.8333]
    assert printed("r1-c") == [0.4722, 0.5843, 0.6928, 0.7407, 0.7918, 0.8292, 0.8363, 0.8426]
    assert printed("r1-f") == [0.3128, 0.8292, 0.8197]
    assert printed("r1-p") == [0.8244, 0.8250, 0.8272, 0.8255]
    assert printed("r1-k") == [0.8255, 0.8292, 0.8197]
    joint = (
        "8644 8926 9066 9000 9009 8988 9019 8943 9104 9041 9070 8985 8974 8939 8979 8900 8828 8772 8633 8656"
    )
    assert printed("r1-table8") == [int(digits) / 10_000 for digits in joint.split()] + [0.8617, 0.8614]
    assert [entry.printed_accuracy for entry in entries_named("improved-resnet")] == [0.86968]
    assert [entry.printed_accuracy for entry in entries_named("resnet18-c42")] == [0.909545]


def test_a_name_is_one_network_and_a_slug_name_is_its_own_slug() -> None:
    specs: dict[str, ArchSpec] = {}
    for entry in CATALOGUE:
        assert specs.setdefault(entry.name, entry.spec) == entry.spec
        assert get_arch(entry.name) == entry.spec
        if entry.table.startswith("r1-"):
            assert entry.name == entry.spec.slug


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown architecture 'improved-resnt'; did you mean 'improved-resnet'\?"
    ):
        get_arch("improved-resnt")


def test_joint_grid_is_table_8_corrected_and_completed() -> None:
    printed = {entry.name for entry in CATALOGUE if entry.table in ("r1-table8", "r1-missing")}
    corrected = {
        entry.name for entry in CATALOGUE if entry.table == "r1-corrected" and entry.true_params <= BUDGET
    }
    wrong_width = {name for _, name in WRONG_COUNTS if name in TRUE_PARAMS["r1-table8"]}
    grid = {spec.slug for spec in joint_grid()}
    assert len(grid) == 28
    assert grid == (printed - wrong_width) | (corrected - {"n4-b2-c64-f1"})
