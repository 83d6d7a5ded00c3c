"""The database of a sweep: its URL, a lock that all its workers share, and what is said when it fails."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastresnet.atomic import explain_os_error
from fastresnet.errors import UserError
from fastresnet.installing import install_extra

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")  # those that Optuna supports
SQLITE_WAIT_S = 60  # for another process's transaction
# A worker whose machine is lost inside the lock keeps it no longer than this; what is done under it takes far less.
LOCK_IDLE_S = 60


def require_optuna() -> None:
    """Raise UserError, saying how to install it, unless Optuna is there."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"a sweep needs Optuna, which is not installed: {install_extra('sweep')}")


class Database:
    """A database by its SQLAlchemy URL, as Optuna takes it.

    SQLite serves the processes of one host. PostgreSQL or MySQL serve many, over a network.

    Raises:
        UserError: the URL is not one, names another kind of database, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        require_optuna()
        import sqlalchemy

        try:
            parsed = sqlalchemy.engine.make_url(url)
        except sqlalchemy.exc.ArgumentError:
            raise UserError(
                f"--storage {url!r} is no database URL; write postgresql://user@host/database or sqlite:///file"
            ) from None
        kind = parsed.get_backend_name()
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")  # the driver that comes with the extra
            kind = "postgresql"
        if kind not in DIALECTS:
            raise UserError(
                f"--storage: a {kind} database is not supported; give one of {', '.join(DIALECTS)}"
            )
        self.kind = kind
        self.shown = parsed.render_as_string(hide_password=True)
        self.url = parsed.render_as_string(hide_password=False)
        self.options: dict[str, Any] = {"pool_pre_ping": True}
        if kind == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise UserError(f"--storage {url!r} names no file; write sqlite:///path/to/study.db")
            self.file = Path(parsed.database)
            self.options["connect_args"] = {"timeout": SQLITE_WAIT_S}
        try:
            self._engine = sqlalchemy.engine.create_engine(self.url, **self.options)
        except (ImportError, sqlalchemy.exc.ArgumentError) as error:
            raise UserError(
                f"--storage {self.shown}: its driver cannot be loaded ({error}): {install_extra('sweep')}"
            ) from None

    def open(self, heartbeat_s: int, grace_s: int) -> RDBStorage:
        """Return Optuna's storage, its tables made; call it inside :meth:`lock`."""
        import warnings

        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import RDBStorage

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat
            try:
                return RDBStorage(
                    self.url, self.options, heartbeat_interval=heartbeat_s, grace_period=grace_s
                )
            except RuntimeError as error:  # tables of another version of Optuna
                raise UserError(f"the sweep's database {self.shown} cannot be used: {error}") from error

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Be the only process, of all that use this database, inside the lock ``name``; not reentrant.

        It is a lock of the system that holds the data, so that it is given up by itself when its holder dies: a
        file lock beside an SQLite file, PostgreSQL's advisory lock of a transaction, MySQL's named lock.
        """
        if self.kind == "sqlite":
            with self._file_lock():
                yield
            return
        import sqlalchemy

        text = f"fastresnet sweep {name}"
        digest = hashlib.sha256(text.encode()).digest()
        with self._engine.begin() as connection:
            if self.kind == "postgresql":
                idle = f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_IDLE_S}s'"
                connection.execute(sqlalchemy.text(idle))
                number = int.from_bytes(digest[:8], "big", signed=True)
                connection.execute(
                    sqlalchemy.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number}
                )
                yield
                return
            key = {"key": digest.hex()[:60]}
            connection.execute(sqlalchemy.text("SELECT GET_LOCK(:key, -1)"), key)
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT RELEASE_LOCK(:key)"), key)

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        path = self.file.with_name(f"{self.file.name}.lock")
        try:
            handle = open(path, "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise explain_os_error(error, f"cannot use the sweep's database {self.file}") from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong with the database into one line."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise UserError(
                f"the sweep's database {self.shown} cannot be used: {reason}; the same command goes on from here "
                "once it can"
            ) from error
