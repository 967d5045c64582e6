"""The joined pipeline: one small real run, by its real command, through a real Prefect server."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from flows import stages
from model import arrays
from model.files import read_json
from tests.pipeline import KODA, await_step, command, run, status


@pytest.mark.timeout(900)
def test_all_eight_stages_are_built(project: Path, finished_run: Path) -> None:
    state = status(project, "small")
    assert [stage["state"] for stage in state["stages"]] == ["done"] * 8
    assert (state["name"], state["preset"], state["step"], state["steps"]) == ("small", "tiny", 120, 120)
    figures = {stage["stage"]: stage["figures"] for stage in state["stages"]}
    assert figures["pretrain"]["heldout_loss"] < 5.5  # the uniform model is at 6.24
    assert figures["sft"]["ends_by_itself"] > figures["sft"]["ends_by_itself_before"]
    assert figures["extend"]["context"] == 128 and figures["extend"]["long_rows"] > figures["extend"]["chat_rows"] > 0
    losses = figures["extend"]["measured"]["loss_by_method"]
    assert set(losses) == {"unchanged", "linear", "yarn", "ntk", "ntk, adapted"}
    assert figures["evaluate"]["bits_per_byte"] < 8
    assert len(figures["evaluate"]["tasks"]) == 8


def test_no_file_of_a_run_is_more_private_than_the_umask_has_it(finished_run: Path, tmp_path: Path) -> None:
    """Others on the machine read the exports, and a server that runs as another user serves them."""
    (tmp_path / "mine").touch()
    usual = (tmp_path / "mine").stat().st_mode
    files = [path for path in finished_run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {"adapter_model.safetensors", "model.safetensors"} <= {path.name for path in files}
    assert [str(path) for path in files if path.stat().st_mode & usual != usual] == []


def test_published_files_answer_and_stop_in_their_runtimes(finished_run: Path) -> None:
    """convert opened each export in its own runtime; this opens what was published, as a user would."""
    from model.export.formats.gguf import LlamaCpp
    from model.export.formats.hf import Transformers
    from model.export.formats.mlx import MlxLm
    from model.export.runtime import Jax, answer
    from model.sampling import Sampling

    question = [{"role": "user", "content": "Say 7"}]
    greedy = Sampling(limit=20)
    model = Jax.load(finished_run / "extend/weights", finished_run / "tokenize/tokenizer.json")
    expected = answer(model, question, greedy)
    assert expected.stopped
    published = finished_run / "publish"
    for runtime in (
        Transformers(published / "hf"),
        LlamaCpp(published / "gguf/small-107K-Chat-F16.gguf", 128),
        MlxLm(published / "mlx/fp16"),
    ):
        assert answer(runtime, question, greedy) == expected, runtime


def test_adapter_in_peft_equals_the_merged_model(
    project: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command exports the base to where the adapter names it, from the folder that the run was started in; both
    together, in PEFT, give the merged logits."""
    import peft
    import torch

    from model import weights

    monkeypatch.chdir(project)
    export = [KODA, "convert", "small/checkpoint", "--to", "hf", "--out", "runs/small/base"]
    subprocess.run(export, check=True, capture_output=True, timeout=300)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained("runs/small/sft/adapter").eval()
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        theirs = adapted(tokens).logits.numpy()
    merged = weights.load(finished_run / "sft/weights")(tokens.numpy())
    assert abs(theirs - merged).max() < 1e-4


def test_corpus_in_one_file_needs_no_setting_but_its_name(tmp_path: Path) -> None:
    """A play as people have it: speeches with empty lines between them."""
    speeches = (f"Speaker {n % 7}:\nThis is speech {n}; it says {n * n}.\nAnd so on.\n\n" for n in range(12_000))
    (tmp_path / "input.txt").write_text("".join(speeches))
    printed = run(tmp_path, KODA, "run", "--name", "play", "--until", "tokenize", "--set", "tokenize.source=input.txt")
    assert "documents were cut (tokenize.cut=paragraphs)" in printed
    figures = read_json(tmp_path / "runs/play/tokenize/stage.json")["figures"]
    share = figures["heldout_bytes"] / (tmp_path / "input.txt").stat().st_size
    assert 0.01 < share < 0.06 and figures["train_bytes"] > 0.9 * (tmp_path / "input.txt").stat().st_size


def test_report_refers_to_no_other_file(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    assert page.count("<figure>") == 5 and "small-107K-Chat-Q8_0.gguf" in page
    assert not re.search(r"""(?:src|href)=["']?(?!#)""", re.sub(r"xlink:href=\"#", "", page))


def test_lineage_has_the_configuration_of_the_run(finished_run: Path) -> None:
    for kind in ("hf", "gguf", "mlx"):
        repository = finished_run / "publish" / kind
        lineage = json.loads((repository / "lineage.json").read_text())
        assert lineage["configuration"] == (finished_run / "run.toml").read_text()
        sums = dict(reversed(line.split("  ")) for line in (repository / "CHECKSUMS").read_text().splitlines())
        assert "README.md" in sums and "lineage.json" in sums


def test_second_run_builds_nothing_and_a_changed_setting_only_what_follows(project: Path, finished_run: Path) -> None:
    before = {p.parent.name: p.stat().st_mtime_ns for p in finished_run.glob("*/stage.json")}
    assert run(project, *command("small")).count("up to date") == 8
    assert {p.parent.name: p.stat().st_mtime_ns for p in finished_run.glob("*/stage.json")} == before
    out = run(project, *command("small", **{"evaluate.items": "20"}))
    assert out.count("up to date") == 6 and "evaluate   done" in out and "publish    done" in out


def checksums(folder: Path) -> dict[str, int]:
    return {name: a["crc32"] for name, a in arrays.facts(folder / "pretrain/checkpoints/120")["arrays"].items()}


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_weights_after_kill_9_are_bit_identical(project: Path, finished_run: Path) -> None:
    """The trainer is killed in the first segment, and the flow restarts it; the flow is killed in the second, and the
    same command resumes. Meanwhile a second command on the same run is refused.
    """
    folder = project / "runs/killed"
    arguments = [*command("killed"), "--until", "checkpoint"]
    with (project / "killed.log").open("w") as log:
        flow = subprocess.Popen(arguments, cwd=project, stdout=log, stderr=log)
    trainer = await_step(folder, 13, flow)
    os.kill(trainer, signal.SIGSTOP)  # so that the run is still locked, however slow the second command is
    second = subprocess.run(arguments, cwd=project, capture_output=True, text=True, timeout=300)
    assert second.returncode == 1 and "is locked by process" in second.stderr
    os.kill(trainer, signal.SIGKILL)
    await_step(folder, 65, flow)
    flow.kill()
    flow.wait()
    run(project, *arguments)
    assert status(project, "killed")["restarts"] == 2
    assert checksums(folder) == checksums(finished_run)


def test_rebuild_of_a_part_builds_its_own_stage_and_what_follows(
    project: Path, finished_run: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """koda/pretrain ends with the checkpoint, and rebuilds the training, not the tokens."""
    monkeypatch.chdir(project)
    tokens = (finished_run / "tokenize/stage.json").stat().st_mtime_ns
    stages.pretrain(name="small", rebuild=True, settings={"pretrain": {"steps": 20}})
    assert (finished_run / "tokenize/stage.json").stat().st_mtime_ns == tokens
    assert (finished_run / "checkpoint/weights").is_dir() and list(finished_run.glob("pretrain.*"))
    assert read_json(finished_run / "checkpoint/stage.json")["figures"]["step"] == 20
