"""Kills a small real training in every way it can die, and checks that it ends with the weights it would have had.

    .venv/bin/python bench/chaos.py --kills 30 --seed 1

`koda up` runs a Prefect server and a worker in a folder of their own, and `koda/pretrain` is started once. Faults are
injected one after another, at steps drawn by the seed. Only Prefect restarts anything, with one exception: after the
worker and all its children are killed, this command runs `koda up` again, as systemd would. At the end the same
training runs undisturbed and skips the batches that the NaN faults had it skip; the checksums of all its arrays,
optimizer included, are compared.

With `--plain` it is a `koda run` in a terminal, which has a Prefect server of its own, and which this command starts
again after it was killed. `--minutes 5` injects a fault five minutes after the last one on average and compares
nothing: it measures the effective time of a training that saves as often as its disk allows.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import small_disk
from alternate import failure, peer
from faults import FAULTS, Fault, build_clock
from sandbox import PROJECT, SMALL_TRAINING, Sandbox
from table import Spread, options, parse, show

SAVE_EVERY = 100
PATIENCE = 300.0  # seconds after which a fault counts as not recovered from
SEGMENTS, SHORTEST = 20, 640  # task runs that the training is cut into, at most, and steps of one, at least
SETTINGS = SMALL_TRAINING | {
    "pretrain.replay_every_minutes": "10000",  # when the bit is flipped
}
ENDLESS = 10_000_000  # steps


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", help="which, separated by commas (default: all that --list prints)")
    parser.add_argument("--every", type=int, default=400, help="steps from one fault to the next, at most (400)")
    parser.add_argument("--minutes", type=float, default=0.0, help="minutes between two faults on average, instead")
    parser.add_argument("--plain", action="store_true", help="a plain `koda run`, without `koda up`")
    parser.add_argument("--list", action="store_true", help="print the faults that can be injected here, and exit")
    arguments = parse(parser, kills=2, every=150, faults="SIGKILL,newest cut short")
    fits = {name for name, fault in FAULTS.items() if (fault.plain if arguments.plain else fault.up)}
    available = [name for name, fault in FAULTS.items() if name in fits and fault.possible()]
    if arguments.list:
        print("\n".join(available))
        return 0
    names = arguments.faults.split(",") if arguments.faults else available
    for name in names:
        if name not in available:
            raise failure(name, "this machine, or --plain, does not allow it" if name in FAULTS else "no such fault")
    draw = random.Random(arguments.seed)
    order = [name for _ in range(-(-arguments.kills // len(names))) for name in draw.sample(names, len(names))]
    order = order[: arguments.kills]
    outcomes: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, Training(Path(folder), arguments.plain) as training:
        meanwhile = sum(FAULTS[name].steps for name in order)
        training.steps = ENDLESS if arguments.minutes else arguments.every * (arguments.kills + 2) + meanwhile
        training.save_every = ENDLESS if arguments.minutes else SAVE_EVERY
        with peer("the training"):
            training.start()
        for number, name in enumerate(order):
            if arguments.minutes:
                time.sleep(60 * arguments.minutes * draw.uniform(0.5, 1.5))
            else:
                training.await_step(training.beat()["step"] + draw.randrange(arguments.every // 4, arguments.every))
            with peer(name):
                outcome = training.inject(FAULTS[name])
            outcomes[name].append(outcome)
            print(f"{number + 1:3} {name:26} {outcome}", flush=True)
        if arguments.minutes:
            time.sleep(30 * arguments.minutes)
            return table(f"{arguments.kills} faults, by the clock", outcomes, training.effective_time(), arguments.json)
        finished = training.await_end()
        effective = training.effective_time()
        states = training.states()
        with peer("the undisturbed run"):
            same = finished and training.same_as_undisturbed()
    title = f"{arguments.kills} faults, a permanent save every {SAVE_EVERY} steps"
    code = table(title, outcomes, effective, arguments.json, same=same)
    verdict = "bit-identical to the undisturbed run's" if same else "NOT those of the undisturbed run"
    print(f"the run {'completed' if finished else 'did NOT complete'}; all arrays of its last checkpoint are {verdict}")
    if states:
        print(f"the states of its attempts in Prefect: {', '.join(states)}")
    return 0 if same and (not states or states[-1] == "Completed") else code or 1


def table(title: str, outcomes: dict[str, list[dict]], effective: dict, file: Path | None, **facts: bool) -> int:
    """Print the faults and the effective time; 1 where one was not recovered from."""
    rows = []
    for name, tried in outcomes.items():
        recovered = [outcome for outcome in tried if outcome["recovered"]]
        lost = max((outcome["lost"] for outcome in recovered), default="")
        seconds = Spread.of([outcome["seconds"] for outcome in recovered]) if recovered else ""
        rows.append([name, len(tried), len(recovered), lost, seconds])
    head = ["fault", "tried", "recovered", "most steps lost", "seconds to a new step"]
    show(title, head, rows, file, **facts, **effective)
    print(
        "effective time {effective:.1%} in {seconds:,.0f} s, one fault each {fault_every:,.0f} s; by its own costs it "
        "would be {predicted:.1%} with so many faults, and {hourly:.2%} with one an hour ({cost:.1f} s each)".format(
            **effective
        )
    )
    return 0 if all(row[1] == row[2] for row in rows) else 1


class Training(Sandbox):
    """The training that faults are injected into; its runs are on a disk of their own, where there can be one."""

    def __init__(self, folder: Path, plain: bool):
        self.faults, self.plain = folder / "faults", plain
        path = f"{PROJECT / 'bench/chaos_site'}:{folder / 'project'}"
        super().__init__(folder, KODA_CHAOS=str(self.faults), PYTHONPATH=path)
        if build_clock(folder / "clock.so"):
            self.environment |= {"LD_PRELOAD": str(folder / "clock.so"), "KODA_CHAOS_CLOCK": str(folder / "clock")}
        if plain:
            del self.environment["PREFECT_API_URL"]
        self.faults.mkdir()
        self.hours = 0
        self.set_clock(0)
        self.run = self.runs / "chaos"
        self.training = self.run / "pretrain"
        self.copies = folder / "copies"
        self.steps = self.save_every = 0

    def __enter__(self) -> "Training":
        self.has_disk = small_disk.mount(self.folder / "disk", self.runs)
        return self

    def __exit__(self, *_: object) -> None:
        if self.has_disk:
            small_disk.thaw(self.runs, check=False)
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.has_disk:
            small_disk.unmount(self.runs)

    def start(self) -> None:
        from flows.config import parsed

        segments = min(SEGMENTS, -(-self.steps // SHORTEST))
        self.settings = SETTINGS | {"pretrain.steps": str(self.steps), "pretrain.segments": str(segments)}
        self.settings |= {"pretrain.copy_to": str(self.copies), "pretrain.save_every_steps": str(self.save_every)}
        if self.plain:
            self.launch()
        else:
            self.koda("up")
            settings = json.dumps(parsed(self.settings))
            parameters = ["--param", "name=chaos", "--param", f"settings={settings}"]
            self.python("prefect", "deployment", "run", "koda/pretrain", *parameters)
        self.require(lambda: self.beat()["step"] > 0, "the first step")

    def launch(self) -> None:
        """Start `koda run`, in the background."""
        settings = [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "flows.cli.main", "run", "--name", "chaos", "--until", "checkpoint", *settings]
        with (self.folder / "koda-run.log").open("ab") as log:
            self.koda_run = subprocess.Popen(
                command, cwd=self.project, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def set_clock(self, hours: int) -> None:
        """Set the clock of all processes of this sandbox forward by so many hours, or back."""
        from model.files import atomic_write

        self.hours += hours
        with atomic_write(self.folder / "clock") as file:
            file.write(str(3600 * self.hours))

    def beat(self) -> dict:
        from model.training.heartbeat import Heartbeat

        return Heartbeat.read(self.training) or {"step": 0, "first_step": None, "pid": 0}

    def wait(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                print(f"{what} did not come within {seconds:.0f} s", file=sys.stderr)
                return False
            time.sleep(0.005)
        return True

    def require(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Wait for what a fault is made of, or what has to follow from it. Raises TimeoutError."""
        if not self.wait(condition, what, seconds):
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")

    def await_step(self, step: int) -> None:
        self.wait(lambda: self.beat()["step"] >= step, f"step {step}")

    def inject(self, fault: Fault) -> dict:
        """Inject the fault, and wait until a training makes a step that was not made before it."""
        began, before = time.monotonic(), self.beat()
        survived_to = fault.inject(self)
        reached = max(before["step"], self.beat()["step"]) if survived_to is None else survived_to

        def restarted() -> bool:
            beat = self.beat()
            return beat["pid"] != before["pid"] and beat["first_step"] is not None

        running = survived_to is not None or self.wait(restarted, "a restart")
        first = self.beat()["first_step"] if survived_to is None else reached
        recovered = running and self.wait(lambda: self.beat()["step"] > max(first + 1, 0), "a new step")
        lost = max(0, reached - self.beat()["first_step"]) if survived_to is None else 0
        return {"recovered": recovered, "lost": lost, "seconds": round(time.monotonic() - began, 1)}

    def restarts(self) -> int:
        """How often the training crashed, and its flow run was started again."""
        from model.training.records import Event, read_events

        scheduled = (self.run / "attempts.jsonl").read_text().count('"scheduled"')
        return scheduled + sum(record.event is Event.CRASH for record in read_events(self.training))

    def newest(self) -> Path:
        """The newest committed checkpoint."""
        self.require(lambda: list(self.training.glob("checkpoints/*/COMMIT.json")), "a checkpoint")
        commits = [p.parent for p in self.training.glob("checkpoints/*/COMMIT.json") if p.parent.name.isdigit()]
        return max(commits, key=lambda p: int(p.name))

    def largest(self) -> Path:
        """The largest file of the newest checkpoint: its arrays."""
        return max((p for p in self.newest().rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)

    def copied(self) -> int:
        """The newest step that has a copy at the second place; -1 where there is none."""
        return max((int(p.parent.name) for p in self.copies.glob("chaos/*/*/COMMIT.json")), default=-1)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the training process."""
        os.kill(self.beat()["pid"], number)

    def flow(self) -> int:
        """The process that the flow runs in: it has locked the run."""
        return int((self.run / ".lock").read_text().split()[1])

    def server(self) -> int:
        """The process that serves Prefect's API."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self.processes()}
        expected = {b"server", b"start", str(self.port).encode()}
        return next(pid for pid, command in commands.items() if expected <= set(command))

    def processes(self) -> list[int]:
        """Every process of this sandbox, recognised by its environment."""
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"KODA_CHAOS={self.faults}".encode() in path.read_bytes() and int(path.parts[2]) != os.getpid():
                    pids.append(int(path.parts[2]))
            except OSError:
                continue
        return pids

    def effective_time(self) -> dict[str, float]:
        """The share of its time in which the training made progress, and what its own costs would make of it."""
        from model.training.cadence import FAULT_EVERY
        from model.training.goodput import effective, goodput

        measured = effective(self.training)
        assert measured is not None
        seconds = sum(goodput(self.training).values())
        fault_every = seconds / max(1, self.restarts())
        steady = measured.hourly_fault / (1 - measured.fault_seconds / FAULT_EVERY)
        return {
            "effective": measured.share,
            "seconds": seconds,
            "fault_every": fault_every,
            "predicted": steady * max(0.0, 1 - measured.fault_seconds / fault_every),
            "hourly": measured.hourly_fault,
            "cost": measured.fault_seconds,
        }

    def states(self) -> list[str]:
        """The states of the run's attempts in Prefect, once the last one has ended; the oldest first. A plain
        `koda run` has none to be asked."""
        if self.plain:
            self.koda_run.wait(60)
            return []
        command = [sys.executable, "-m", "prefect", "flow-run", "ls", "-o", "json", "--limit", "200"]

        def current() -> list[str]:
            listed = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
            runs = [run for run in json.loads(listed.stdout) if run["name"].startswith("chaos") and run["start_time"]]
            return [run["state"]["name"] for run in sorted(runs, key=lambda run: run["start_time"])]

        self.wait(lambda: current()[-1] != "Running", "the end of the flow run", 60)
        return current()

    def await_end(self) -> bool:
        return self.wait(lambda: (self.run / "checkpoint/stage.json").is_file(), "the end of the run", 900)

    def same_as_undisturbed(self) -> bool:
        from model import arrays
        from model.training.records import WINDOWS

        job = json.loads((self.training / "job.json").read_text())
        alone = self.folder / "undisturbed"
        alone.mkdir()
        if (self.training / WINDOWS).is_file():
            shutil.copy(self.training / WINDOWS, alone)
        (alone / "job.json").write_text(json.dumps({**job, "folder": str(alone), "second_place": ""}))
        command = [sys.executable, "-P", "-m", "model.training", str(alone / "job.json"), str(self.steps)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        sums = [
            {name: a["crc32"] for name, a in arrays.facts(f / "checkpoints" / str(self.steps))["arrays"].items()}
            for f in (alone, self.training)
        ]
        return sums[0] == sums[1]


if __name__ == "__main__":
    sys.exit(main())
