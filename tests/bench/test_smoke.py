"""Every bench runs in its smoke form with all its peers, and a peer that fails ends it with exit code 1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SECONDS = 900  # minutes on a machine with other work, where most benches take seconds alone
# A command, and the first cell of each row of its table: a row for each peer.
ROWS = {
    "chaos": ["SIGKILL", "newest cut short"],
    "checkpoint": ["tiny"],
    "endings": [
        "before fine-tuning",
        "fine-tuned, the end not in the loss",
        "fine-tuned as shipped",
        "with the longer context",
        "hf, transformers on torch",
        "small-107K-Chat-Q8_0.gguf, llama.cpp",
        "small-107K-Chat-F16.gguf, llama.cpp",
        "8bit, mlx-lm",
        "4bit, mlx-lm",
        "fp16, mlx-lm",
    ],
    "eval": ["harness, one at a time", "harness, batches of 16", "koda"],
    "export": ["bfloat16 → hf", "bfloat16 → F16", "bfloat16 → Q8_0", "bfloat16 → 4bit"],
    "flow_runs": ["SQLite"],
    "flow_runs --database postgresql": ["PostgreSQL"],
    "generate": ["transformers, PyTorch", "koda, JAX", "llama.cpp, F16"],
    "loader": [
        "koda-1.3b on an H200 at 50 % of peak",
        "koda-124m on an H200 at 50 % of peak",
        "tiny on 2 CPU cores, as measured",
    ],
    "nightly": ["alone", "beside one in the background", "beside one in the foreground"],
    "optimizers": ["adamw", "muon"],
    "restart": ["cold", "with the cache"],
    "tokenize_text": ["koda", "tokenizers in memory", "datasets.map and save"],
    "tokenize_text --kill 1": [1],
    "tokenize_text --memory": ["1 MB", "2 MB", "4 MB"],
    "trackers": ["no tracker", "tensorboard", "mlflow, a server that never replies"],
    "train_step": [
        "torch float32",
        "torch float32 compiled",
        "torch bfloat16",
        "torch bfloat16 compiled",
        "koda float32",
        "koda bfloat16",
        "koda float32 muon",
    ],
}
READ_A_RUN = {"endings", "eval", "generate", "nightly", "optimizers", "restart", "trackers"}
MARKS = {
    "chaos": [pytest.mark.chaos],
    "flow_runs": [pytest.mark.up],
    "flow_runs --database postgresql": [pytest.mark.up, pytest.mark.postgresql],
    "restart": [pytest.mark.chaos],
    "tokenize_text --kill 1": [pytest.mark.chaos],
}


def run(*arguments: str, cwd: Path = BENCH, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the servers that it started
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_every_bench_is_listed() -> None:
    benches = {path.stem for path in BENCH.glob("*.py") if "__main__" in path.read_text()}
    assert benches == {command.split()[0] for command in ROWS} | {"gpu"}  # which has a test of its own


@pytest.mark.bench
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [pytest.param(command, marks=MARKS.get(command, [])) for command in ROWS])
def test_smoke_form_has_a_row_for_each_peer(command: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, *options = command.split()
    cwd = BENCH.parent
    if name in READ_A_RUN:
        run_folder: Path = request.getfixturevalue("finished_run")
        options += ["--run", str(run_folder)]
        cwd = run_folder.parents[1]  # the project that it is a run of
    table = tmp_path / "table.json"
    ended = run(str(BENCH / f"{name}.py"), "--smoke", *options, "--json", str(table), cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [next(iter(row.values())) for row in json.loads(table.read_text())["rows"]]
    assert rows == ROWS[command]
    lines = ended.stdout.splitlines()
    assert all(any(line.startswith(str(row)) for line in lines) for row in rows), ended.stdout


def test_bench_fails_where_a_peer_cannot_start(tmp_path: Path) -> None:
    """PyTorch is installed and cannot be imported: its peer fails, and there is no table without it."""
    (tmp_path / "torch.py").write_text("raise ImportError('a library is missing')")
    peers = ["--peers", "torch float32,koda float32"]
    ended = run("train_step.py", "--smoke", *peers, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.splitlines()[-1] == "bench: peer 'torch float32' failed: ImportError: a library is missing"


def test_bench_fails_where_a_peer_is_unknown() -> None:
    ended = run("chaos.py", "--smoke", "--faults", "SIGKILL,flood")
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == "bench: peer 'flood' failed: no such fault"


@pytest.mark.parametrize(
    ("work", "error"),
    [
        ("return {'speed': 1.0}", ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("sys.exit(3)", "exit code 3"),
        ("return {'speed': 1 / 0}", "ZeroDivisionError: float division by zero"),
    ],
)
def test_bench_fails_where_a_peer_fails_in_its_turn(tmp_path: Path, work: str, error: str) -> None:
    script = tmp_path / "bench.py"
    script.write_text(f"""
import os, signal, sys
from alternate import alternate, peer, serve
turns = []
def work():
    turns.append(1)
    if len(turns) < 3:  # the warm-up and the first round go well
        return {{"speed": 2.0}}
    {work.replace("1 / 0", "1.0 / 0")}
if "--peer" in sys.argv:
    serve(lambda: work if sys.argv[-1] == "second" else lambda: {{"speed": 2.0}})
else:
    print(alternate(["first", "second", "third"], 2)["second"])
""")
    ended = run(str(script), PYTHONPATH=str(BENCH))
    if error:
        assert ended.returncode == 1 and not ended.stdout
        assert ended.stderr.splitlines()[-1] == f"bench: peer 'second' failed: {error}"
    else:
        assert ended.returncode == 0 and ended.stdout == "{'speed': [2.0, 1.0]}\n"


def test_bench_fails_where_the_work_of_a_peer_raises(tmp_path: Path) -> None:
    script = tmp_path / "bench.py"
    script.write_text("from alternate import peer\nwith peer('an export'):\n    open('/nonexistent')\n")
    ended = run(str(script), PYTHONPATH=str(BENCH))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("bench: peer 'an export' failed: FileNotFoundError: ")
