"""Starts many flow runs, some at a time, and counts how they end: none may be lost, stuck, or completed twice.

    .venv/bin/python bench/flow_runs.py --database sqlite
    .venv/bin/python bench/flow_runs.py --database postgresql

`koda up` runs a Prefect server and a worker in a folder of their own. One small run is trained; each flow run is then
of `koda/pretrain` on a copy of it, whose stages are up to date. That leaves what every run goes through: the queue, the
worker, a process, the tasks, the lock, the report. The limit of the queue is raised from one at a time.
"""

import contextlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from alternate import peer
from sandbox import SMALL_TRAINING, Sandbox
from table import options, parse, show

from tests.postgresql import PostgreSQL

STUCK = 300.0  # seconds without a run that ends
PROBLEMS = re.compile(r"database is locked|timed? ?out|Traceback|\bERROR\b", re.IGNORECASE)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=4)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parse(parser, runs=2, at_a_time=2)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with peer(arguments.database):
            database = stack.enter_context(PostgreSQL()) if arguments.database == "postgresql" else None
            server = stack.enter_context(Server(folder, database))
            server.koda("up")
        figures = server.measure(arguments.runs, arguments.at_a_time)
        figures |= {"database, MB": server.size() / 1e6, "server, MB": server.memory() / 1e6}
        problems, version = server.problems(), server.version()
    row = [f"{value:.3g}" if isinstance(value, float) else value for value in figures.values()]
    title = f"{arguments.runs} flow runs, {arguments.at_a_time} at a time, {version}"
    show(title, list(figures), [row], arguments.json, problems=problems)
    for line, count in problems.items():
        print(f"in the logs of server and worker, {count} times: {line}")
    good = {"Completed": arguments.runs, "lost": 0, "stuck": 0, "done twice": 0}
    return 0 if good.items() <= figures.items() and figures["most at a time"] <= arguments.at_a_time else 1


class Server(Sandbox):
    """`koda up`, with Prefect's database in SQLite or PostgreSQL."""

    def __init__(self, folder: Path, database: PostgreSQL | None):
        super().__init__(folder, **(database.env if database else {}))
        self.database = database
        os.environ.update(self.environment)  # before anything imports Prefect

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.koda("down")

    def measure(self, runs: int, at_a_time: int) -> dict[str, Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

        settings = {**SMALL_TRAINING, "pretrain.steps": "20", "pretrain.segments": "1"}
        changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self.koda("run", "--name", "model", "--until", "checkpoint", *changes)
        names = [f"run-{number:03}" for number in range(runs)]
        for name in names:
            shutil.copytree(self.runs / "model", self.runs / name, copy_function=os.link)
            for own in (".lock", "attempts.jsonl"):  # written in place, which would change the other copies too
                (self.runs / name / own).unlink()
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("koda/pretrain")
            queue = client.read_work_queue_by_name("gpu", work_pool_name="koda")
            client.update_work_queue(queue.id, concurrency_limit=at_a_time)
            of_deployment: Any = DeploymentFilter(id={"any_": [deployment.id]})
            active: Any = FlowRunFilter(state={"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}})
            began = time.monotonic()
            for name in names:
                client.create_flow_run_from_deployment(deployment.id, parameters={"name": name})
            left, since = runs, time.monotonic()
            while left and time.monotonic() < since + STUCK:
                time.sleep(3)
                before, left = left, client.count_flow_runs(deployment_filter=of_deployment, flow_run_filter=active)
                if left != before:
                    since = time.monotonic()
                    print(f"\r{runs - left} of {runs} in {since - began:.0f} s ", end="", file=sys.stderr, flush=True)
            seconds = since - began
            flow_runs: list[Any] = []
            while page := client.read_flow_runs(deployment_filter=of_deployment, limit=100, offset=len(flow_runs)):
                flow_runs += page
        states = Counter(run.state_name for run in flow_runs)
        print(f"\n{dict(states)}", file=sys.stderr)
        completed = Counter(run.parameters["name"] for run in flow_runs if run.state_name == "Completed")
        return {
            "database": "PostgreSQL" if self.database else "SQLite",
            "Completed": len(completed),
            "lost": len(set(names) - set(completed)) - left,
            "stuck": left,
            "done twice": sum(times > 1 for times in completed.values()),
            "restarted": states["Crashed"],
            "most at a time": most_at_a_time(flow_runs),
            "runs/min": 60 * (runs - left) / seconds,
        }

    def problems(self) -> dict[str, int]:
        """Lines of server and worker that report a problem, without what makes each of them different."""
        logs = [self.folder / f"prefect/{name}.log" for name in ("server", "worker")]
        lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
        return Counter(re.sub(r"[0-9a-f-]{36}|[\d.:]+", "…", line)[:200] for line in lines if PROBLEMS.search(line))

    def size(self) -> int:
        """Bytes of the database."""
        if self.database:
            return int(self.database.ask("SELECT pg_database_size('postgres')"))
        return sum(path.stat().st_size for path in (self.folder / "prefect").glob("prefect.db*"))

    def memory(self) -> int:
        """Resident bytes of the server's processes: those of its session."""
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


def most_at_a_time(flow_runs: list[Any]) -> int:
    """How many were running at once, at most, by Prefect's clock."""
    ended = [run for run in flow_runs if run.start_time and run.end_time]
    changes = sorted([(run.start_time, 1) for run in ended] + [(run.end_time, -1) for run in ended])
    return max(itertools.accumulate(change for _, change in changes), default=0)


if __name__ == "__main__":
    sys.exit(main())
