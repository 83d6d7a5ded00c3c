"""Every network that the four course reports print, and our own, by name: printed figures beside recomputed counts.

Only what was printed is typed here; parameters and multiply-adds are always computed from the spec. A
network that several tables print (``n4-b2-c64`` is in five sweeps) has an entry in each, since their
accuracies differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastresnet.arch import ArchSpec
from fastresnet.slug import parse_slug
from fastresnet.widest import widest_under

BUDGET = 5_000_000  # parameters; the limit all four reports worked under

TABLES = {
    "r0-table1": "R0, Table 1: ResNet-10 to ResNet-86 under 5M parameters",
    "r0-logs": "R0, in its logs only",
    "r1-n": "R1, sweep of N around N=4 B=2 C=64 F=3 K=1 (10 epochs, no augmentation)",
    "r1-b": "R1, sweep of B",
    "r1-c": "R1, sweep of C",
    "r1-f": "R1, sweep of F",
    "r1-p": "R1, sweep of P",
    "r1-k": "R1, sweep of K",
    "r1-table8": "R1, Table 8: joint optimisation under 5M parameters (50 epochs)",
    "r1-corrected": "R1, what its own rules give where a printed row breaks them",
    "r1-missing": "R1, feasible cells that Table 8 leaves out",
    "r1-final": "R1, the final run (500 epochs)",
    "r2": "R2, ImprovedResNet",
    "r3": "R3, channel choice",
    "ours": "fastresnet's own: built to reach a target soonest",
}


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One row of one table of a report, or a network of our own.

    Attributes:
        name: unique to the spec, not to the row.
        spec: the network.
        table: a key of :data:`TABLES`.
        printed_params: parameters as printed, None where none are.
        printed_accuracy: in [0, 1], as printed.
        erratum: what is wrong with the printed row, in plain words; None where it is right.
        note: what else a reader should know.
    """

    name: str
    spec: ArchSpec
    table: str
    printed_params: int | None = None
    printed_accuracy: float | None = None
    erratum: str | None = None
    note: str | None = None

    @property
    def true_params(self) -> int:
        """Parameters for ten classes of 32x32 images, recomputed."""
        return self.spec.num_params()

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one 32x32 image, recomputed."""
        return self.spec.num_multiply_adds()


def entries_named(name: str) -> tuple[CatalogueEntry, ...]:
    """Return the rows of that name, in table order; empty where there is none."""
    return tuple(entry for entry in CATALOGUE if entry.name == name)


def joint_grid() -> tuple[ArchSpec, ...]:
    """Return R1's joint grid in full: the widest network under 5M for N = 2..5 and B = 1..7, 28 cells."""
    return tuple(widest_under(BUDGET, stages, blocks) for stages in range(2, 6) for blocks in range(1, 8))


def _r0() -> Iterator[CatalogueEntry]:
    errata = {
        "resnet10-1": "the printed count is that of B=1,1,1 C=32,64,128 (resnet8), which its logs ran",
        "resnet24": "the printed 94.8% test accuracy is on validation images (94.84%); "
        "its confusion matrix on test sums to 94.59%",
        "resnet86": "the printed count was copied from the row above (resnet48)",
    }
    notes = {"resnet20": "the final map is 8x8, so P=4 gives the head 1,024 inputs"}
    for name, slug, printed in (
        ("resnet10-1", "n3-b1,2,1-c64-p4", 312_490),
        ("resnet10-2", "n4-b1-c64-p4", 4_903_242),
        ("resnet12", "n4-b2,1,1,1-c64-p4", 4_977_226),
        ("resnet16", "n4-b2,1,2,2-c64,128,256,256-p4", 4_909_642),
        ("resnet20", "n3-b3-c64-p4", 4_335_434),
        ("resnet24", "n4-b3,3,2,3-c64,128,128,256-p4", 4_935_242),
        ("resnet32", "n4-b4,4,4,3-c32-p4", 4_754_218),
        ("resnet48", "n4-b8,5,5,5-c64,128,128,128-p4", 4_994_378),
        ("resnet86", "n4-b10,8,10,14-c16-p4", 4_994_378),
    ):
        yield CatalogueEntry(
            name=name,
            spec=parse_slug(slug),
            table="r0-table1",
            printed_params=printed,
            printed_accuracy=0.948 if name == "resnet24" else None,
            erratum=errata.get(name),
            note=notes.get(name),
        )
    yield CatalogueEntry(
        name="resnet8", spec=parse_slug("n3-b1-c32-p4"), table="r0-logs", printed_params=312_490
    )
    yield CatalogueEntry(
        name="resnet34", spec=parse_slug("n4-b3,4,6,3-c64-p4"), table="r0-logs", note="over the 5M budget"
    )


def _rows(
    table: str,
    rows: tuple[tuple[str, int, float], ...],
    erratum: str | None = None,
    errata: dict[str, str] | None = None,
    notes: dict[str, str] | None = None,
) -> Iterator[CatalogueEntry]:
    """Rows of (slug, printed parameters, printed accuracy), named by their slugs."""
    for slug, printed, accuracy in rows:
        yield CatalogueEntry(
            name=slug,
            spec=parse_slug(slug),
            table=table,
            printed_params=printed,
            printed_accuracy=accuracy,
            erratum=(errata or {}).get(slug, erratum),
            note=(notes or {}).get(slug),
        )


def _r1_sweeps() -> Iterator[CatalogueEntry]:
    yield from _rows(
        "r1-n",
        (
            ("n2-b2-c64", 676_682, 0.8154),
            ("n3-b2-c64", 2_777_674, 0.8352),
            ("n4-b2-c64", 11_173_962, 0.8292),
            ("n5-b2-c64", 44_743_754, 0.8136),
            ("n6-b2-c64", 178_992_202, 0.8174),
        ),
        erratum="the text says P=3; the printed counts hold with global pooling",
    )
    accuracies = (0.8016, 0.8258, 0.8338, 0.8333, 0.8366, 0.8371, 0.8481, 0.8418, 0.8340, 0.8333)
    yield from _rows(
        "r1-b",
        tuple((f"n4-b{b}-c64", 4_903_242 + 6_270_720 * (b - 1), accuracies[b - 1]) for b in range(1, 11)),
    )
    yield from _rows(
        "r1-c",
        (
            ("n4-b2-c2", 11_420, 0.4722),
            ("n4-b2-c4", 44_622, 0.5843),
            ("n4-b2-c8", 176_402, 0.6928),
            ("n4-b2-c16", 701_466, 0.7407),
            ("n4-b2-c32", 2_797_610, 0.7918),
            ("n4-b2-c64", 11_173_962, 0.8292),
            ("n4-b2-c128", 44_662_922, 0.8363),
            ("n4-b2-c256", 178_585_866, 0.8426),
        ),
    )
    stem = "the printed count holds only with a 1x1 stem; with the 3x3 stem the row is "
    yield from _rows(
        "r1-f",
        (
            ("n4-b2-c64-f1-stem1", 1_407_562, 0.3128),
            ("n4-b2-c64", 11_173_962, 0.8292),
            ("n4-b2-c64-f5-stem1", 30_702_154, 0.8197),
        ),
        notes={"n4-b2-c64-f1-stem1": stem + "n4-b2-c64-f1", "n4-b2-c64-f5-stem1": stem + "n4-b2-c64-f5"},
    )
    yield from _rows(
        "r1-p",
        (
            ("n4-b2-c64-p1", 11_250_762, 0.8244),
            ("n4-b2-c64-p2", 11_189_322, 0.8250),
            ("n4-b2-c64-p3", 11_173_962, 0.8272),
            ("n4-b2-c64-p4", 11_173_962, 0.8255),
        ),
    )
    yield from _rows(
        "r1-k",
        (
            ("n4-b2-c64", 11_173_962, 0.8255),
            ("n4-b2-c64-k3", 12_550_218, 0.8292),
            ("n4-b2-c64-k5", 15_302_730, 0.8197),
        ),
    )


def _r1_joint() -> Iterator[CatalogueEntry]:
    pool = "the printed count was taken with P={}, not with the report's global pooling"
    errata = {
        slug: pool.format(4) for slug in ("n2-b1-c256", "n2-b2-c172", "n2-b5-c106", "n3-b1-c128", "n3-b4-c58")
    }
    errata["n2-b6-c96"] = pool.format(2)
    errata["n5-b2-c20"] = "the printed count is that of C=21 (n5-b2-c21)"
    yield from _rows(
        "r1-table8",
        (
            ("n2-b1-c256", 4_943_114, 0.8644),
            ("n2-b2-c172", 4_916_630, 0.8926),
            ("n2-b3-c140", 4_990_870, 0.9066),
            ("n2-b4-c120", 4_965_730, 0.9000),
            ("n2-b5-c106", 4_920_212, 0.9009),
            ("n2-b6-c96", 4_962_154, 0.8988),
            ("n2-b7-c90", 4_985_740, 0.9019),
            ("n3-b1-c128", 4_911_754, 0.8943),
            ("n3-b2-c85", 4_895_755, 0.9104),
            ("n3-b3-c68", 4_884_926, 0.9041),
            ("n3-b4-c58", 4_835_412, 0.9070),
            ("n3-b5-c52", 4_905_742, 0.8985),
            ("n4-b1-c64", 4_903_242, 0.8974),
            ("n4-b2-c42", 4_815_940, 0.8939),
            ("n4-b3-c34", 4_928_412, 0.8979),
            ("n4-b4-c29", 4_875_287, 0.8900),
            ("n4-b5-c26", 4_955_636, 0.8828),
            ("n5-b1-c32", 4_904_618, 0.8772),
            ("n5-b2-c20", 4_824_403, 0.8633),
            ("n5-b3-c17", 4_939_173, 0.8656),
            ("n5-b4-c14", 4_556_072, 0.8617),
            ("n5-b5-c13", 4_968_077, 0.8614),
        ),
        errata=errata,
    )
    for slug, printed_width in (
        ("n2-b1-c259", 256),
        ("n2-b2-c174", 172),
        ("n2-b5-c107", 106),
        ("n2-b6-c97", 96),
        ("n3-b1-c129", 128),
        ("n3-b4-c59", 58),
        ("n5-b2-c21", 20),
    ):
        note = f"the widest under 5M; Table 8 prints C={printed_width}"
        yield CatalogueEntry(name=slug, spec=parse_slug(slug), table="r1-corrected", note=note)
    for slug, printed in (("n4-b2-c64-f1", 1_407_562), ("n4-b2-c64-f5", 30_702_154)):
        yield CatalogueEntry(
            name=slug,
            spec=parse_slug(slug),
            table="r1-corrected",
            printed_params=printed,
            erratum="the printed count is that of a 1x1 stem; the report's stem is 3x3",
        )
    for slug in ("n3-b6-c47", "n3-b7-c44", "n4-b6-c23", "n4-b7-c21", "n5-b6-c11", "n5-b7-c10"):
        yield CatalogueEntry(name=slug, spec=parse_slug(slug), table="r1-missing")
    yield CatalogueEntry(
        name="n3-b2-c85-p8",
        spec=parse_slug("n3-b2-c85-p8"),
        table="r1-final",
        printed_params=4_895_755,
        printed_accuracy=0.9252,
        note="0.9252 is the last epoch's accuracy, 0.9267 the best one's; P=8 is the whole last map",
    )


def _r2_r3() -> Iterator[CatalogueEntry]:
    yield CatalogueEntry(
        name="improved-resnet",
        spec=parse_slug("n3-b3-c64-stem3x32-bottleneck-leaky_relu-ds0.2"),
        table="r2",
        printed_params=4_903_082,
        printed_accuracy=0.86968,
        note="the LeakyReLU slope (here 0.01) and the dropout after stages (here 0.2; it found 0.1 to 0.3 "
        "best) are not stated",
    )
    mean = "the printed accuracy is a mean of per-batch accuracies"
    over = "from its channel sweep; over the 5M budget"
    for width, printed, accuracy, note in (
        (42, 4_815_940, 0.909545, mean),
        (64, None, 0.8947, f"{over}; {mean}"),
        (80, None, 0.9016, f"{over}; {mean}"),
    ):
        yield CatalogueEntry(
            name=f"resnet18-c{width}",
            spec=parse_slug(f"n4-b2-c{width}-p4"),
            table="r3",
            printed_params=printed,
            printed_accuracy=accuracy,
            note=note,
        )


def _ours() -> Iterator[CatalogueEntry]:
    note = (
        "eight weight layers without shortcuts: a stem, and in each later stage a convolution, a max pool and a "
        "convolution"
    )
    yield CatalogueEntry(
        name="fastresnet8",
        spec=parse_slug("n4-b0,1,1,1-c24,64,256,256-plain-gelu-maxpool-headmax"),
        table="ours",
        note=note,
    )


CATALOGUE: tuple[CatalogueEntry, ...] = (*_r0(), *_r1_sweeps(), *_r1_joint(), *_r2_r3(), *_ours())
