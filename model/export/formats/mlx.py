"""The MLX folders, written by mlx-lm from the Hugging Face folder, and read back.

Letters in names: T time, V vocabulary, O outputs of a matrix, I its inputs, G groups, S weights of a group, B bits.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from model.data import chat
from model.errors import KodaError
from model.export import tensors
from model.export.formats.format import Export, Format, Source, Variant
from model.export.gptq import Groups
from model.export.hf_config import from_hf_config
from model.export.names import MODULES, check_tensors, drop_tied_head, from_hf, head_module
from model.export.runtime import Probe, Prompt, TextStream, TokenStream, Writer, template_errors, text_stream
from model.files import atomic_write, read_field, read_object
from model.sampling import Sampling
from model.stored import Stored

GROUP = 64  # weights that share a scale
HEAD = 6  # bits of the head beside 4, as in llama.cpp's Q4_K_M: half of what a small model loses is lost there
VARIANTS = {"fp16": Variant(16), "8bit": Variant(8, GROUP), "4bit": Variant(4, GROUP)}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write(folder: Path, hf_folder: Path, label: str, fitted: dict[str, Groups] | None = None) -> None:
    """Write one MLX folder (one of VARIANTS): fp16, or quantised in groups of 64, of 4 bits with a head of 6.

    `fitted`: the groups of the matrices, by their paths in the network; None: as mlx-lm rounds them.
    """
    import mlx_lm  # here, because it imports transformers, which takes seconds

    bits, config = VARIANTS[label].bits, hf_folder / "config.json"
    head = head_module(read_field(read_object(config), "tie_word_embeddings", bool, config, False))

    def precision(module: str, *_: Any) -> bool | dict[str, int]:
        return {"group_size": GROUP, "bits": HEAD} if bits < HEAD and module == head else True

    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mlx_lm.convert(
        str(hf_folder),
        str(folder),
        quantize=bits < 16,
        q_bits=bits,
        q_group_size=GROUP,
        dtype="float16",
        quant_predicate=precision,
    )
    (folder / "README.md").unlink(missing_ok=True)  # mlx-lm's, which calls every model English
    for name in TOKENIZER_FILES:  # mlx-lm writes its own, which transformers 4 refuses
        shutil.copyfile(hf_folder / name, folder / name)
    if fitted is not None:
        _replace(folder, dict(module for path, groups in fitted.items() for module in by_module(path, groups)))


def by_module(path: str, groups: Groups) -> Iterator[tuple[str, Groups]]:
    """The matrices of a path in the network by transformers' names of their modules."""
    if not path.startswith("layers/"):
        yield {"embedding": "model.embed_tokens", "head": "lm_head"}[path], groups
        return
    _, part, name, _ = path.split("/")
    for number in range(len(groups.codes)):
        yield f"model.layers.{number}.{MODULES[part, name]}", Groups(*(array[number] for array in groups))


def _replace(folder: Path, fitted: dict[str, Groups]) -> None:
    """Put these groups into a quantised folder, in the place of all that are in it."""
    for path in tensors.files(folder):
        parts = load_file(path)
        for module in [name.removesuffix(".scales") for name in parts if name.endswith(".scales")]:
            groups, old = fitted.pop(module), parts[f"{module}.weight"]
            parts[f"{module}.weight"] = new = packed(groups.codes, 32 * old.shape[1] // groups.codes[0].size)
            assert new.shape == old.shape
            parts[f"{module}.scales"] = groups.scales.astype(np.float16)
            parts[f"{module}.biases"] = groups.biases.astype(np.float16)
        with atomic_write(path, "wb") as beside:
            beside.write(save(parts, {"format": "mlx"}))
    assert not fitted, f"not in {folder}: {', '.join(fitted)}"


def packed(codes_OGS: np.ndarray, bits: int) -> np.ndarray:
    """Codes of so many bits as MLX stores them: one after the other, each and all from the lowest bit on, in numbers of
    32 bits; `[outputs, inputs · bits / 32]`."""
    bits_OIB = np.unpackbits(codes_OGS.reshape(len(codes_OGS), -1, 1), axis=-1, count=bits, bitorder="little")
    return np.packbits(bits_OIB.reshape(len(codes_OGS), -1), axis=-1, bitorder="little").view("<u4")


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
        config = folder / "config.json"
        self.context: int = read_field(read_object(config), "max_position_embeddings", int, config)

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

    def encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        with template_errors():
            return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        self.mx.random.seed(sampling.seed)
        penalty = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
        limit = min(sampling.limit, self.context - len(ids))
        pieces = self.lm.stream_generate(
            self.model,
            self.tokenizer,
            ids,
            max_tokens=limit,
            sampler=make_sampler(sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k),
            logits_processors=make_logits_processors(None, penalty, 1 << 20),
        )
        writer = Writer(self.tokenizer._tokenizer.decode, self.tokenize("a")[-1])  # its own holds words back
        yield from writer.write(
            ((piece.token, piece.logprobs) for piece in pieces), limit, self.tokenizer.eos_token_ids, top
        )

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        return (yield from text_stream(self.generate(self.encode(messages), sampling)))


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
        from model.export import distil  # here, because it imports JAX

        for label in variants:
            bits = self.variants[label].bits
            fitted = distil.fitted(source.model, source.text, bits, HEAD, GROUP) if bits == 4 else None
            write(out / self.name / label, out / "hf", label, fitted)
            yield Export(f"{self.name}/{label}", self.name, self.variants[label].bits)

    def read(self, path: Path) -> Stored:
        return read(path)

    def open(self, path: Path, context: int) -> MlxLm:
        return MlxLm(path)

    def exports(self, folder: Path) -> list[Path]:
        written = [path.parent for path in tensors.visible(folder, "*/config.json")]
        return sorted(written, key=lambda path: path.name != "8bit")
