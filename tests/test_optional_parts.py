"""A missing optional part skips its tests, unless FASTRESNET_REQUIRE asks for it."""

from __future__ import annotations

import pytest
from optional_parts import PARTS, need


@pytest.fixture
def dali_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "dali", lambda: False)


@pytest.mark.parametrize("required", ["", "ffcv"])
def test_a_missing_part_skips(dali_is_missing: None, monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("FASTRESNET_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match="dali is missing") as skipped:
        need("dali")
    assert skipped.value.allow_module_level


@pytest.mark.parametrize("required", ["dali", "ffcv, dali"])
def test_a_missing_part_that_is_required_fails(
    dali_is_missing: None, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("FASTRESNET_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="dali is missing"):
        need("dali")


def test_a_part_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "dali", lambda: True)
    monkeypatch.setenv("FASTRESNET_REQUIRE", "dali")
    need("dali")


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRESNET_REQUIRE", "dally")
    with pytest.raises(AssertionError, match="dally"):
        need("triton")


def test_every_part_can_be_looked_for() -> None:
    assert {part: type(is_there()) for part, is_there in PARTS.items()} == dict.fromkeys(PARTS, bool)
