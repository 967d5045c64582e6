"""GGUF files for llama.cpp and what is built on it, and llama.cpp itself to open them."""

import json
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.data import chat
from model.export import kquants, tensors
from model.export.formats.format import Export, Format, Source, Variant
from model.export.runtime import Probe, TextStream
from model.sampling import Sampling
from model.stored import Stored


class LlamaCpp:
    """llama.cpp's server, in this process, on a free port of the loopback address."""

    def __init__(self, file: Path, context: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = context
        params.n_parallel = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.use_jinja = True
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.verbosity = 0
        params.warmup = False
        self.server = xllamacpp.Server(params)
        self.letter = self.tokenize("a")[0]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        with self._open(path, body) as reply:
            return json.load(reply)

    def _open(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.server.listening_address}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=120)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        return Probe(np.stack([self._next(ids[:n]) for n in after]), np.array([self._chosen(ids[: n + 1]) for n in of]))

    def _next(self, ids: list[int]) -> np.ndarray:
        # The server lists nothing where the chosen token ends the text or is half a letter. So the choice is forced;
        # what is listed are the model's own probabilities, before any bias.
        asked = {"n_predict": 1, "n_probs": 1 << 20, "cache_prompt": False, "logit_bias": [[self.letter, 1e6]]}
        reply = self._post("/completion", {"prompt": ids, **asked})
        listed = reply["completion_probabilities"][0]["top_logprobs"]
        found = np.full(len(listed), -np.inf, np.float32)
        for entry in listed:
            found[entry["id"]] = entry["logprob"]
        return found

    def _chosen(self, ids: list[int]) -> float:
        """Of the last of `ids`, which is forced as above."""
        asked = {"n_predict": 1, "n_probs": 1, "logit_bias": [[ids[-1], 1e6]]}
        chosen = self._post("/completion", {"prompt": ids[:-1], **asked})["completion_probabilities"][0]
        assert chosen["id"] == ids[-1]
        return float(chosen["logprob"])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        asked = {"n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        reply = self._post("/completion", {"prompt": ids, **asked})
        return reply["tokens"]

    def tokenize(self, text: str) -> list[int]:
        return self._post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self._post("/apply-template", {"messages": messages})["prompt"]

    def ends(self, of: Collection[int]) -> set[int]:
        # The server names one of them, and knows more: by their texts, too.
        return {token for token in of if self._forced(token)["stop_type"] == "eos"}

    def _forced(self, token: int) -> Any:
        asked = {"n_predict": 2, "temperature": 0, "logit_bias": [[token, 1e6]], "cache_prompt": False}
        return self._post("/completion", {"prompt": [self.letter], **asked})

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        asked = {
            "messages": messages,
            "stream": True,
            "max_tokens": sampling.limit,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": 1 << 20,  # as far back as in the other runtimes: to the beginning
            "samplers": ["penalties", "temperature", "top_k", "top_p"],
            "seed": sampling.seed,
        }
        reason = None
        with self._open("/v1/chat/completions", asked) as reply:
            for event in self._events(reply):
                choice = event["choices"][0]
                reason = choice["finish_reason"] or reason
                if piece := choice["delta"].get("content"):
                    yield piece
        return reason == "stop"

    @staticmethod
    def _events(reply: Any) -> Iterator[Any]:
        """Server-sent events that hold JSON."""
        for line in reply:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


class Gguf(Format):
    name = "gguf"
    suffix = "-GGUF"
    runtime = "llama.cpp"
    package = "xllamacpp"
    library = "gguf"
    variants: ClassVar = {
        "F32": Variant(32),
        "BF16": Variant(16),
        "F16": Variant(16),
        "Q8_0": Variant(8, 32),
        **{kind: Variant(int(kind[1]), kquants.SUPERBLOCK) for kind in kquants.KINDS},
    }
    usage = """llama.cpp: `llama-cli --model {file} --prompt '{question}'`

Ollama, in the folder with the files: `ollama create {name} -f Modelfile`, then `ollama run {name}`. The template and
the token that ends an answer are in the `Modelfile`.

LM Studio: put the file into the folder that *My Models* shows, as `USER/{name}/{file}` (or `lms import {file}`); it is
then in the list under *Select a model to load*. The chat template and the end of an answer come with the file."""

    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        from model.export import gguf_file  # here, because gguf-py takes half a second to import

        folder, name = out / self.name, source.about.name
        unquantised = folder / ".unquantised.gguf"
        for variant in variants:
            path = folder / f"{name}-{variant}.gguf"
            if variant in kquants.KINDS:
                if not unquantised.exists():
                    gguf_file.write(unquantised, *source[:2], "F32", source.about)
                kquants.write(path, unquantised, variant)
            else:
                gguf_file.write(path, *source[:2], variant, source.about)
            yield Export(f"{self.name}/{path.name}", self.name, self.variants[variant].bits)
        unquantised.unlink(missing_ok=True)
        smallest = min(variants, key=lambda variant: self.variants[variant].bits)
        context = source.model.config.max_position_embeddings
        text = chat.modelfile(source.vocabulary, f"{name}-{smallest}.gguf", context)
        (folder / "Modelfile").write_text(text, encoding="utf-8")

    def read(self, path: Path) -> Stored:
        from model.export import gguf_file

        return gguf_file.read(path)

    def open(self, path: Path, context: int) -> LlamaCpp:
        return LlamaCpp(path, context)

    def exports(self, folder: Path) -> list[Path]:
        return sorted(tensors.visible(folder, "*.gguf"), key=lambda path: not path.name.endswith("-Q8_0.gguf"))

    def check_variants(self, variants: Sequence[str]) -> None:
        if set(variants) & set(kquants.KINDS):
            kquants.library()
