"""The MLX folders, written by mlx-lm from the Hugging Face folder, and read back.

Letters in names: T time, V vocabulary.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.data import chat
from model.errors import KodaError
from model.export import tensors
from model.export.formats.format import Export, Format, Source, Variant
from model.export.hf_config import from_hf_config
from model.export.names import check_tensors, drop_tied_head, from_hf
from model.export.runtime import Probe, TextStream
from model.files import read_field, read_object
from model.sampling import Sampling
from model.stored import Stored

GROUP = 64  # weights that share a scale
VARIANTS = {"fp16": Variant(16), "8bit": Variant(8, GROUP), "4bit": Variant(4, GROUP)}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write(folder: Path, hf_folder: Path, label: str) -> None:
    """Write one MLX folder (one of VARIANTS): fp16, or quantised in groups of 64."""
    import mlx_lm  # here, because it imports transformers, which takes seconds

    bits = VARIANTS[label].bits
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mlx_lm.convert(str(hf_folder), str(folder), quantize=bits < 16, q_bits=bits, q_group_size=GROUP, dtype="float16")
    for name in TOKENIZER_FILES:  # mlx-lm writes its own, which transformers 4 refuses
        shutil.copyfile(hf_folder / name, folder / name)


def read(folder: Path) -> Stored:
    """The model in an MLX folder, what is quantised as float32. Raises KodaError for what is not Koda's network."""
    import mlx.core as mx

    raw = read_object(folder / "config.json")
    how = read_field(raw, "quantization", dict, folder / "config.json", None) or {}
    raw = {name: value for name, value in raw.items() if name not in ("quantization", "quantization_config")}
    shape = from_hf_config(raw, str(folder / "config.json"))
    parts: dict[str, mx.array] = {}
    for path in tensors.files(folder):
        with tensors.whole(path):
            parts |= mx.load(str(path))  # type: ignore[arg-type]
    for module in [name.removesuffix(".scales") for name in parts if name.endswith(".scales")]:
        parts[f"{module}.weight"] = _dequantised(parts, module, how, folder)
    check_tensors({name: tuple(array.shape) for name, array in parts.items()}, shape, folder)
    named: dict[str, np.ndarray] = {}
    for name in [*parts]:
        array = parts.pop(name)
        if array.dtype not in (mx.float32, mx.float16, mx.bfloat16):
            raise KodaError(f"{folder}: {name} is {array.dtype}; Koda reads {', '.join(tensors.TYPES)}.")
        named[name] = np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    drop_tied_head(named, shape, folder)
    return Stored(shape, from_hf(named, shape.num_hidden_layers))


def _dequantised(parts: dict[str, Any], module: str, how: dict[str, Any], folder: Path) -> Any:
    """A quantised matrix as float32; `how` has a layer's own bits under its name. Raises KodaError for other modes."""
    import mlx.core as mx

    own = how.get(module)
    chosen = {**how, **own} if isinstance(own, dict) else how
    if (mode := chosen.get("mode", "affine")) != "affine":
        raise KodaError(f"{folder}: {module} is quantised as {mode!r}; Koda reads mlx-lm's `affine`.")
    for part in ("weight", "biases"):
        if f"{module}.{part}" not in parts:
            raise KodaError(f"{folder}: {module}.{part} is missing.")
    size, bits = (
        read_field(chosen, name, int, f"{folder / 'config.json'}: quantization") for name in ("group_size", "bits")
    )
    array, scales, biases = (parts.pop(f"{module}.{part}") for part in ("weight", "scales", "biases"))
    try:
        return mx.dequantize(array, scales.astype(mx.float32), biases.astype(mx.float32), group_size=size, bits=bits)
    except (ValueError, RuntimeError) as error:
        raise KodaError(f"{folder}: {module} cannot be dequantised as config.json has it: {error}") from None


class MlxLm:
    """mlx-lm, computing in float32: half precision is emulated, and very slow, on a CPU."""

    def __init__(self, folder: Path):
        import mlx.core
        import mlx_lm

        self.mx, self.lm = mlx.core, mlx_lm
        self.model, self.tokenizer, *_ = mlx_lm.load(str(folder))
        self.model.set_dtype(mlx.core.float32)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        logits_TV = self.model(self.mx.array([ids]))[0].astype(self.mx.float32)
        return Probe.of(np.array(logits_TV), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        from mlx_lm.generate import generate_step

        tokens: list[int] = []
        for token, _ in generate_step(self.mx.array(ids), self.model, max_tokens=count):
            if int(token) in self.tokenizer.eos_token_ids:
                break
            tokens.append(int(token))
        return tokens

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def ends(self, of: Collection[int]) -> set[int]:
        return set(of) & set(self.tokenizer.eos_token_ids)

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        self.mx.random.seed(sampling.seed)
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        penalty = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
        reason = None
        for piece in self.lm.stream_generate(
            self.model,
            self.tokenizer,
            prompt,
            max_tokens=sampling.limit,
            sampler=make_sampler(sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k),
            logits_processors=make_logits_processors(None, penalty, 1 << 20),
        ):
            reason = piece.finish_reason
            if piece.text:
                yield piece.text
        return reason == "stop"


class Mlx(Format):
    name = "mlx"
    suffix = "-MLX"
    runtime = "mlx-lm"
    package = "mlx_lm"
    library = "mlx"
    variants = VARIANTS
    needs = ("hf",)
    usage = """mlx_lm, in the folder with the files: `mlx_lm.generate --model {file} --prompt '{question}'`

LM Studio on a Mac opens the same folder."""

    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        for label in variants:
            write(out / self.name / label, out / "hf", label)
            yield Export(f"{self.name}/{label}", self.name, self.variants[label].bits)

    def read(self, path: Path) -> Stored:
        return read(path)

    def open(self, path: Path, context: int) -> MlxLm:
        return MlxLm(path)

    def exports(self, folder: Path) -> list[Path]:
        written = [path.parent for path in tensors.visible(folder, "*/config.json")]
        return sorted(written, key=lambda path: path.name != "8bit")
