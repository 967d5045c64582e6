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
from tests.pipeline import await_step, command, run, status


@pytest.mark.timeout(900)
def test_all_eight_stages(project: Path, finished: Path) -> None:
    found = status(project, "small")
    assert [stage["state"] for stage in found["stages"]] == ["done"] * 8
    assert (found["name"], found["preset"], found["step"], found["steps"]) == ("small", "tiny", 120, 120)
    figures = {stage["stage"]: stage["figures"] for stage in found["stages"]}
    assert figures["pretrain"]["heldout_loss"] < 5.5  # the uniform model is at 6.24
    assert figures["sft"]["ends_by_itself"] > figures["sft"]["ends_by_itself_before"]
    assert figures["extend"]["context"] == 128 and figures["extend"]["long_rows"] > figures["extend"]["chat_rows"] > 0
    assert set(figures["extend"]["loss"]) == {"unchanged", "linear", "yarn", "ntk", "ntk, adapted"}
    assert figures["evaluate"]["bits_per_byte"] < 8
    assert len(figures["evaluate"]["tasks"]) == 8


def test_the_published_files_answer_and_stop_in_their_runtimes(finished: Path) -> None:
    """convert opened each export in its own runtime; this opens what was published, as a user would."""
    from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, answer
    from model.sampling import Sampling

    question = [{"role": "user", "content": "Say 7"}]
    greedy = Sampling(limit=20)
    expected = answer(Jax(finished / "extend/weights", finished / "tokenize/tokenizer.json"), question, greedy)
    assert expected.stopped
    published = finished / "publish"
    for runtime in (
        HuggingFace(published / "hf"),
        LlamaCpp(published / "gguf/small-F16.gguf", 128),
        Mlx(published / "mlx/fp16"),
    ):
        assert answer(runtime, question, greedy) == expected, runtime


def test_the_adapter_is_what_peft_loads(finished: Path) -> None:
    """The base with the adapter, in PEFT, gives the logits of the merged model."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from model import weights
    from model.export import hf

    hf.write(
        finished / "base-hf",
        weights.read(finished / "checkpoint/weights"),
        finished / "tokenize/tokenizer.json",
        "float32",
    )
    base = AutoModelForCausalLM.from_pretrained(finished / "base-hf")
    adapted = peft.PeftModel.from_pretrained(base, finished / "sft/adapter").eval()
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        theirs = adapted(tokens).logits.numpy()
    merged = weights.load(finished / "sft/weights")(tokens.numpy())
    assert abs(theirs - merged).max() < 1e-4


def test_the_report_needs_no_network(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("<figure>") == 5 and "small-Q8_0.gguf" in page
    assert not re.search(r"""(?:src|href)=["']?(?!#)""", re.sub(r"xlink:href=\"#", "", page))


def test_lineage_leads_back(finished: Path) -> None:
    for kind in ("hf", "gguf", "mlx"):
        lineage = json.loads((finished / "publish" / kind / "lineage.json").read_text())
        assert lineage["configuration"] == (finished / "run.toml").read_text()
        sums = dict(
            reversed(line.split("  ")) for line in (finished / "publish" / kind / "CHECKSUMS").read_text().splitlines()
        )
        assert "README.md" in sums and "lineage.json" in sums


def test_a_second_run_does_nothing_and_a_changed_setting_only_what_follows(project: Path, finished: Path) -> None:
    before = {p.parent.name: p.stat().st_mtime_ns for p in finished.glob("*/stage.json")}
    assert run(project, *command("small")).count("stands") == 8
    assert {p.parent.name: p.stat().st_mtime_ns for p in finished.glob("*/stage.json")} == before
    out = run(project, *command("small", **{"evaluate.items": "20"}))
    assert out.count("stands") == 6 and "evaluate   done" in out and "publish    done" in out


def checksums(folder: Path) -> dict[str, int]:
    return {name: a["crc32"] for name, a in arrays.facts(folder / "pretrain/checkpoints/120")["arrays"].items()}


@pytest.mark.timeout(900)
def test_kill_9_of_the_trainer_costs_no_bit(project: Path, finished: Path) -> None:
    """Killed in the first segment, the flow starts it again by itself; the flow killed in the second, the same command
    goes on; and the weights are the undisturbed ones. Meanwhile a second command on the same run is refused.
    """
    folder = project / "runs/killed"
    arguments = [*command("killed"), "--until", "checkpoint"]
    with (project / "killed.log").open("w") as log:
        flow = subprocess.Popen(arguments, cwd=project, stdout=log, stderr=log)
    trainer = await_step(folder, 13, flow)
    os.kill(trainer, signal.SIGSTOP)  # so that the run is still being worked on, however slow the second command is
    second = subprocess.run(arguments, cwd=project, capture_output=True, text=True, timeout=300)
    assert second.returncode == 1 and "is being worked on by process" in second.stderr
    os.kill(trainer, signal.SIGKILL)
    await_step(folder, 65, flow)
    flow.kill()
    flow.wait()
    run(project, *arguments)
    assert status(project, "killed")["restarts"] == 2
    assert checksums(folder) == checksums(finished)


def test_a_part_anew_builds_its_own_stage_and_what_follows(
    project: Path, finished: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """koda/pretrain goes on to the checkpoint, and what it is named for is the training."""
    monkeypatch.chdir(project)
    tokens = (finished / "tokenize/stage.json").stat().st_mtime_ns
    stages.pretrain(name="small", anew=True, settings={"pretrain": {"steps": 20}})
    assert (finished / "tokenize/stage.json").stat().st_mtime_ns == tokens
    assert (finished / "checkpoint/weights").is_dir() and list(finished.glob("pretrain.*"))
    assert read_json(finished / "checkpoint/stage.json")["figures"]["step"] == 20
