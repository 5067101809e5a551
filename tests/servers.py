"""Real servers for stores that are not local: PostgreSQL from its own binaries, and a server that speaks S3.

Both are started for a test run, on loopback, and end with it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

BINARIES = Path("/usr/lib/postgresql")
START_SECONDS_MAX = 60.0
BUCKET = "fedshare"
OTHER_USER = ("nobody", "nogroup")


def postgres_binaries() -> Path | None:
    """Of the newest release that is installed."""
    found = [path.parent for path in BINARIES.glob("*/bin/initdb")] or [
        Path(path).resolve().parent for path in [shutil.which("initdb")] if path
    ]
    return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], default=None)


class Postgres:
    """A cluster of databases in a folder of its own. PostgreSQL refuses root, which becomes nobody."""

    def __init__(self) -> None:
        self.folder, self._bin = Path(tempfile.mkdtemp(prefix="fedshare-postgres-")), postgres_binaries()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        if os.geteuid() == 0:
            shutil.chown(self.folder, *OTHER_USER)
        self._run(
            "initdb", "-D", "data", "-U", "fedshare", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGQUIT)  # nothing here is needed again
        shutil.rmtree(self.folder)

    def start(self) -> None:
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "on"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", "data", *options), cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", self.port, check=False):
            assert self._process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """At once: nobody who is connected is waited for."""
        self._end(signal.SIGINT)

    def _end(self, number: int) -> None:
        self._process.send_signal(number)
        self._process.wait(START_SECONDS_MAX)

    def database(self, copy_of: str = "") -> str:
        """The URL of a new one, which sorts text in a way of its own, to show that nothing depends on that."""
        name = f"f{uuid.uuid4().hex[:12]}"
        empty = "template0 ICU_LOCALE 'en' LOCALE_PROVIDER icu LOCALE 'C.UTF-8'"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {copy_of.rpartition('/')[2] or empty}")
        return f"postgresql://fedshare@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        command = self._command(
            "psql", "-h", "127.0.0.1", "-p", self.port, "-U", "fedshare", "-qAtX", "-c", statement, database
        )
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def _command(self, program: str, *arguments: object) -> list[str]:
        other = ["setpriv", "--clear-groups", f"--reuid={OTHER_USER[0]}", f"--regid={OTHER_USER[1]}", "--"]
        return [*(other if os.geteuid() == 0 else []), str(self._bin / program), *map(str, arguments)]

    def _run(self, program: str, *arguments: object, check: bool = True) -> int:
        ended = subprocess.run(
            self._command(program, *arguments), cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert not (check and ended.returncode), ended.stderr
        return ended.returncode


class S3:
    """moto's server, in a process of its own."""

    def __enter__(self) -> S3:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """With it, s3:// is this server, in this process and those it starts."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def folder(self) -> str:
        """The URL of a new one in the bucket."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def make_bucket(self) -> None:
        import boto3
        from botocore.exceptions import EndpointConnectionError

        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                boto3.client("s3").create_bucket(Bucket=BUCKET)
                return
            except EndpointConnectionError:
                assert time.monotonic() < deadline and self._process.poll() is None
                time.sleep(0.1)


def free_port() -> int:
    """One that no connection is given meanwhile: systems give those above 32,767."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
