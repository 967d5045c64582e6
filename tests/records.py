"""The folder of a run as its stages leave it: figures and small files, without the work that they are the result of."""

import hashlib
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flows.config import as_toml, load
from model.figures import (
    CheckpointFigures,
    ConvertFigures,
    CorpusFigures,
    EvaluateFigures,
    ExtendFigures,
    ParityFigures,
    PretrainFigures,
    SftFigures,
    TaskFigures,
    TrainingFigures,
)
from model.files import append_line, listing, read_json, write_json
from model.training.records import METRICS, HeldoutMetrics, TrainingMetrics
from tasks.runs.record import RECORD

SOURCE = "hub:user/stories/en@main"
WEIGHTS = random.Random(0).randbytes(40_000)
EXPORTS = {
    "hf/config.json": b'{"model_type": "llama"}',
    "hf/tokenizer.json": b"{}",
    "hf/model.safetensors": WEIGHTS,
    "gguf/tiny-2.4M-Chat-Q8_0.gguf": b"GGUF" + WEIGHTS[:20_000],
    "gguf/Modelfile": b"FROM ./tiny-2.4M-Chat-Q8_0.gguf\n",
    "gguf/template": b"{{ .Prompt }}",
    "gguf/params": b'{"num_ctx": 256}',
    "mlx/8bit/config.json": b"{}",
    "mlx/8bit/model.safetensors": WEIGHTS[20_000:],
    "about.json": b'{"name": "tiny", "languages": ["en"]}',
}
TRAINED = TrainingFigures(steps=2400, tokens=2_457_600, loss=3.19, heldout_loss=3.51)
PARITY = ParityFigures(failed=[], kl_divergence=8e-5, perplexity_ratio=1.0002, greedy_equal=64)
HOMEMADE = TaskFigures(n=200, acc=0.575, stderr=0.035, chance=0.25, above_chance=True)
STANDARD = TaskFigures(n=100, acc=0.31, acc_norm=0.36, stderr=0.04, chance=0.25)
FIGURES: dict[str, Any] = {
    "tokenize": CorpusFigures(
        documents=2094,
        heldout_documents=64,
        train_tokens=3_408_653,
        heldout_tokens=128_582,
        vocab_size=4096,
        end_of_text=256,
        train_bytes=9_000_000,
        heldout_bytes=338_746,
        bytes_per_token=2.64,
        read=2158,
        dropped={},
        copies=0,
        near_evaluation_items={},
        longest_document=90_000,
        longest_document_name="user/stories, row 7",
        encoder="tiktoken",
        encoder_why="",
        commits={SOURCE: "abc123"},
        notes=0,
    ),
    "pretrain": PretrainFigures(parameters=2_410_176, **asdict(TRAINED)),
    "checkpoint": CheckpointFigures(step=2400, heldout_loss=3.51, parameters=2_410_176),
    "sft": SftFigures(
        conversations=900,
        heldout_conversations=40,
        too_long=0,
        asked=40,
        ends_by_itself=0.975,
        ends_by_itself_before=0.0,
        **asdict(replace(TRAINED, steps=150)),
    ),
    "extend": ExtendFigures(
        context=256, method="ntk", rope_theta=20945.9, old_rope_theta=10000.0, **asdict(replace(TRAINED, steps=180))
    ),
    "convert": ConvertFigures(
        exports=3,
        max_kl_divergence=8e-5,
        stopped=3,
        parity=dict.fromkeys(("hf", "gguf/tiny-2.4M-Chat-Q8_0.gguf", "mlx/8bit"), PARITY),
    ),
    "evaluate": EvaluateFigures(
        bits_per_byte=1.4294,
        bits_per_byte_final=1.54,
        bits_per_byte_by_source={},
        xz_bits_per_byte=1.95,
        ratio_to_xz=0.7332,
        heldout_bytes=338_746,
        tasks_above_chance=3,
        tasks={"ending": HOMEMADE, "word": replace(HOMEMADE, acc=0.65), "order": replace(HOMEMADE, acc=0.99)},
        standard={"arc_easy": STANDARD, "boolq": replace(STANDARD, acc=0.44)},
        samples=[],
    ),
}
PLACES = {"hf": "user/tiny", "gguf": "user/tiny-GGUF", "mlx": "user/tiny-MLX"}
READS = ("convert", "evaluate", "extend", "tokenize")  # the stages that publish reads


def write_run(run: Path) -> None:
    """Every stage but publish."""
    for stage, figures in FIGURES.items():
        write_record(run, stage, figures)
    (run / "run.toml").write_text(as_toml("tiny", load("tiny", {"tokenize": {"source": SOURCE}})))
    shards = [{"file": "00000.npy", "tokens": 3_408_653, "sha256": {"00000.npy": "c6" * 32}}]
    write_json(run / "tokenize/train/manifest.json", {"tokenizer": "88" * 32, "shards": shards})
    write_json(run / "extend/weights/COMMIT.json", {"config": {"vocab_size": 4096, "hidden_size": 192}})
    for step in range(10):
        line = TrainingMetrics(step, step / 10, 9 - step / 4, 1.0, 4e-3, 1024 * step, 0.0)
        append_line(run / "pretrain" / METRICS, asdict(line))
    append_line(run / "pretrain" / METRICS, asdict(HeldoutMetrics(9, 1.0, 7.0)))
    for path, data in EXPORTS.items():
        put(run / "convert" / path, data)
    record_exports(run)


def record_exports(run: Path) -> None:
    """Record the exports that are there as what convert wrote."""
    folder = run / "convert"
    outputs = {path: facts for path, facts in listing(folder).items() if path != RECORD}
    write_json(folder / RECORD, {**read_json(folder / RECORD), "outputs": outputs})


def write_record(run: Path, stage: str, figures: Any) -> None:
    """Record a stage as finished."""
    contents = {
        "stage": stage,
        "key": hashlib.sha256(stage.encode()).hexdigest(),
        "seconds": 61.0,
        "reads": {},
        "settings": {"tokenize": {"source": SOURCE}} if stage == "tokenize" else {},
        "finished": "2026-11-25T10:00:00Z",
        "figures": figures,
        "versions": {"python": "3.11.7", "koda": "0.1.0"},
        "outputs": {},
    }
    write_json(run / stage / RECORD, contents)


def put(path: Path, data: bytes) -> None:
    """A new file, in the place of an old one: publish links what convert wrote, and a link must not be changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
