"""The Hugging Face folder: safetensors and the files that transformers 4 and 5 both read."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from model.config import LlamaConfig
from model.data import chat
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.export import tensors
from model.export.formats.format import Export, Format, Source, Variant
from model.export.hf_config import from_hf_config, to_hf_config
from model.export.names import check_tensors, drop_tied_head, from_hf, to_hf
from model.export.runtime import Probe, Prompt, TextStream, TokenStream, Writer, template_errors, text_stream
from model.files import read_object, write_json
from model.sampling import Sampling
from model.stored import Stored

UNUSED = "rotary_emb.inv_freq"  # old exports carry the rotary frequencies, which add nothing


def write(folder: Path, model: Stored, vocabulary: Vocabulary, dtype: str, shard: int = tensors.SHARD) -> None:
    """Write a model and its vocabulary to `folder`; `dtype` is a number type or `auto`, the one it is stored in."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder, list(to_hf(model.params)), dtype, shard)
    stored, special = model.params["embedding"].dtype.name, vocabulary.special
    tokens = {
        "bos_token_id": special.bos,
        "eos_token_id": special.stops[0] if len(special.stops) == 1 else list(special.stops),
        "pad_token_id": special.pad,
    }
    named = {name: token for name, token in tokens.items() if token is not None}
    write_json(folder / "config.json", to_hf_config(model.config, stored if dtype == "auto" else dtype) | named)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **named})
    write_tokenizer(folder, vocabulary, model.config.max_position_embeddings)


def read(folder: Path) -> Stored:
    """Any LlamaForCausalLM: one file or several, tied or not, float32, float16 or bfloat16, as stored.

    Raises KodaError, by name, for what Koda cannot represent, and for tensors that are missing or of another shape.
    """
    shape, _ = check(folder)
    named = {name: tensor for name, tensor in tensors.read(folder) if not name.endswith(UNUSED)}
    drop_tied_head(named, shape, folder)
    return Stored(shape, from_hf(named, shape.num_hidden_layers))


def check(folder: Path) -> tuple[LlamaConfig, str]:
    """The shape of the model in a folder, and the type of its embedding, from the headers of its files alone.

    Raises KodaError as `read` does, but for numbers.
    """
    if not (folder / "config.json").is_file():
        raise KodaError(f"{folder} is no Hugging Face model: it has no config.json.")
    shape = from_hf_config(read_object(folder / "config.json"), str(folder / "config.json"))
    named = {name: fact for name, fact in tensors.headers(folder).items() if not name.endswith(UNUSED)}
    check_tensors({name: actual for name, (actual, _) in named.items()}, shape, folder)
    types = {stored: name for name, stored in tensors.TYPES.items()}
    for name, (_, type_) in named.items():
        if type_ not in types:
            raise KodaError(f"{folder}: {name} is {type_}; Koda reads {', '.join(tensors.TYPES)}.")
    return shape, types[named["model.embed_tokens.weight"][1]]


def write_tokenizer(folder: Path, vocabulary: Vocabulary, context: int) -> None:
    """The tokenizer's files. Written by hand: transformers 5 names a tokenizer class that transformers 4 refuses."""
    vocabulary.write_tokenizer(folder)
    special, template = vocabulary.special, chat.template(vocabulary)
    by_role = {"bos": special.bos, "eos": special.stops[0], "pad": special.pad, "unk": special.unknown}
    named = {f"{role}_token": vocabulary.text_of(token) for role, token in by_role.items() if token is not None}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "additional_special_tokens": [],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
            "chat_template": template,
        },
    )
    write_json(folder / "special_tokens_map.json", named)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


class Transformers:
    """transformers on torch, as `AutoModelForCausalLM` opens it."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.context: int = self.model.config.max_position_embeddings

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        with self.torch.no_grad():
            return Probe.of(self.model(self.torch.tensor([ids])).logits[0].numpy(), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        inputs = self.torch.tensor([ids])
        settings = {"attention_mask": self.torch.ones_like(inputs), "do_sample": False, "max_new_tokens": count}
        tokens = self.model.generate(inputs, **settings)[0, len(ids) :].tolist()
        return tokens[:-1] if tokens[-1] in self.ends(tokens[-1:]) else tokens

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @property
    def stops(self) -> set[int]:
        stops = self.model.generation_config.eos_token_id
        return set(stops if isinstance(stops, list) else [stops])

    def ends(self, of: Collection[int]) -> set[int]:
        return set(of) & self.stops

    def encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        with template_errors():
            return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        limit = min(sampling.limit, self.context - len(ids))
        writer = Writer(self.tokenizer.decode, self.tokenize("a")[-1])
        return writer.write(self._chosen(ids, sampling), limit, self.stops, top)

    def _chosen(self, ids: list[int], sampling: Sampling) -> Iterator[tuple[int, Any]]:
        """Token after token, as `model.generate()` chooses them, each with the logits that it was chosen by.

        `generate()` itself would go on when nobody reads them.
        """
        from transformers.generation import logits_process

        torch, process = self.torch, logits_process.LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            process.append(logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            process.append(logits_process.TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                process.append(logits_process.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                process.append(logits_process.TopPLogitsWarper(sampling.top_p))
        random = torch.Generator().manual_seed(sampling.seed)
        text_BT = unread_BT = torch.tensor([ids])
        cache = None
        while True:
            with torch.inference_mode():
                output = self.model(unread_BT, past_key_values=cache, use_cache=True)
                logits_BV, cache = output.logits[:, -1], output.past_key_values
                scores_BV = process(text_BT, logits_BV.clone())
                if sampling.temperature > 0:
                    unread_BT = torch.multinomial(scores_BV.softmax(-1), 1, generator=random)
                else:
                    unread_BT = scores_BV.argmax(-1, keepdim=True)
                text_BT = torch.cat([text_BT, unread_BT], -1)
            yield int(unread_BT), logits_BV[0]

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        return (yield from text_stream(self.generate(self.encode(messages), sampling)))


class HuggingFace(Format):
    name = "hf"
    suffix = ""
    runtime = "transformers on torch"
    package = "torch"
    library = "transformers"
    variants: ClassVar = {"auto": Variant(0), "float32": Variant(32), "bfloat16": Variant(16), "float16": Variant(16)}
    usage = """```python
from transformers import pipeline

chat = pipeline("text-generation", "{where}")
question = [{{"role": "user", "content": "{question}"}}]
print(chat(question, max_new_tokens=100)[0]["generated_text"][-1]["content"])
```"""

    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        (dtype,) = variants
        write(out / self.name, source.model, source.vocabulary, dtype)
        stored = source.model.params["embedding"].dtype.name if dtype == "auto" else dtype
        yield Export(self.name, self.name, self.variants[stored].bits)

    def read(self, path: Path) -> Stored:
        return read(path)

    def open(self, path: Path, context: int) -> Transformers:
        return Transformers(path)

    def exports(self, folder: Path) -> list[Path]:
        return [folder] if (folder / "config.json").is_file() else []
