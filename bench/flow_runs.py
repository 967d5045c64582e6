"""Makes many flow runs, some at a time, and counts what became of them: none may be lost, stuck, or done twice.

    .venv/bin/python bench/flow_runs.py --database sqlite
    .venv/bin/python bench/flow_runs.py --database postgresql

`koda up` runs a Prefect server and a worker in a folder of their own. One small run is trained; each flow run is then
of `koda/pretrain` on a copy of it, whose stages stand. What is left is what every run goes through: the queue, the
worker, a process, the tasks, the lock, the report. The limit of the queue is raised from one at a time.
"""

import argparse
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from alternate import show
from chaos import OVERRIDES, lay_out

from model.ports import free_port
from tests.postgresql import PostgreSQL

STUCK = 300.0  # seconds without a run that ends
COMPLAINTS = re.compile(r"database is locked|timed? ?out|Traceback|\bERROR\b", re.IGNORECASE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=4)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(PostgreSQL()) if arguments.database == "postgresql" else None
        place = stack.enter_context(Place(folder, database))
        found = place.measure(arguments.runs, arguments.at_a_time)
        found |= {"database, MB": place.size() / 1e6, "server, MB": place.memory() / 1e6}
        complaints, version = place.complaints(), place.version()
    row = [f"{value:.3g}" if isinstance(value, float) else value for value in found.values()]
    title = f"{arguments.runs} flow runs, {arguments.at_a_time} at a time, {version}"
    show(title, list(found), [row], arguments.json, complaints=complaints)
    for line, count in complaints.items():
        print(f"in the logs of server and worker, {count} times: {line}")
    good = {"Completed": arguments.runs, "lost": 0, "stuck": 0, "done twice": 0}
    return 0 if good.items() <= found.items() and found["most at a time"] <= arguments.at_a_time else 1


class Place:
    """A folder with the project, its runs, and `koda up` at work in it."""

    def __init__(self, folder: Path, database: PostgreSQL | None):
        self.folder, self.database = folder, database
        port = free_port()
        ours = {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_HOME": str(folder / "prefect"),
            "KODA_RUNS": str(folder / "runs"),
            "PYTHONPATH": str(folder / "project"),
        }
        os.environ.update(ours | (database.env if database else {}))  # before anything imports Prefect

    def __enter__(self) -> "Place":
        lay_out(self.folder / "project")
        self.koda("up")
        return self

    def __exit__(self, *_: object) -> None:
        self.koda("down")

    def koda(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        subprocess.run(command, cwd=self.folder / "project", check=True, stdout=sys.stderr)

    def measure(self, runs: int, at_a_time: int) -> dict[str, Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

        changes = {**OVERRIDES, "pretrain.steps": "20", "pretrain.segments": "1"}
        given = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        self.koda("run", "--name", "model", "--until", "checkpoint", *given)
        names = [f"run-{number:03}" for number in range(runs)]
        for name in names:
            shutil.copytree(self.folder / "runs/model", self.folder / "runs" / name, copy_function=os.link)
            for own in (".lock", "lives.jsonl"):  # written in place, which the others' would be with it
                (self.folder / "runs" / name / own).unlink()
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("koda/pretrain")
            queue = client.read_work_queue_by_name("gpu", work_pool_name="koda")
            client.update_work_queue(queue.id, concurrency_limit=at_a_time)
            mine: Any = DeploymentFilter(id={"any_": [deployment.id]})
            going: Any = FlowRunFilter(state={"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}})
            began = time.monotonic()
            for name in names:
                client.create_flow_run_from_deployment(deployment.id, parameters={"name": name})
            left, since = runs, time.monotonic()
            while left and time.monotonic() < since + STUCK:
                time.sleep(3)
                before, left = left, client.count_flow_runs(deployment_filter=mine, flow_run_filter=going)
                if left != before:
                    since = time.monotonic()
                    print(f"\r{runs - left} of {runs} in {since - began:.0f} s ", end="", file=sys.stderr, flush=True)
            seconds = since - began
            made: list[Any] = []
            while page := client.read_flow_runs(deployment_filter=mine, limit=100, offset=len(made)):
                made += page
        states = Counter(run.state_name for run in made)
        print(f"\n{dict(states)}", file=sys.stderr)
        completed = Counter(run.parameters["name"] for run in made if run.state_name == "Completed")
        return {
            "database": "PostgreSQL" if self.database else "SQLite",
            "Completed": len(completed),
            "lost": len(set(names) - set(completed)) - left,
            "stuck": left,
            "done twice": sum(times > 1 for times in completed.values()),
            "started again": states["Crashed"],
            "most at a time": most_at_a_time(made),
            "runs/min": 60 * (runs - left) / seconds,
        }

    def logs(self) -> list[Path]:
        return [self.folder / f"prefect/{name}.log" for name in ("server", "worker")]

    def complaints(self) -> dict[str, int]:
        """Lines of server and worker that tell of trouble, without what makes each of them different."""
        lines = (line for log in self.logs() for line in log.read_text(errors="replace").splitlines())
        return Counter(re.sub(r"[0-9a-f-]{36}|[\d.:]+", "…", line)[:200] for line in lines if COMPLAINTS.search(line))

    def size(self) -> int:
        """Bytes of the database."""
        if self.database:
            return int(self.database.ask("SELECT pg_database_size('postgres')"))
        return sum(path.stat().st_size for path in (self.folder / "prefect").glob("prefect.db*"))

    def memory(self) -> int:
        """Bytes that the server's processes hold: those of its session."""
        session = os.getsid(int((self.folder / "prefect/server.lock").read_text()))
        pages = 0
        for path in Path("/proc").glob("[0-9]*/statm"):
            with contextlib.suppress(OSError):
                if os.getsid(int(path.parts[2])) == session:
                    pages += int(path.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def version(self) -> str:
        import sqlite3

        import prefect

        database = f"PostgreSQL {self.database.ask('SHOW server_version')}" if self.database else ""
        return f"Prefect {prefect.__version__}, {database or f'SQLite {sqlite3.sqlite_version}'}"


def most_at_a_time(made: list[Any]) -> int:
    """How many were running at once, at most, by Prefect's clock."""
    ended = [run for run in made if run.start_time and run.end_time]
    changes = sorted([(run.start_time, 1) for run in ended] + [(run.end_time, -1) for run in ended])
    return max(itertools.accumulate(change for _, change in changes), default=0)


if __name__ == "__main__":
    sys.exit(main())
