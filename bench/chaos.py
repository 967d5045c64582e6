"""Kills a small real training in every way it can die, and checks that it ends with the weights it would have had.

    .venv/bin/python bench/chaos.py --kills 30 --seed 1

`koda up` runs a Prefect server and a worker in a folder of their own, and `koda/pretrain` is started once. Faults are
injected one after another, at steps drawn by the seed. Only Prefect restarts anything, with one exception: after the
worker and all its children are killed, this command runs `koda up` again, as systemd would. At the end the same
training runs undisturbed and skips the batches that the NaN faults had it skip; the checksums of all its arrays,
optimizer included, are compared.
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

from alternate import failure, peer
from sandbox import PROJECT, SMALL_TRAINING, Sandbox
from table import Spread, options, parse, show

SAVE_EVERY = 100
SILENCE, IN_SILENCE = 120.0, 18_000  # seconds without Prefect's API, and steps that are enough for them
PATIENCE = 300.0  # seconds after which a fault counts as not recovered from
SEGMENTS, SHORTEST = 20, 640  # task runs that the training is cut into, at most, and steps of one, at least
SETTINGS = SMALL_TRAINING | {"pretrain.save_every_steps": str(SAVE_EVERY)}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", help="which, separated by commas (default: all that --list prints)")
    parser.add_argument("--every", type=int, default=400, help="steps from one fault to the next, at most (400)")
    parser.add_argument("--list", action="store_true", help="print the faults that can be injected here, and exit")
    arguments = parse(parser, kills=2, every=150, faults="SIGKILL,newest cut short")
    available = [name for name in FAULTS if name != FULL_DISK or can_mount()]
    if arguments.list:
        print("\n".join(available))
        return 0
    names = arguments.faults.split(",") if arguments.faults else available
    for name in names:
        if name not in available:
            raise failure(name, "this machine has no right to mount a disk" if name in FAULTS else "no such fault")
    with tempfile.TemporaryDirectory() as folder, Training(Path(folder)) as training:
        draw = random.Random(arguments.seed)
        order = [name for _ in range(-(-arguments.kills // len(names))) for name in draw.sample(names, len(names))]
        order = order[: arguments.kills]
        silences = [name for name in order if FAULTS[name] is silence_the_api]
        training.steps = arguments.every * (arguments.kills + 2) + IN_SILENCE * len(silences)
        outcomes: dict[str, list[dict]] = {name: [] for name in names}
        with peer("koda up"):
            training.start()
        for number, name in enumerate(order):
            training.await_step(training.beat()["step"] + draw.randrange(arguments.every // 4, arguments.every))
            with peer(name):
                outcome = training.inject(FAULTS[name])
            outcomes[name].append(outcome)
            print(f"{number + 1:3} {name:26} {outcome}", flush=True)
        finished = training.await_end()
        states = training.states()
        with peer("the undisturbed run"):
            same = finished and training.same_as_undisturbed()
    rows = []
    for name, tried in outcomes.items():
        recovered = [outcome for outcome in tried if outcome["recovered"]]
        lost = max((outcome["lost"] for outcome in recovered), default="")
        seconds = Spread.of([outcome["seconds"] for outcome in recovered]) if recovered else ""
        rows.append([name, len(tried), len(recovered), lost, seconds])
    title = f"{arguments.kills} faults, seed {arguments.seed}, a save every {SAVE_EVERY} steps"
    head = ["fault", "tried", "recovered", "most steps lost", "seconds to a new step"]
    show(title, head, rows, arguments.json, same=same)
    verdict = "bit-identical to the undisturbed run's" if same else "NOT those of the undisturbed run"
    print(f"the run {'completed' if finished else 'did NOT complete'}; all arrays of its last checkpoint are {verdict}")
    print(f"the states of its attempts in Prefect: {', '.join(states)}")
    return 0 if same and states[-1] == "Completed" and all(row[1] == row[2] for row in rows) else 1


def mount(folder: Path) -> bool:
    """Mount a small disk there, which can be filled; False where this process has no right to."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "koda-chaos", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if mounted := mount(Path(folder)):
            unmount(Path(folder))
    return mounted


class Training(Sandbox):
    """The training that faults are injected into, under `koda up`; its runs are on a disk that can be filled."""

    def __init__(self, folder: Path):
        self.faults = folder / "faults"
        path = f"{PROJECT / 'bench/chaos_site'}:{folder / 'project'}"
        super().__init__(folder, KODA_CHAOS=str(self.faults), PYTHONPATH=path)
        self.faults.mkdir()
        self.run = self.runs / "chaos"
        self.training = self.run / "pretrain"
        self.copies = folder / "copies"
        self.steps = 0

    def __enter__(self) -> "Training":
        self.has_disk = mount(self.runs)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        if self.has_disk:
            unmount(self.runs)

    def start(self) -> None:
        from flows.config import parsed

        self.koda("up")
        segments = min(SEGMENTS, -(-self.steps // SHORTEST))
        changes = {"pretrain.steps": str(self.steps), "pretrain.segments": str(segments)}
        changes["pretrain.copy_to"] = str(self.copies)
        settings = json.dumps(parsed(SETTINGS | changes))
        parameters = ["--param", "name=chaos", "--param", f"settings={settings}"]
        self.python("prefect", "deployment", "run", "koda/pretrain", *parameters)
        if not self.wait(lambda: self.beat()["step"] > 0, "the first step"):
            raise TimeoutError("the training made no step")

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

    def await_step(self, step: int) -> None:
        self.wait(lambda: self.beat()["step"] >= step, f"step {step}")

    def inject(self, fault: Callable[["Training"], int | None]) -> dict:
        """Inject the fault, and wait until a training makes a step that was not made before it."""
        began, before = time.monotonic(), self.beat()
        survived_to = fault(self)
        reached = max(before["step"], self.beat()["step"]) if survived_to is None else survived_to

        def restarted() -> bool:
            beat = self.beat()
            return beat["pid"] != before["pid"] and beat["first_step"] is not None

        running = survived_to is not None or self.wait(restarted, "a restart")
        first = self.beat()["first_step"] if survived_to is None else reached
        recovered = running and self.wait(lambda: self.beat()["step"] > max(first + 1, 0), "a new step")
        lost = max(0, reached - self.beat()["first_step"]) if survived_to is None else 0
        return {"recovered": recovered, "lost": lost, "seconds": round(time.monotonic() - began, 1)}

    def newest(self) -> Path:
        """The newest committed checkpoint."""
        self.wait(lambda: list(self.training.glob("checkpoints/*/COMMIT.json")), "a checkpoint")
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

    def states(self) -> list[str]:
        """The states of the run's attempts in Prefect, once the last one has ended; the oldest first."""
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
        command = [sys.executable, "-m", "model.training", str(alone / "job.json"), str(self.steps)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        sums = [
            {name: a["crc32"] for name, a in arrays.facts(f / "checkpoints" / str(self.steps))["arrays"].items()}
            for f in (alone, self.training)
        ]
        return sums[0] == sums[1]


# A fault returns the step that the training survived to, or None where the training has to restart.


def kill(training: Training) -> None:
    training.kill()


def hang(training: Training) -> None:
    training.kill(signal.SIGSTOP)


def terminate(training: Training) -> None:
    training.kill(signal.SIGTERM)


def kill_in_save(training: Training) -> None:
    before = training.beat()["pid"]
    (training.faults / "in-save").touch()
    training.wait(lambda: not (training.faults / "in-save").exists() or training.beat()["pid"] != before, "a save")


def flip(training: Training) -> None:
    path = training.largest()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    training.kill()


def cut(training: Training) -> None:
    path = training.largest()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    training.kill()


def uncommit(training: Training) -> None:
    (training.newest() / "COMMIT.json").unlink()
    training.kill()


def delete_checkpoints(training: Training) -> None:
    """All that were saved here; there is a copy of the newest, or of one before it."""
    training.wait(lambda: training.copied() >= 0, "a copy")
    training.kill()
    shutil.rmtree(training.training / "checkpoints")


def lose_the_second_place(training: Training) -> int:
    """It takes no copies for a while: the training continues, and is copied again once it does."""
    aside = training.folder / "aside"
    training.wait(lambda: training.copied() >= 0, "a copy")
    training.copies.rename(aside)
    training.copies.touch()  # no folder, so that nothing can be written below it
    time.sleep(10)
    training.copies.unlink()
    aside.rename(training.copies)
    reached = training.beat()["step"]
    training.wait(lambda: training.copied() > reached, "a copy of a later step")
    return reached


def nan(training: Training) -> None:
    """As many batches as it takes, a little way ahead, give NaN; the training skips them after a restart."""
    from model.training.bad_steps import BAD_STEPS
    from model.training.records import WINDOWS

    windows = training.training / WINDOWS
    before = json.loads(windows.read_text()) if windows.is_file() else []
    first = training.beat()["step"] + sum(count for _, count in before) + 30
    (training.faults / "nan").write_text(json.dumps([first, first + BAD_STEPS]))
    training.wait(lambda: windows.is_file() and len(json.loads(windows.read_text())) > len(before), "a rollback")


def fill_the_disk(training: Training) -> int:
    """The disk is full for a while: saves fail, the training continues, and it saves again once there is room."""
    ballast, newest = training.runs / "ballast", -1
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    while newest != (newest := int(training.newest().name)):  # a save that had begun may still fit
        time.sleep(2 * SAVE_EVERY / 100)
    ballast.unlink()
    reached = training.beat()["step"]
    training.wait(lambda: int(training.newest().name) > reached, "a save with room")
    return reached


def kill_the_flow(training: Training) -> None:
    os.kill(training.flow(), signal.SIGKILL)


def kill_everything(training: Training) -> None:
    """Worker, flow and trainer at once; the server, a service of its own, survives. Then `koda up` again."""
    server = training.server()
    for pid in training.processes():
        if pid != server:
            os.kill(pid, signal.SIGKILL)
    training.koda("up")


def silence_the_api(training: Training) -> int:
    """The Prefect server does not reply for a while: the training continues, and so does the run."""
    server = training.server()
    os.kill(server, signal.SIGSTOP)
    time.sleep(SILENCE)
    os.kill(server, signal.SIGCONT)
    return training.beat()["step"]


FULL_DISK = "full disk"
FAULTS: dict[str, Callable[[Training], int | None]] = {
    "SIGKILL": kill,
    "SIGSTOP (a hang)": hang,
    "SIGTERM": terminate,
    "SIGKILL during a save": kill_in_save,
    "a byte flipped": flip,
    "newest cut short": cut,
    "commit file removed": uncommit,
    "checkpoints deleted": delete_checkpoints,
    "second place away": lose_the_second_place,
    "NaN in five batches": nan,
    FULL_DISK: fill_the_disk,
    "API silent for 2 min": silence_the_api,
    "SIGKILL of the flow": kill_the_flow,
    "SIGKILL of worker and all": kill_everything,
}

if __name__ == "__main__":
    sys.exit(main())
