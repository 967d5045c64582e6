"""GGUF files for llama.cpp and what is built on it, and llama.cpp itself to open them."""

import json
import secrets
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.config import LlamaConfig
from model.data import chat
from model.export import kquants, ollama, tensors
from model.export.formats.format import Export, Format, Source, Variant
from model.export.names import shapes
from model.export.runtime import Probe, Prompt, Scored, TextStream, Token, TokenStream, template_errors
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
        self.key = secrets.token_hex()  # without one, it answers every page in a browser on this machine
        params.api_keys = [self.key]
        self.server = xllamacpp.Server(params)
        self.letter = self.tokenize("a")[0]
        # The loop that computes begins after the server answers; of a server that goes before that, it never ends.
        self._post("/completion", {"prompt": [self.letter], "n_predict": 1, "cache_prompt": False})
        with self._open("/props") as reply:
            self.context: int = json.load(reply)["default_generation_settings"]["n_ctx"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        with self._open(path, body) as reply:
            return json.load(reply)

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.server.listening_address}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
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

    def encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            with template_errors():
                prompt = self.prompt(prompt)
        return self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        limit = min(sampling.limit, self.context - len(ids))
        asked = {"prompt": ids, "stream": True, "n_predict": limit, **self._choice(sampling)}
        if top is not None:
            asked["n_probs"] = max(top, 1)  # of 0 it reports nothing
        count = 0
        with self._open("/completion", asked) as reply:
            for event in self._events(reply):
                if not (event["content"] or event["stop"]):
                    continue  # a special token, which is counted with the next one
                for _ in range(count + 1, event["tokens_predicted"]):
                    yield Token("")
                if event["tokens_predicted"] > count:
                    yield self._token(event, top)
                count = event["tokens_predicted"]

    @staticmethod
    def _token(event: Any, top: int | None) -> Token:
        """A token, or the last of those that are a letter; the server has no log-probabilities of the others."""
        ends = event["stop"] and event["stop_type"] == "eos"
        if top is None or not event.get("completion_probabilities"):
            return Token(event["content"], ends)
        entry = event["completion_probabilities"][-1]
        # The server shows a letter's parts that came before with the token; in the list it is by itself.
        text = next((one["token"] for one in entry["top_logprobs"] if one["id"] == entry["id"]), entry["token"])
        likeliest = tuple(Scored(one["token"], one["logprob"]) for one in entry["top_logprobs"][:top])
        return Token(event["content"], ends, Scored(text, entry["logprob"]), likeliest)

    @staticmethod
    def _choice(sampling: Sampling) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": 1 << 20,  # as far back as in the other runtimes: to the beginning
            "samplers": ["penalties", "temperature", "top_k", "top_p"],
            "seed": sampling.seed,
        }

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        asked = {"messages": messages, "stream": True, "max_tokens": sampling.limit, **self._choice(sampling)}
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
        "auto": Variant(0),
        "F32": Variant(32),
        "BF16": Variant(16),
        "F16": Variant(16),
        "Q8_0": Variant(8, 32),
        **{kind: Variant(int(kind[1]), kquants.BLOCK) for kind in kquants.KINDS},
    }
    usage = """llama.cpp: `llama-cli --model {file} --prompt '{question}'`

Ollama: `ollama run hf.co/{repository}`, which reads the files `template` and `params`; or `ollama create {name} -f
Modelfile` in a folder with these files, then `ollama run {name}`. The chat template, the token that ends an answer and
the context are in both.

LM Studio: put the file into the folder that *My Models* shows, as `USER/{name}/{file}` (or `lms import {file}`); it is
then in the list under *Select a model to load*. The chat template and the end of an answer come with the file."""

    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        from model.export import calibration, gguf_file  # here, as gguf-py takes half a second to import, JAX more

        folder, shape = out / self.name, source.model.config
        stated = gguf_file.metadata(source.about, shape)
        files = {kind: gguf_file.file_name(stated, kind) for kind in self.kinds(variants, shape)}
        importance = None
        if not set(files).isdisjoint(kquants.KINDS):
            importance = calibration.importance(source.model, source.text)
        for kind, file in files.items():
            gguf_file.write(folder / file, *source[:2], kind, source.about, importance)
            yield Export(f"{self.name}/{file}", self.name, self.variants[kind].bits)
        smallest = files[min(files, key=lambda kind: self.variants[kind].bits)]
        context = shape.max_position_embeddings
        ollama.write(folder, smallest, source.vocabulary, context, source.about.temperature)

    def kinds(self, variants: Sequence[str], shape: LlamaConfig) -> list[str]:
        """The types that are written. `auto` is F16, and those of Q8_0 and Q4_K_M that the matrices' rows fit."""
        rows = [tensor[-1] for tensor in shapes(shape).values() if len(tensor) > 1]
        auto = [
            kind
            for kind, width in (("F16", 1), ("Q8_0", 1), ("Q4_K_M", kquants.SUPERBLOCK))  # of most matrices
            if shape.hidden_size % width == 0 and not any(row % self.variants[kind].multiple for row in rows)
        ]
        return list(dict.fromkeys(kind for variant in variants for kind in (auto if variant == "auto" else [variant])))

    def read(self, path: Path) -> Stored:
        from model.export import gguf_file

        return gguf_file.read(path)

    def open(self, path: Path, context: int) -> LlamaCpp:
        return LlamaCpp(path, context)

    def exports(self, folder: Path) -> list[Path]:
        return sorted(tensors.visible(folder, "*.gguf"), key=lambda path: not path.name.endswith("-Q8_0.gguf"))
