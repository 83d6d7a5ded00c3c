"""What the fuzzers share: how many examples they try, and what may come of one."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

from fastresnet.errors import UserError

ENDLESS_S = 120.0
MORE = int(os.environ.get("FASTRESNET_FUZZ", "0"))  # examples a fuzzer, for `make fuzz`


def examples(number: int) -> Callable[[Any], Any]:
    """Return settings for ``number`` examples, the same each time; ``make fuzz`` takes more, and others."""
    return settings(
        max_examples=max(number, MORE),
        derandomize=not MORE,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def outcome(attempt: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what ``attempt`` gives, or the UserError that it raises, which must be one line; nothing else may come.

    What reads a file of some kilobytes for minutes of this process's own time is taken to hang on it.
    """
    began = time.process_time()
    try:
        return attempt(*arguments, **options)
    except UserError as error:
        assert str(error) and "\n" not in str(error), repr(str(error))
        assert len(str(error)) < 4000, "a line nobody reads"
        return error
    finally:
        assert time.process_time() - began < ENDLESS_S, "it takes as long as the file's author likes"


@contextmanager
def bounded_memory(num_bytes: int) -> Any:
    """Fail where Python and NumPy hold more than ``num_bytes`` at once in the body, beyond what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < num_bytes, f"it held {(peak - before) / 1e6:.0f} MB"
