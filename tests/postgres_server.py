"""A PostgreSQL server of a test's own: its files in a temporary folder, reached by a socket there, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 60.0  # seconds after which a server that does not answer is taken to have failed


def postgres_programs() -> Path | None:
    """Return the folder of initdb and postgres, the newest where there are several; None where there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    return versions[-1].parent if versions else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of a new server's database, as ``--storage`` takes it; needs :func:`postgres_programs`."""
    programs = postgres_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 characters
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # whom the server refuses to run as
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, log = folder / "data", folder / "log"
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, **account}
    try:
        made = subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                "tester",
                "--auth=trust",
                "--no-sync",
                "--locale=C",
                "-E",
                "UTF8",
            ],
            capture_output=True,
            text=True,
            **options,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        words = ["-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        with log.open("w") as output:
            server = subprocess.Popen(
                [programs / "postgres", *words], stdout=output, stderr=output, **options
            )
        try:
            end = time.monotonic() + START_S
            ready = [programs / "pg_isready", "-q", "-h", folder, "-d", "postgres"]
            while subprocess.run(ready).returncode != 0:
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # ends it without waiting for who is connected
            server.wait(START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
