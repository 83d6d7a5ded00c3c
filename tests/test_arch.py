"""The architecture space: counts, slugs and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from arch_strategies import specs
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.arch import ArchSpec, Dropout, get_arch
from fastresnet.errors import UserError
from fastresnet.slug import parse_slug
from fastresnet.widest import widest_like, widest_under


@pytest.mark.parametrize(("name", "multiply_adds"), [("resnet24", 529_205_760), ("resnet8", 49_124_352)])
def test_multiply_adds(name: str, multiply_adds: int) -> None:
    assert get_arch(name).num_multiply_adds() == multiply_adds


def test_improved_resnet_stage_by_stage() -> None:
    spec = get_arch("improved-resnet")
    assert (spec.block, spec.activation, spec.stem_width, spec.blocks) == (
        "bottleneck",
        "leaky_relu",
        32,
        (3, 3, 3),
    )
    assert spec.dropout.stage > 0 and spec.dropout.head == spec.dropout.block == 0
    total, after = 0, []
    for layer in spec.layers():
        total += layer.params
        if layer.name.endswith(".dropout"):
            after.append(total)
    assert after == [206_496, 1_146_016, 4_892_832]
    assert total == 4_903_082


@pytest.mark.parametrize(
    ("slug", "image_size", "features"),
    [
        ("n3-b1-c8-p4", 32, 32 * 4),  # 8x8 map, 2x2 windows
        ("n4-b1-c8-p3", 32, 64 * 1),  # 4x4 map: the last row and column are left out
        ("n3-b1-c8-p3-bottleneck", 28, 4 * 32 * 4),  # 7x7 map, 2x2 windows
        ("n3-b1-c8", 33, 32),  # maps of 33, 17 and 9
    ],
)
def test_head_inputs(slug: str, image_size: int, features: int) -> None:
    head = parse_slug(slug).layers(num_classes=7, image_size=image_size)[-1]
    assert (head.params, head.multiply_adds) == (7 * features + 7, 7 * features)


def test_depth_names_the_network() -> None:
    for name in (
        "resnet8",
        "resnet12",
        "resnet16",
        "resnet20",
        "resnet24",
        "resnet32",
        "resnet34",
        "resnet86",
    ):
        assert get_arch(name).depth == int(name.removeprefix("resnet"))
    assert get_arch("improved-resnet").depth == 3 * 9 + 2
    assert get_arch("n4-b0,1,0,1-c8-maxpool").depth == 1 + 3 + 2 * 2 + 1


@given(specs())
def test_slug_round_trip(spec: ArchSpec) -> None:
    assert parse_slug(spec.slug) == spec
    assert parse_slug(spec.slug).slug == spec.slug


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("n4-b3,3,2,3-c64,128,128,256-p4", "n4-b3,3,2,3-c64,128,128,256-p4"),
        ("n4-b2,2,2,2-c64,128,256,512", "n4-b2-c64"),
        ("n2-b1-c8-f3-k1,1-stem3-relu", "n2-b1-c8"),
        ("c8-bottleneck-n2-gelu-b1", "n2-b1-c8-bottleneck-gelu"),
        ("n2-headmax-maxpool-b1-plain-c8", "n2-b1-c8-plain-maxpool-headmax"),
        ("n2-b1-c8-stem5x8", "n2-b1-c8-stem5"),
        ("maxpool-n3-b0,1,1-c8", "n3-b0,1,1-c8-maxpool"),
        ("n2-b1-c8-f3,5-k1,3-stem1x4-dh.5-db0.20", "n2-b1-c8-f3,5-k1,3-stem1x4-dh0.5-db0.2"),
    ],
)
def test_slug_is_canonical(text: str, canonical: str) -> None:
    assert parse_slug(text).slug == canonical


def test_a_single_c_doubles_and_a_single_b_repeats() -> None:
    spec = parse_slug("n3-b2-c85")
    assert (spec.blocks, spec.channels, spec.pool) == ((2, 2, 2), (85, 170, 340), None)


@pytest.mark.parametrize(
    ("slug", "says"),
    [
        ("n4-b2,3-c64", "b has 2 values for n4; give 4, or 1"),
        ("n4-b2-c64,128,256", "c has 3 values for n4; give 4, or 1, which doubles"),
        ("n4-b2", "c is missing"),
        ("n4-b2-c64-f2", "kernels[0] is 2; it must be an odd number"),
        ("n4-b2-c64-k1,1,4,1", "shortcut_kernels[2] is 4; it must be an odd number"),
        ("n2-b1,0-c4", "from 1 to 1000, or 0 where max pools halve the maps (maxpool)"),
        ("n2-b0-c4-maxpool", "blocks has only zeros"),
        ("n2-b0,1-c4-stem3x2-maxpool", "stem_channels is 2 and stage 1 of 4 channels has no blocks"),
        ("n2-b2-c0,4", "channels[0] is 0; it must be a whole number from 1"),
        ("n2-b1-c4-k3-plain", "plain blocks have no shortcuts; leave it out"),
        ("n2-b0-c4", "blocks[0] is 0; it must be a whole number from 1"),
        ("n0-b1-c4", "n is 0; it must be 1 to 12"),
        ("n999999-b1-c4", "n is 999999; it must be 1 to 12"),
        ("n2-b1-c4-p0", "pool is 0"),
        ("n2-b1-c4-p2,2", "p takes one value"),
        ("n2-b1-c4-stem2", "stem is 2; it must be an odd number"),
        ("n2-b1-c4-dh1.0", "dropout.head is 1.0; it must be a number from 0"),
        ("n2-b1-c4-b2", "'b2' gives again"),
        ("n2-b1-c4-gelu-silu", "'silu' gives again"),
        ("n2-b1-c4-x3", "cannot read 'x3'"),
        ("n2-b1-c4-", "cannot read ''"),
        ("n2-b-1-c4", "cannot read 'b'"),
    ],
)
def test_bad_slugs_say_which_part_and_what_is_allowed(slug: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        get_arch(slug)
    assert says in str(caught.value) and slug in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channels": (4, 8, 16)}, "channels has 3 values and blocks has 2"),
        ({"kernels": (3,)}, "kernels has 1 values and blocks has 2"),
        ({"shortcut_kernels": (1, 1, 1)}, "shortcut_kernels has 3 values"),
        ({"kernels": (3, 4)}, "kernels[1] is 4; it must be an odd number from 1 to 31"),
        ({"kernels": 3}, "kernels is 3; give a tuple"),
        ({"channels": (4, 0)}, "channels[1] is 0; it must be a whole number from 1"),
        ({"channels": (4, 8.0)}, "channels[1] is 8.0"),
        ({"blocks": (), "channels": ()}, "blocks has 0 values"),
        ({"blocks": (1, -1)}, "blocks[1] is -1"),
        ({"pool": 0}, "pool is 0"),
        ({"stem": 6}, "stem is 6"),
        ({"stem_channels": 0}, "stem_channels is 0"),
        ({"block": "botleneck"}, "did you mean 'bottleneck'?"),
        ({"activation": "leakyrelu"}, "did you mean 'leaky_relu'?"),
        ({"dropout": 0.5}, "it must be a Dropout"),
    ],
)
def test_spec_refuses(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        ArchSpec(**{"blocks": (1, 1), "channels": (4, 8), **fields})
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.1", True])
def test_dropout_refuses(rate: Any) -> None:
    with pytest.raises(UserError, match=r"dropout\.stage is"):
        Dropout(stage=rate)


def test_image_size_is_checked_against_pool_and_stages() -> None:
    spec = parse_slug("n4-b1-c4-p5")
    with pytest.raises(UserError, match=r"pool \(P\) is 5 .* 4x4; P may be 1 to 4"):
        spec.validate_for(32)
    spec.validate_for(33)
    with pytest.raises(UserError, match=r"image size 16 is too small for 6 stages.*at least 17"):
        parse_slug("n6-b1-c4").num_params(image_size=16)
    assert parse_slug("n6-b1-c4").map_sizes(17) == (17, 9, 5, 3, 2, 1)
    with pytest.raises(UserError, match="number of classes is 1"):
        parse_slug("n1-b1-c4").layers(num_classes=1)


def test_replace_keeps_what_it_is_not_given() -> None:
    spec = parse_slug("n3-b1-c8-f5-k3-p2")
    assert spec.replace(activation="gelu").slug == "n3-b1-c8-f5-k3-p2-gelu"
    assert spec.replace(blocks=(1, 1), channels=(8, 16)).slug == "n2-b1-c8-f5-k3-p2"
    with pytest.raises(UserError, match="kernels has 3 values and blocks has 2"):
        parse_slug("n3-b1-c8-f5,3,3").replace(blocks=(1, 1), channels=(8, 16))


@given(budget=st.integers(2_000, 10_000_000), stages=st.integers(1, 5), blocks=st.integers(1, 7))
def test_widest_under_is_the_widest(budget: int, stages: int, blocks: int) -> None:
    def params(width: int) -> int:
        return parse_slug(f"n{stages}-b{blocks}-c{width}").num_params()

    if params(1) > budget:
        with pytest.raises(UserError, match="no width fits a budget"):
            widest_under(budget, stages, blocks)
        return
    width = widest_under(budget, stages, blocks).channels[0]
    assert params(width) <= budget < params(width + 1)


@pytest.mark.parametrize(
    "slug",
    [
        "n3-b2-c8-f5",
        "n3-b2-c8-f1",
        "n3-b2-c8-k3",
        "n3-b2-c8-p1",
        "n3-b2-c8-stem7",
        "n3-b2-c8-stem3x64",
        "n3-b2-c8-bottleneck",
        "n3-b0,2,1-c8-maxpool",
    ],
)
def test_the_widest_like_a_network_is_the_widest(slug: str) -> None:
    template = parse_slug(slug)

    def wide(width: int) -> ArchSpec:
        return template.replace(channels=(width, 2 * width, 4 * width))

    found = widest_like(template, 5_000_000, num_classes=7, image_size=33)
    width = found.channels[0]
    assert found == wide(width) and width > 8
    assert wide(width).num_params(7, 33) <= 5_000_000 < wide(width + 1).num_params(7, 33)


def test_the_widest_may_be_that_of_the_stem() -> None:
    template = parse_slug("n1-b1-c8-stem3x64")
    counts = {width: template.replace(channels=(width,)).num_params() for width in (63, 64, 65)}
    assert counts[64] < counts[63] < counts[65]
    for budget in (counts[64], counts[63] - 1, counts[63]):
        assert widest_like(template, budget).channels == (64,)


def test_widest_under_may_spend_the_whole_budget() -> None:
    assert widest_under(4_903_242, 4, 1).channels[0] == 64
    assert widest_under(4_903_241, 4, 1).channels[0] == 63
