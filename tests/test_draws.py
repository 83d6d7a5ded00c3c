"""The hash gives the same integers everywhere, and the ones that splitmix64 is known for."""

import numba
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastresnet import draws
from fastresnet.draws import Purpose

KEYS = st.integers(0, 2**64 - 1)
INDICES = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)

# The first outputs of splitmix64 seeded with 1234567, from its authors' reference program.
KNOWN = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)

_draw_compiled = numba.njit(draws.draw_scalar)


def test_known_outputs() -> None:
    drawn = draws.draw(1234567, np.arange(5))
    assert drawn.tolist() == [output >> 1 for output in KNOWN]
    assert drawn.dtype == np.int64


@given(KEYS, INDICES)
def test_numpy_numba_and_torch_agree(key: int, index: list[int]) -> None:
    expected = draws.draw(key, np.array(index))
    compiled = [_draw_compiled(np.uint64(key), np.uint64(i)) for i in index]
    assert expected.tolist() == compiled
    assert expected.tolist() == draws.draw_tensor(key, torch.tensor(index)).tolist()
    assert expected.min() >= 0


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_streams_of_neighbours_differ(seed: int, time: int) -> None:
    keys = {draws.stream(seed, purpose, time + step) for purpose in Purpose for step in range(3)}
    keys |= {draws.stream(seed + 1, purpose, time) for purpose in Purpose}
    assert len(keys) == 4 * len(Purpose)


@given(KEYS, st.integers(1, 500))
def test_permutation_holds_every_index_once(key: int, size: int) -> None:
    index = np.arange(0, 3 * size, 3)
    order = draws.permutation(key, index)
    assert sorted(order.tolist()) == index.tolist()
    assert np.all(np.diff(draws.draw(key, order)) >= 0)


@given(KEYS, st.integers(1, 1000))
def test_bounded_and_uniform_draws_stay_in_range(key: int, bound: int) -> None:
    index = np.arange(200)
    assert 0 <= draws.below(key, index, bound).min() <= draws.below(key, index, bound).max() < bound
    assert 0 <= draws.uniform(key, index).min() <= draws.uniform(key, index).max() < 1


def test_draws_look_uniform() -> None:
    """Each of 16 bins of 160,000 draws is within 5 standard deviations of its share."""
    bins = np.bincount(draws.below(draws.stream(0, Purpose.ORDER, 0), np.arange(160_000), 16), minlength=16)
    assert np.abs(bins - 10_000).max() < 5 * 97
    assert abs(draws.uniform(7, np.arange(100_000)).mean() - 0.5) < 5 * 0.00092


def test_scalar_seed_is_a_draw() -> None:
    key = draws.stream(3, Purpose.INIT, 0)
    assert draws.scalar_seed(3, Purpose.INIT, 0, 4) == draws.draw(key, np.array([4]))[0]
