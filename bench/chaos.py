"""Kills a small real training in every way it can die, and asks whether it ends with the weights it would have had.

    .venv/bin/python bench/chaos.py --kills 30 --seed 1

`koda up` runs a Prefect server and a worker in a folder of their own, and `koda/pretrain` is started once. At steps
drawn by the seed one fault after another befalls it. Nobody starts anything again but Prefect, with one exception: when
the worker and all under it are killed, this command starts `koda up` again, as systemd would. At the end, the same
training runs undisturbed, told to step over the data that the NaN faults had it step over, and the checksums of all its
arrays, optimizer and all, are compared.
"""

import argparse
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
from pathlib import Path

from alternate import Spread, show

from model.ports import free_port
from tests.pipeline import SMALL

PROJECT = Path(__file__).resolve().parents[1]
SAVE_EVERY = 100
SILENCE, IN_SILENCE = 120.0, 18_000  # seconds without Prefect's API, and steps that are enough for them
PATIENCE = 300.0  # seconds after which a fault counts as not recovered from
OVERRIDES = {key: value for key, value in SMALL.items() if key.startswith(("tokenize.", "model."))} | {
    "pretrain.learning_rate": "1e-3",
    "pretrain.save_every_steps": str(SAVE_EVERY),
    "pretrain.save_every_minutes": "0.1",
    "pretrain.evaluate_every_steps": "1000",
    "pretrain.hang_seconds": "5",
    "pretrain.verify_every_saves": "3",
    "pretrain.segments": "20",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join(FAULTS), help="which, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--every", type=int, default=400, help="steps from one fault to the next, at most (400)")
    parser.add_argument("--list", action="store_true", help="name the faults, and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(FAULTS))
        return 0
    names = arguments.faults.split(",")
    with tempfile.TemporaryDirectory() as folder, Place(Path(folder)) as place:
        if "full disk" in names and not place.has_a_disk:
            print("full disk: not tried, for a small disk of its own takes the right to mount one")
            names.remove("full disk")
        draw = random.Random(arguments.seed)
        order = [name for _ in range(-(-arguments.kills // len(names))) for name in draw.sample(names, len(names))]
        order = order[: arguments.kills]
        silences = [name for name in order if FAULTS[name] is silence_the_api]
        place.steps = arguments.every * (arguments.kills + 2) + IN_SILENCE * len(silences)
        outcomes: dict[str, list[dict]] = {name: [] for name in names}
        place.start()
        for number, name in enumerate(order):
            place.await_step(place.beat()["step"] + draw.randrange(arguments.every // 4, arguments.every))
            outcome = place.befall(FAULTS[name])
            outcomes[name].append(outcome)
            print(f"{number + 1:3} {name:26} {outcome}", flush=True)
        finished = place.await_end()
        states = place.states()
        same = finished and place.same_as_undisturbed()
    rows = []
    for name, tried in outcomes.items():
        done = [outcome for outcome in tried if outcome["recovered"]]
        lost = max((outcome["lost"] for outcome in done), default="")
        seconds = Spread.of([outcome["seconds"] for outcome in done]) if done else ""
        rows.append([name, len(tried), len(done), lost, seconds])
    title = f"{arguments.kills} faults, seed {arguments.seed}, a save every {SAVE_EVERY} steps"
    show(
        title,
        ["fault", "tried", "recovered", "most steps lost", "seconds to a new step"],
        rows,
        arguments.json,
        same=same,
    )
    verdict = "bit-identical to the undisturbed run's" if same else "NOT those of the undisturbed run"
    print(f"the run {'completed' if finished else 'did NOT complete'}; all arrays of its last checkpoint are {verdict}")
    print(f"its lives, in Prefect's words: {', '.join(states)}")
    return 0 if same and states[-1] == "Completed" and all(row[1] == row[2] for row in rows) else 1


class Place:
    """A folder with the project, its text, its runs, and `koda up` at work in it."""

    def __init__(self, folder: Path):
        self.folder, self.steps = folder, 0
        port = free_port()
        self.faults = folder / "faults"
        self.environment = {
            **os.environ,
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_HOME": str(folder / "prefect"),
            "KODA_RUNS": str(folder / "runs"),
            "KODA_CHAOS": str(self.faults),
            "PYTHONPATH": f"{PROJECT / 'bench/chaos_site'}:{folder / 'project'}",
        }
        self.run = folder / "runs/chaos"
        self.training = self.run / "pretrain"
        self.has_a_disk = False

    def __enter__(self) -> "Place":
        self.faults.mkdir()
        (self.folder / "runs").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "koda-chaos", str(self.folder / "runs")]
        self.has_a_disk = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        lay_out(self.folder / "project")
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        if self.has_a_disk:
            subprocess.run(["umount", "-l", str(self.folder / "runs")], check=False)

    def bring_up(self) -> None:
        command = [sys.executable, "-m", "flows.cli", "up"]
        subprocess.run(
            command, cwd=self.folder / "project", env=self.environment, check=True, stdout=subprocess.DEVNULL
        )

    def start(self) -> None:
        self.bring_up()
        from flows.config import parsed

        settings = parsed({**OVERRIDES, "pretrain.steps": str(self.steps)})
        command = [sys.executable, "-m", "prefect", "deployment", "run", "koda/pretrain", "--param", "name=chaos"]
        command += ["--param", f"settings={json.dumps(settings)}"]
        subprocess.run(command, cwd=self.folder / "project", env=self.environment, check=True, capture_output=True)
        self.wait(lambda: self.beat()["step"] > 0, "the first step")

    def beat(self) -> dict:
        from model.training.protocol import Heartbeat

        return Heartbeat.read(self.training) or {"step": 0, "first_step": None, "pid": 0}

    def wait(self, condition, what: str, seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                print(f"waited {seconds:.0f} s in vain for {what}", file=sys.stderr)
                return False
            time.sleep(0.005)
        return True

    def await_step(self, step: int) -> None:
        self.wait(lambda: self.beat()["step"] >= step, f"step {step}")

    def befall(self, fault) -> dict:
        """Let the fault happen, and wait until a training does steps again that it had not done before it."""
        began, before = time.monotonic(), self.beat()
        again = fault(self)
        reached = max(before["step"], self.beat()["step"]) if again is None else again

        def living() -> bool:
            beat = self.beat()
            return beat["pid"] != before["pid"] and beat["first_step"] is not None

        new = again is not None or self.wait(living, "a new life")
        first = self.beat()["first_step"] if again is None else reached
        recovered = new and self.wait(lambda: self.beat()["step"] > max(first + 1, 0), "a new step")
        lost = max(0, reached - self.beat()["first_step"]) if again is None else 0
        return {"recovered": recovered, "lost": lost, "seconds": round(time.monotonic() - began, 1)}

    def newest(self) -> Path:
        """The newest committed checkpoint."""
        self.wait(lambda: list(self.training.glob("checkpoints/*/COMMIT.json")), "a checkpoint")
        commits = [p.parent for p in self.training.glob("checkpoints/*/COMMIT.json") if p.parent.name.isdigit()]
        return max(commits, key=lambda p: int(p.name))

    def largest(self) -> Path:
        """The largest file of the newest checkpoint: its arrays."""
        return max((p for p in self.newest().rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the training process."""
        os.kill(self.beat()["pid"], number)

    def flow(self) -> int:
        """The process that the flow runs in: it holds the run's lock."""
        return int((self.run / ".lock").read_text().split()[1])

    def server(self) -> int:
        """The process that answers for Prefect's API."""
        port = self.environment["PREFECT_API_URL"].split(":")[2].split("/")[0]
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self.processes()}
        return next(pid for pid, said in words.items() if {b"server", b"start", port.encode()} <= set(said))

    def processes(self) -> list[int]:
        """Every process that belongs to this place, by its environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"KODA_CHAOS={self.faults}".encode() in path.read_bytes() and int(path.parts[2]) != os.getpid():
                    found.append(int(path.parts[2]))
            except OSError:
                continue
        return found

    def states(self) -> list[str]:
        """The states of the run's lives in Prefect, once the last one has ended; the oldest first."""
        command = [sys.executable, "-m", "prefect", "flow-run", "ls", "-o", "json", "--limit", "200"]

        def found() -> list[str]:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
            lives = [run for run in json.loads(done.stdout) if run["name"].startswith("chaos") and run["start_time"]]
            return [run["state"]["name"] for run in sorted(lives, key=lambda run: run["start_time"])]

        self.wait(lambda: found()[-1] != "Running", "the end of the flow run", 60)
        return found()

    def await_end(self) -> bool:
        return self.wait(lambda: (self.run / "checkpoint/stage.json").is_file(), "the end of the run", 900)

    def same_as_undisturbed(self) -> bool:
        from model import arrays
        from model.training.protocol import WINDOWS

        job = json.loads((self.training / "job.json").read_text())
        alone = self.folder / "undisturbed"
        alone.mkdir()
        if (self.training / WINDOWS).is_file():
            shutil.copy(self.training / WINDOWS, alone)
        (alone / "job.json").write_text(json.dumps({**job, "folder": str(alone)}))
        command = [sys.executable, "-m", "model.training", str(alone / "job.json"), str(self.steps)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        sums = [
            {name: a["crc32"] for name, a in arrays.facts(f / "checkpoints" / str(self.steps))["arrays"].items()}
            for f in (alone, self.training)
        ]
        return sums[0] == sums[1]


def lay_out(folder: Path) -> None:
    """A copy of the project's code, with a text to train on: the interpreter's help topics."""
    for name in ("flows", "tasks", "model", "prefect.yaml"):
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    text = folder / "text"
    text.mkdir()
    from model.data import docs

    for number, topic in enumerate(docs.topics()):
        (text / f"{number:03}.txt").write_text(topic.text)


def kill(place: Place) -> None:
    place.kill()


def hang(place: Place) -> None:
    place.kill(signal.SIGSTOP)


def terminate(place: Place) -> None:
    place.kill(signal.SIGTERM)


def kill_in_save(place: Place) -> None:
    before = place.beat()["pid"]
    (place.faults / "in-save").touch()
    place.wait(lambda: not (place.faults / "in-save").exists() or place.beat()["pid"] != before, "a save")


def flip(place: Place) -> None:
    path = place.largest()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    place.kill()


def cut(place: Place) -> None:
    path = place.largest()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    place.kill()


def uncommit(place: Place) -> None:
    (place.newest() / "COMMIT.json").unlink()
    place.kill()


def nan(place: Place) -> None:
    """As many batches as it takes, a little way ahead, give no numbers; the training steps over them in a new life."""
    from model.training.numbers import BAD_STEPS

    windows = place.training / "windows.json"
    before = json.loads(windows.read_text()) if windows.is_file() else []
    first = place.beat()["step"] + sum(count for _, count in before) + 30
    (place.faults / "nan").write_text(json.dumps([first, first + BAD_STEPS]))
    place.wait(lambda: windows.is_file() and len(json.loads(windows.read_text())) > len(before), "a rollback")


def fill_the_disk(place: Place) -> int:
    """No room for a while: saves fail, the training goes on, and once there is room it saves again."""
    ballast, newest = place.folder / "runs/ballast", -1
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    while newest != (newest := int(place.newest().name)):  # a save that had begun may still have found its room
        time.sleep(2 * SAVE_EVERY / 100)
    ballast.unlink()
    reached = place.beat()["step"]
    place.wait(lambda: int(place.newest().name) > reached, "a save with room")
    return reached


def kill_the_flow(place: Place) -> None:
    os.kill(place.flow(), signal.SIGKILL)


def kill_everything(place: Place) -> None:
    """Worker, flow and trainer at once; the server, a service of its own, lives. Then `koda up` again."""
    server = place.server()
    for pid in place.processes():
        if pid != server:
            os.kill(pid, signal.SIGKILL)
    place.bring_up()


def silence_the_api(place: Place) -> int:
    """The Prefect server answers nothing for a while: the training goes on, and so does the run."""
    server = place.server()
    os.kill(server, signal.SIGSTOP)
    time.sleep(SILENCE)
    os.kill(server, signal.SIGCONT)
    return place.beat()["step"]


FAULTS = {
    "SIGKILL": kill,
    "SIGSTOP (a hang)": hang,
    "SIGTERM": terminate,
    "SIGKILL during a save": kill_in_save,
    "a byte flipped": flip,
    "newest cut short": cut,
    "commit file removed": uncommit,
    "NaN in five batches": nan,
    "full disk": fill_the_disk,
    "API silent for 2 min": silence_the_api,
    "SIGKILL of the flow": kill_the_flow,
    "SIGKILL of worker and all": kill_everything,
}

if __name__ == "__main__":
    sys.exit(main())
