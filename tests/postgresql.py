"""A PostgreSQL of its own on this machine, from Debian's package, for the duration of a `with` block.

with PostgreSQL() as database:
    subprocess.run(["koda", "up"], env=os.environ | database.env)
    database.ask("SELECT count(*) FROM flow_run")
"""

import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from model.ports import free_port

# The newest that is installed; Debian keeps these commands out of PATH.
_FOUND = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: int(p.parts[-3]), default=None)
ABSENT = "" if _FOUND else "Debian's package is not installed: apt-get install postgresql"


class PostgreSQL:
    def __enter__(self) -> "PostgreSQL":
        assert _FOUND, ABSENT
        self.commands, self.password = _FOUND.parent, secrets.token_urlsafe(12)
        root = os.geteuid() == 0  # as whom PostgreSQL refuses to run
        self.user = "postgres" if root else getpass.getuser()
        self._as_user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
        self.folder = Path(tempfile.mkdtemp(prefix="koda-pg-"))  # not in pytest's, which is closed to other users
        secret = self.folder / "password"
        secret.write_text(self.password)
        for path in (self.folder, secret) if root else ():
            shutil.chown(path, "postgres", "postgres")
        self.port = free_port()
        self._run("initdb", "--no-sync", "--auth=scram-sha-256", f"--username={self.user}", f"--pwfile={secret}")
        self._run("pg_ctl", "start", "--wait", "--log", "log", "-o", f"-h 127.0.0.1 -p {self.port} -k {self.folder}")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "stop", "--mode=fast")
        shutil.rmtree(self.folder)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a Prefect server whose database it is."""
        address = f"postgresql+asyncpg://{self.user}:{self.password}@127.0.0.1:{self.port}/postgres"
        return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": address}

    def ask(self, query: str) -> str:
        """What psql prints, bare: a line for each row."""
        return self._run("psql", "--host=127.0.0.1", f"--port={self.port}", "-U", self.user, "-Atc", query, "postgres")

    def _run(self, command: str, *arguments: str) -> str:
        """One of its commands. The output goes to a file, for the server that pg_ctl leaves behind has it open."""
        environment = {**os.environ, "PGDATA": str(self.folder / "data"), "PGPASSWORD": self.password}
        with tempfile.TemporaryFile("w+") as log:
            done = subprocess.run(
                [self.commands / command, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._as_user,
            )
            log.seek(0)
            output = log.read()
        assert done.returncode == 0, output
        return output.strip()
