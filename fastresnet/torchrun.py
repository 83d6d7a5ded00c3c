"""How torchrun started this process: as which of how many ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fastresnet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What torchrun says of a process in its environment; one that was started by itself is rank 0 of 1.

    Attributes:
        rank, world_size: this process's number, from 0, and how many train together.
        local_rank, local_world_size: the same on this host.
        address, port: where the ranks meet; empty and 0 for a process by itself.
        has_agent: torchrun keeps the store at that place, and keeps it over restarts of the ranks.
        restarts_left: how often torchrun would start the ranks again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = ""
    port: int = 0
    has_agent: bool = False
    restarts_left: int = 0

    @property
    def is_alone(self) -> bool:
        """Nobody to meet: neither other ranks nor torchrun."""
        return self.world_size == 1 and not self.has_agent


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return how this process was started.

    Raises:
        UserError: the environment tells of several ranks and not how they meet.
    """
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return Launch()

    def number(name: str, default: int | None = None) -> int:
        text = environ.get(name, "" if default is None else str(default))
        if not text.isdecimal():
            raise UserError(
                f"the environment has RANK and WORLD_SIZE, as torchrun sets them, but {name} is {text!r}; start "
                "with torchrun, or unset them"
            )
        return int(text)

    world_size = number("WORLD_SIZE")
    has_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world_size <= 1 and not has_agent:
        return Launch()
    if not environ.get("MASTER_ADDR"):
        raise UserError("the environment has RANK and WORLD_SIZE but no MASTER_ADDR; start with torchrun")
    launch = Launch(
        rank=number("RANK"),
        world_size=world_size,
        local_rank=number("LOCAL_RANK"),
        local_world_size=number("LOCAL_WORLD_SIZE", world_size),
        address=environ["MASTER_ADDR"],
        port=number("MASTER_PORT"),
        has_agent=has_agent,
        restarts_left=number("TORCHELASTIC_MAX_RESTARTS", 0) - number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if launch.rank >= world_size:
        raise UserError(f"RANK is {launch.rank} and WORLD_SIZE {world_size}; ranks are counted from 0")
    return launch
