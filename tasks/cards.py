"""Model cards, made of the run's own figures."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from model.files import read_json
from tasks.run import Built, read_built

USE = {
    "hf": """```python
from transformers import pipeline

chat = pipeline("text-generation", "{folder}")
question = [{{"role": "user", "content": "What does `os.path.join` do?"}}]
print(chat(question, max_new_tokens=100)[0]["generated_text"][-1])
```""",
    "gguf": """```sh
llama-cli -m {name}-Q8_0.gguf -p "What does \\`os.path.join\\` do?"
```

In LM Studio: My Models → import, and choose the file.
In Ollama: a Modelfile with the line `FROM ./{name}-Q8_0.gguf`.""",
    "mlx": """```sh
mlx_lm.generate --model 8bit --prompt "What does \\`os.path.join\\` do?"
```""",
}
LIBRARY = {"hf": "transformers", "gguf": "gguf", "mlx": "mlx"}


def card(
    kind: str, name: str, license_: str, run: Path, exports: Built, scores: Built, model: Built, tokens: Built
) -> str:
    """The README.md of one repository."""
    config = read_json(model / "weights/COMMIT.json")["config"]
    figures = scores.figures
    pretrain, sft = read_built(run, "pretrain"), read_built(run, "sft")
    data = ModelCardData(
        language="en", license=license_, library_name=LIBRARY[kind], tags=["koda"], pipeline_tag="text-generation"
    )
    shape = "\n".join(f"| `{key}` | {value} |" for key, value in config.items())
    tasks = "\n".join(
        f"| {task} | {100 * f['acc']:.1f} ± {100 * f['stderr']:.1f} | {100 * f['chance']:.1f} | {f['n']} |"
        for task, f in figures["tasks"].items()
        if f["n"]
    )
    parity = "\n".join(
        f"| {path} | {p['kl_divergence']:.1e} | {p['max_logprob_difference']:.1e} | {'yes' if p['stopped'] else 'no'} |"
        for path, p in exports.figures["parity"].items()
        if path.startswith(kind)
    )
    learned = f"{pretrain.figures['tokens']:,} tokens in {pretrain.figures['steps']:,} steps" if pretrain else "unknown"
    ends = f"{100 * sft.figures['ends_by_itself']:.0f} %" if sft and "ends_by_itself" in sft.figures else "unknown"
    text = f"""---
{data.to_yaml()}
---

# {name}

A language model trained from scratch with Koda: {parameters(run)} parameters, {learned}, on
{tokens.figures["documents"]:,} documents ({tokens.figures["train_tokens"]:,} tokens, vocabulary
{tokens.figures["vocab_size"]:,}).

## How to run it

{USE[kind].format(folder=".", name=name)}

## Figures of this run

Bits per byte on held-out text: **{figures["bits_per_byte"]:.3f}** ({figures["ratio_to_xz"]:.2f} × `xz -9` on the same
{figures["heldout_bytes"]:,} bytes). Answers to held-out questions that end by themselves: {ends}.

| task (home-made, held-out text) | accuracy, % | chance, % | items |
|---|---|---|---|
{tasks}

| export | KL divergence from the JAX model, nats | largest difference of a log-probability | stops by itself |
|---|---|---|---|
{parity}

## Shape

| | |
|---|---|
{shape}

## Limits

A small model: it continues text of the kind it was trained on, and answers are often wrong. It has had no safety
training. `lineage.json` leads from these files back to the configuration of each
stage, the hashes of tokenizer and corpus, and the versions of the packages.
"""
    return str(ModelCard(text))


def parameters(run: Path) -> str:
    """How many parameters the run's model has, as a person writes it."""
    built = read_built(run, "checkpoint")
    return f"{built.figures['parameters']:,}" if built else "unknown"
