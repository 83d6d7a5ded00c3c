"""Ranks that do not meet: each ends in time, and one line says why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from optional_parts import need
from test_distributed import ended, started
from torch import distributed

from fastresnet.engine import session
from fastresnet.engine.session import joined
from fastresnet.errors import ToldElsewhere, UserError
from fastresnet.torchrun import Launch

# A rank that meets the others and no more; the last one never comes.
MEET = """
import os, pathlib, sys, time
rank = os.environ["RANK"]
if rank == "2":
    sys.exit()
from fastresnet.cli.launched import leave
from fastresnet.engine import session
from fastresnet.errors import ToldElsewhere, UserError
session.MEETING_S = 3.0
pathlib.Path(rank).touch()  # neither has to wait for the other's imports
while not (pathlib.Path("0").exists() and pathlib.Path("1").exists()):
    time.sleep(0.01)
try:
    with session.joined():
        pass
except UserError as error:
    if not isinstance(error, ToldElsewhere):
        print(error, file=sys.stderr)
    leave(2)
"""


def test_a_rank_that_never_comes_is_one_line_of_rank_0(tmp_path: Path) -> None:
    """The others waited half an hour for it, and then had a traceback."""
    need("torchrun")
    with started(tmp_path, 3, "-c", MEET) as ranks:
        codes, _, said = ended(ranks)
    assert codes == [2, 2, 0]
    assert said == ["rank 2 has not started within 3 s\n", "", ""]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[distributed.Store]:
    """The job's store, whose waits are short."""
    need("torchrun")
    kept = distributed.HashStore()
    kept.set_timeout(timedelta(seconds=1))
    monkeypatch.setattr(session, "_open_store", lambda launch: kept)
    monkeypatch.setattr(session, "PATIENCE_S", 1.0)
    yield kept
    assert session._active is None and not distributed.is_initialized()


def arrive(monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int) -> None:
    launch = Launch(rank=rank, world_size=3, local_rank=local_rank, local_world_size=3, address="x", port=1)
    monkeypatch.setattr(session, "read_launch", lambda: launch)


@pytest.mark.parametrize(("rank", "kind"), [(1, UserError), (2, ToldElsewhere)])
def test_no_rank_0_is_one_line(
    rank: int, kind: type[UserError], store: distributed.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(monkeypatch, rank, rank)
    with (
        pytest.raises(UserError, match=r"^the 3 ranks have not met: .*; start them again$") as found,
        joined(),
    ):
        pass
    assert type(found.value) is kind and "\n" not in str(found.value)


def test_rank_0_is_heard_that_says_at_the_last_moment_who_has_not_come(
    store: distributed.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that was welcomed at once had waited as long as rank 0, and spoke of its own wait."""
    arrive(monkeypatch, 1, 1)

    def meet() -> None:
        store.set(f"welcome/{store.get('hello/1').decode()}", "m")
        time.sleep(1.3)  # the store's waits are of 1 s
        store.set("m/failed", "rank 2 has not started within 1 s")

    first = threading.Thread(target=meet)
    first.start()
    with pytest.raises(ToldElsewhere, match=r"^rank 2 has not started within 1 s$"), joined():
        pass
    first.join()


@pytest.mark.parametrize("failed", ["", "rank 2 has not started within 300 s"])
def test_ranks_that_are_gone_after_the_welcome_are_one_line(
    failed: str, store: distributed.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(monkeypatch, 1, 1)

    def welcome() -> None:
        """What rank 0 does, before it is gone."""
        store.set("m/failed", failed)
        store.set(f"welcome/{store.get('hello/1').decode()}", "m")

    first = threading.Thread(target=welcome)
    first.start()
    with pytest.raises(UserError) as found, joined():
        pass
    first.join()
    if failed:
        assert isinstance(found.value, ToldElsewhere) and str(found.value) == failed
    else:
        assert type(found.value) is UserError and "the 3 ranks have not met" in str(found.value)
