"""How ranks that torchrun started meet, notice that one is lost, and end together with one line."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from fastresnet.engine.distributed import Ranks
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.pulse import Pulse
from fastresnet.errors import ToldElsewhere, UserError
from fastresnet.signals import SIGNALS
from fastresnet.torchrun import Launch, read_launch

MEETING_S = 300.0  # until every rank has started
PATIENCE_S = 1800.0  # for a rank that lives but is slow: it compiles, packs or writes
NOTICE_S = 5.0  # until the pulse has noticed what a failed collective comes from
LEFT_S = 2.0  # in which those that are left say so
HEARD_S = 10.0  # until rank 0 takes up what another rank has to say
POLL_S = 0.02

_active: Session | None = None
_num_sessions = 0


class LostRank(UserError):
    """Another rank of the run is gone."""


class Session:
    """A meeting of all ranks, from :func:`joined` on.

    torchrun keeps one store for the life of a job, in which the keys of an attempt before a restart still stand.
    So each meeting has a name of its own, which rank 0 gives to whoever has just arrived.

    Attributes:
        ranks: what they do together.
        how_to_go_on: what to say of the run when a rank is lost.
        ends_together: every rank is about to end, for a reason that all know.
    """

    def __init__(self, launch: Launch) -> None:
        self.ranks = Ranks(launch)
        self.how_to_go_on = ""
        self.ends_together = False
        self._launch = launch
        self._num_runs = 0
        self._ended: str | None = None  # what the first rank to end has said
        self._job: distributed.Store | None = None
        self._pulse: Pulse | None = None
        if not launch.is_alone:
            self._job = _open_store(launch)
        if not self.ranks.is_alone:
            self._join()

    def _join(self) -> None:
        assert self._job is not None
        backend = "gloo"
        if torch.cuda.is_available() and distributed.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
        patience = timedelta(seconds=PATIENCE_S)
        rank, world_size = self._launch.rank, self._launch.world_size
        try:
            self._meeting = distributed.PrefixStore(self._meet(self._job), self._job)
            distributed.init_process_group(
                backend, store=self._meeting, rank=rank, world_size=world_size, timeout=patience
            )
            group = distributed.new_group(backend="gloo")
        except RuntimeError as error:  # a store or a connection that is gone, or kept a rank waiting too long
            reason = (str(error).splitlines() or [""])[0][:200]
            message = (
                f"the {world_size} ranks have not met: {type(error).__name__}: {reason}; start them again"
            )
            # Who else is here cannot be known.
            raise (UserError if self._speaks_up else ToldElsewhere)(message) from error
        assert group is not None
        self._pulse = Pulse(group, self._has_ended, self._tell_for_main)
        self._pulse.start()

    def _meet(self, job: distributed.Store) -> str:
        """Return the name of this meeting, the same on all ranks."""
        own, rank = uuid.uuid4().hex, self._launch.rank
        if rank:
            job.set(f"hello/{rank}", own)
            meeting = job.get(f"welcome/{own}").decode()  # in MEETING_S at most, as the store was opened
            job.set(f"{meeting}/{rank}", "")
            # Rank 0 may take as long as this rank may wait, and only then says who has not come.
            own_wait: timedelta = job.timeout  # type: ignore[attr-defined] # torch's stubs lack it
            job.wait([f"{meeting}/failed"], own_wait + timedelta(seconds=LEFT_S))
            failed = job.get(f"{meeting}/failed").decode()
            if failed:
                raise ToldElsewhere(failed)
            return meeting
        missing, welcomed = set(range(1, self._launch.world_size)), set()
        end = time.monotonic() + MEETING_S
        while missing:
            for other in sorted(missing):
                if job.check([f"{own}/{other}"]):
                    missing.discard(other)
                elif job.check([f"hello/{other}"]):
                    name = job.get(f"hello/{other}").decode()
                    if name not in welcomed:
                        welcomed.add(name)
                        job.set(f"welcome/{name}", own)
            if time.monotonic() > end:
                message = f"rank {min(missing)} has not started within {MEETING_S:.0f} s"
                job.set(f"{own}/failed", message)
                self._linger()
                raise UserError(message)
            time.sleep(POLL_S)
        job.set(f"{own}/failed", "")
        return own

    @property
    def _speaks_up(self) -> bool:
        """This rank says what rank 0 cannot, where it cannot agree with the others on who does."""
        return self._launch.rank == 1 or self._launch.local_rank == 0

    def run_before_restart(self) -> Path | None:
        """Return the next run that was begun before torchrun started the ranks again; None if there is none.

        It is remembered in the store that torchrun itself keeps, so another job cannot be taken for this one; a
        program that trains several runs goes through them in order.
        """
        self._num_runs += 1
        if self._job is None or not self._job.check([f"run/{self._num_runs}"]):
            return None
        return Path(self._job.get(f"run/{self._num_runs}").decode())

    def remember_run(self, path: Path) -> None:
        """Have torchrun keep where the new run lies, for :meth:`run_before_restart`."""
        if self._job is not None:
            self._job.set(f"run/{self._num_runs}", str(path.resolve()))

    def leave(self) -> None:
        """End the meeting; every rank does."""
        if self._pulse is not None:
            self._pulse.close()
            distributed.destroy_process_group()

    def end(self, error: BaseException) -> BaseException:
        """Return what this rank is to raise when ``error`` has ended its part, having told the others.

        The process groups are left as they are: another rank may be waiting in them for ever.
        """
        if self._pulse is None:
            return error
        self._pulse.take_over()
        if threading.current_thread() is threading.main_thread():
            # torchrun stops the other ranks once one has ended, which is under way here
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_IGN)
        try:
            if isinstance(error, UserError):
                return self._tell(str(error), error)
            if isinstance(error, Exception) and self._pulse.lost(NOTICE_S):
                return self._learn()
            self._meeting.set("ended", f"rank {self._launch.rank} ended: {type(error).__name__}")
        except RuntimeError:  # the store is gone too, and with it what the others say
            return (LostRank if self._speaks_up else ToldElsewhere)(self._loss([0]))
        finally:
            self._linger()
        return error

    def _has_ended(self) -> bool:
        """Return whether a rank has said why it ends, and keep it: the store may end with that rank."""
        if self._ended is None and self._meeting.check(["ended"]):
            self._ended = self._meeting.get("ended").decode()
        return self._ended is not None

    def _tell(self, message: str, error: UserError) -> UserError:
        """Return ``error`` if it is for this rank to show, having told it to the others."""
        self._meeting.compare_set("ended", "", message)
        if self.ranks.is_first:
            self._meeting.set("heard", "")
            return error
        end = time.monotonic() + HEARD_S
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # rank 0 may keep the store, and have ended
                if not self._meeting.check(["heard"]):
                    time.sleep(POLL_S)
                    continue
            return ToldElsewhere(message)
        return error

    def _learn(self) -> UserError:
        """Return why another rank has ended, to be shown by one of those that are left."""
        if self._has_ended():
            assert self._ended is not None
            if not self.ranks.is_first:
                return ToldElsewhere(self._ended)
            self._meeting.set("heard", "")
            return UserError(self._ended)
        rank, everyone = self._launch.rank, range(self._launch.world_size)
        self._meeting.set(f"left/{rank}", "")
        end = time.monotonic() + LEFT_S
        while time.monotonic() < end:
            if rank and self._meeting.check(["left/0"]):
                return ToldElsewhere("a rank is lost")
            time.sleep(POLL_S)
        left = [other for other in everyone if self._meeting.check([f"left/{other}"])]
        message = self._loss(sorted(set(everyone) - set(left)))
        return LostRank(message) if rank == min(left) else ToldElsewhere(message)

    def _loss(self, lost: list[int]) -> str:
        numbers = ", ".join(map(str, lost))
        again = "torchrun starts all ranks again" if self._launch.restarts_left > 0 else self.how_to_go_on
        said = f"rank {numbers} of {self._launch.world_size} is lost: killed, or cut off"
        return f"{said}; {again}" if again else said

    def _tell_for_main(self) -> None:
        """Print what :meth:`end` would have had printed, for a main thread that cannot get there."""
        error = self._learn()
        if not isinstance(error, ToldElsewhere):
            print(f"fastresnet: error: {error}", file=sys.stderr, flush=True)
        self._linger()

    def _linger(self) -> None:
        """Keep the store, where it is this rank that keeps it, until the others have read it."""
        if self._launch.rank == 0 and not self._launch.has_agent:
            time.sleep(LEFT_S)


def _open_store(launch: Launch) -> distributed.Store:
    global _num_sessions
    _num_sessions += 1
    hosts = launch.rank == 0 and not launch.has_agent
    try:
        store = distributed.TCPStore(
            launch.address,
            launch.port,
            launch.world_size,
            hosts,
            timedelta(seconds=MEETING_S),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot reach the other ranks at {launch.address}:{launch.port}; start all of them with torchrun"
        ) from error
    return distributed.PrefixStore(f"fastresnet/{_num_sessions}", store)


@contextmanager
def joined() -> Iterator[Session]:
    """Meet the ranks that torchrun started with this one, and end together with them.

    A process by itself gets a session of its own. Within a session, another call gives the same one.

    Raises:
        UserError: the ranks do not meet; or, in place of what the body raised, another rank has ended.
        ToldElsewhere: so it is, and another rank shows why.
    """
    global _active
    is_outermost = _active is None
    session = _active = _active or Session(read_launch())
    try:
        yield session
    except BaseException as error:
        if isinstance(error, Interrupted):
            session.ends_together = True
        if not is_outermost:
            raise
        if session.ends_together:
            session.leave()
            raise
        ended = session.end(error)
        if ended is not error:
            raise ended from error
        raise
    else:
        if is_outermost:
            session.leave()
    finally:
        if is_outermost:
            _active = None
