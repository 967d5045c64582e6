"""The tokenize stage beside what a user would write instead, on the same text, vocabulary and cores.

Koda reads JSONL, hashes, looks for copies, encodes, and writes shards with their checksums; the peers are given the
text in memory (`encode_batch_fast` of `tokenizers`), or read the same file and save (`datasets.map`). The text is real
(the documentation on this machine, and --text FOLDER if given), repeated and varied so that no two documents are equal.

    .venv/bin/python bench/tokenize_text.py --tokenizer GPT2_FOLDER
    .venv/bin/python bench/tokenize_text.py --kill 10      # kill -9 at random moments, and compare the bytes
    .venv/bin/python bench/tokenize_text.py --memory       # peak of all processes together at 50 and at 200 MB
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from alternate import Work, alternate, ended, failure, peer, ratios, serve
from table import Spread, options, parse, show

WORKERS = 2


def main() -> int:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--megabytes", type=int, default=200, help="of text (default: 200)")
    parser.add_argument("--docs", default="docs", help="documentation to take text from (default: docs, all of it)")
    parser.add_argument("--text", type=Path, help="a folder of .txt files to take text from as well")
    parser.add_argument("--tokenizer", default="gpt2", help="tokenize.tokenizer (default: gpt2)")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "koda-bench-tokenize")
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES", help="instead: kill it, restart it, compare")
    parser.add_argument("--memory", action="store_true", help="instead: peak memory by size of the corpus")
    smallest = {"docs": "docs:optax", "tokenizer": "train", "rounds": 1}
    arguments = parse(parser, megabytes=4, corpus=Path(tempfile.gettempdir()) / "koda-bench-smoke", **smallest)
    if arguments.peer:
        with tempfile.TemporaryDirectory() as out:
            serve(lambda: turn(arguments.peer, corpus(arguments), arguments.tokenizer, Path(out)))
        return 0
    file = corpus(arguments)
    arguments.tokenizer = tokenizer_for(file, arguments.tokenizer)
    if arguments.kill:
        return kill(file, arguments)
    (memory if arguments.memory else compare)(file, arguments)
    return 0


def tokenizer_for(file: Path, tokenizer: str) -> str:
    """`tokenizer`; for `train` a small one that is trained on the first documents, since all peers need the same."""
    if tokenizer != "train":
        return tokenizer
    from model.data import tokenizer as tokenizers

    with file.open() as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(50), lines, strict=False)]
    folder = file.with_suffix(".tokenizer")
    tokenizers.train(iter(texts), 512).save(folder)
    return str(folder / "tokenizer.json")


def turn(name: str, file: Path, tokenizer: str, out: Path) -> Work:
    return partial(PEERS[name], file, tokenizer, out)


def compare(file: Path, arguments) -> None:
    figures = alternate(list(PEERS), arguments.rounds, "--tokenizer", arguments.tokenizer)
    faster = ratios(figures, "MB/s", "koda")
    rows = [
        [name, Spread.of(own["MB/s"]), Spread.of(own["M tokens/s"]), inverse(faster[name])]
        for name, own in figures.items()
    ]
    title = f"tokenize, {file.stat().st_size / 1e6:,.0f} MB of JSONL, {WORKERS} cores, median (min–max)"
    show(title, ["", "MB/s of text", "M tokens/s", "koda is faster by"], rows, arguments.json)


def inverse(ratio: Spread) -> Spread:
    return Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)


def koda(file: Path, tokenizer: str, out: Path) -> dict[str, float]:
    """The stage's own work: from the file to shards, a manifest, and what was held out."""
    from model.data.prepare import on_this_machine, prepare
    from tasks.tokenize import Tokenize

    folder = out / "koda"
    shutil.rmtree(folder, ignore_errors=True)
    settings = Tokenize(source=str(file), tokenizer=tokenizer, shard_tokens=1 << 22, heldout_fraction=0.01)
    began = time.perf_counter()
    figures = prepare(folder, settings.recipe(), on_this_machine(WORKERS), lambda *_: None)
    seconds = time.perf_counter() - began
    size, tokens = figures.train_bytes + figures.heldout_bytes, figures.train_tokens + figures.heldout_tokens
    return speed(size, tokens, seconds)


def in_memory(file: Path, tokenizer: str, out: Path) -> dict[str, float]:
    """`encode_batch_fast` on text already in memory: nothing read, nothing written."""
    from model.data.tokenizer import load

    texts = TEXTS.setdefault("all", [json.loads(line)["text"] for line in file.open("rb")])
    learner = load(tokenizer).tokenizer
    learner.encode_special_tokens = True
    size = sum(len(text.encode()) for text in texts)
    began = time.perf_counter()
    tokens = 0
    for start in range(0, len(texts), 1024):
        batch = learner.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in batch)
    return speed(size, tokens, time.perf_counter() - began)


def mapped(file: Path, tokenizer: str, out: Path) -> dict[str, float]:
    """`datasets`: load the file, map the tokenizer over it in two processes, save."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    from model.data.tokenizer import load

    datasets.disable_progress_bars()
    datasets.disable_caching()
    fast = PreTrainedTokenizerFast(tokenizer_object=load(tokenizer).tokenizer)
    began = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(out / "cache"))
    encoded = rows.map(
        lambda batch: {"ids": fast(batch["text"], split_special_tokens=True)["input_ids"]},
        batched=True,
        num_proc=WORKERS,
        remove_columns=["text"],
    )
    encoded.save_to_disk(str(out / "mapped"), num_proc=WORKERS)
    seconds = time.perf_counter() - began
    tokens = sum(len(ids) for batch in encoded.iter(1000) for ids in batch["ids"])
    size = sum(len(text.encode()) for batch in rows.iter(1000) for text in batch["text"])
    shutil.rmtree(out / "mapped")
    shutil.rmtree(out / "cache")
    return speed(size, tokens, seconds)


TEXTS: dict[str, list[str]] = {}
PEERS = {"koda": koda, "tokenizers in memory": in_memory, "datasets.map and save": mapped}


def speed(size: int, tokens: int, seconds: float) -> dict[str, float]:
    return {"MB/s": size / seconds / 1e6, "M tokens/s": tokens / seconds / 1e6, "seconds": seconds}


def kill(file: Path, arguments) -> int:
    """Kill the whole stage at random moments until it completes; its bytes against an undisturbed run's."""
    from model.files import listing

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with peer("the undisturbed run"):
            complete(run(file, arguments.tokenizer, Path(folder) / "whole"))
        seconds, draw, kills = time.monotonic() - began, random.Random(1), 0
        # Work between two kills shrinks as they get more: moments are drawn over what an undisturbed run takes.
        while True:
            attempt = run(file, arguments.tokenizer, Path(folder) / "killed")
            try:
                attempt.wait(draw.uniform(0.1, 0.6) * seconds if kills < arguments.kill else None)
            except subprocess.TimeoutExpired:
                os.killpg(attempt.pid, signal.SIGKILL)
                attempt.wait()
                kills += 1
                continue
            with peer("the killed run"):
                complete(attempt)
            break
        whole, killed = (listing(Path(folder) / name) for name in ("whole", "killed"))
        equal = "the same" if whole == killed else "OTHER"
        head = ["kills", "files", "bytes", "against an undisturbed run"]
        size = sum(facts["size"] for facts in killed.values())
        row = [kills, len(killed), size, equal]
        show(f"kill -9 of all, {file.stat().st_size / 1e6:,.0f} MB", head, [row], arguments.json)
    if kills < arguments.kill:
        raise failure("the killed run", f"it completed after {kills} of {arguments.kill} kills")
    return 0 if whole == killed else 1


def complete(attempt: subprocess.Popen) -> None:
    """Wait for the end. Raises RuntimeError where it failed."""
    if code := attempt.wait():
        raise RuntimeError(ended(code))


def memory(file: Path, arguments) -> None:
    rows, peaks = [], []
    for megabytes in (arguments.megabytes // 4, arguments.megabytes // 2, arguments.megabytes):
        arguments.megabytes = megabytes
        with tempfile.TemporaryDirectory() as folder, peer(f"{megabytes} MB"):
            attempt = run(corpus(arguments), arguments.tokenizer, Path(folder) / "out")
            peak = 0
            while attempt.poll() is None:
                peak = max(peak, resident(attempt.pid))
                time.sleep(0.05)
            complete(attempt)
        peaks.append(peak / 1e6)
        rows.append([f"{megabytes} MB", f"{peaks[-1]:,.0f}", f"{peaks[-1] / peaks[0]:.2f}"])
    show("peak memory of all processes (PSS, every 50 ms)", ["corpus", "MB", "to the first"], rows, arguments.json)


def run(file: Path, tokenizer: str, out: Path) -> subprocess.Popen:
    """The stage in a process group of its own."""
    code = (
        "import sys; from pathlib import Path; from tasks.tokenize import Tokenize\n"
        "from model.data.prepare import on_this_machine, prepare\n"
        "if __name__ == '__main__':\n"
        "    s = Tokenize(source=sys.argv[1], tokenizer=sys.argv[2], shard_tokens=1 << 22, heldout_fraction=0.01)\n"
        "    prepare(Path(sys.argv[3]), s.recipe(), on_this_machine(2), lambda *_: None)\n"
    )
    script = out.with_name("stage.py")
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script), str(file), tokenizer, str(out)], start_new_session=True)


def resident(group: int) -> int:
    """Proportional bytes of all processes of a group."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                line = re.search(r"^Pss:\s+(\d+)", (stat.parent / "smaps_rollup").read_text(), re.M)
                total += int(line[1]) * 1024 if line else 0
        except OSError:
            continue
    return total


def corpus(arguments) -> Path:
    """A JSONL file of so many megabytes, the same each time."""
    file = arguments.corpus / f"{arguments.megabytes}.jsonl"
    if not file.is_file():
        arguments.corpus.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part")
        with beside.open("w") as out:
            written, size = 0, arguments.megabytes * 1_000_000
            for text in varied(real(arguments.docs, arguments.text)):
                written += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if written >= size:
                    break
        beside.rename(file)
    return file


def real(source: str, folder: Path | None) -> list[str]:
    """Documents of at most 20,000 characters."""
    from model.data import docs

    texts = [document.text for document in docs.documents(source, WORKERS)]
    if folder:
        texts += [path.read_text(encoding="cp1252") for path in sorted(folder.rglob("*.txt"))]
    return [text[start : start + 20_000] for text in texts for start in range(0, len(text), 20_000)]


def varied(texts: list[str]) -> Iterator[str]:
    """Each text as it is, then again and again with its paragraphs in another order and other numbers in it."""
    draw = random.Random(0)
    yield from texts
    while True:
        for text in texts:
            paragraphs = text.split("\n\n")
            draw.shuffle(paragraphs)
            yield re.sub(r"\d+", lambda _: str(draw.randrange(10_000)), "\n\n".join(paragraphs)) + f"\n{draw.random()}"


if __name__ == "__main__":
    sys.exit(main())
