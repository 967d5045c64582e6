"""The runtimes that people open the exports in, behind one small interface. Only here are torch and llama.cpp imported.

Each is what its users have: transformers on torch, llama.cpp as a server on loopback, mlx-lm; and Koda's own JAX model,
which the others are compared with.
"""

import json
import threading
import urllib.request
from collections.abc import Generator, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.data import chat
from model.errors import KodaError
from model.sampling import Sampling

PACKAGES = {"hf": "torch", "gguf": "xllamacpp", "mlx": "mlx_lm"}  # what opens each kind of export


def installed(kinds: Iterable[str]) -> None:
    """Raises KodaError where these kinds of exports cannot be opened here, for want of a package."""
    missing = [f"{PACKAGES[kind]} ({kind})" for kind in kinds if find_spec(PACKAGES[kind]) is None]
    if missing:
        raise KodaError(
            f"what opens the exports is not installed: {', '.join(missing)}. In Koda's folder, "
            "`uv pip install --constraint requirements.lock --editable . --group verify` installs it."
        )


class Answer(NamedTuple):
    """What a model said, and whether it stopped by itself."""

    text: str
    stopped: bool


class Probe(NamedTuple):
    """Log-probabilities, in nats."""

    next_NV: np.ndarray  # of every token after each of N beginnings, `[beginnings, vocabulary]`
    chosen_P: np.ndarray  # of tokens of the text itself, `[positions]`

    @staticmethod
    def of(logits_TV: np.ndarray, ids: list[int], after: list[int], of: list[int]) -> "Probe":
        """From the logits after each token of `ids`."""
        rows_NV = logits_TV[[n - 1 for n in (*after, *of)]].astype(np.float64)
        logprobs_NV = rows_NV - np.logaddexp.reduce(rows_NV, axis=-1, keepdims=True)
        count = len(after)
        return Probe(logprobs_NV[:count], logprobs_NV[np.arange(count, len(rows_NV)), [ids[at] for at in of]])


Said = Generator[str, None, bool]  # pieces of text


class Runtime(Protocol):
    """A model opened in some runtime."""

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        """What it thinks of a text: of the token after the first `n` of `ids`, for each `n` of `after`; and of those of
        `ids` that stand at the positions `of`, each after all before it."""

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Up to `count` tokens after `ids`, the likeliest each time; after the one that ends a text there are none."""

    def tokenize(self, text: str) -> list[int]:
        """The ids the runtime's own tokenizer gives a text."""

    def prompt(self, messages: list[chat.Message]) -> str:
        """What the runtime's own chat template makes of a conversation that is to be answered."""

    def ends(self) -> set[int]:
        """The tokens that end an answer in this runtime."""

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Said:
        """The answer to a conversation, through the runtime's own chat template, as it is made; returns whether it
        ended by itself."""


def answer(runtime: Runtime, messages: list[chat.Message], sampling: Sampling) -> Answer:
    """The whole answer to a conversation."""
    said = runtime.stream(messages, sampling)
    pieces: list[str] = []
    while True:
        try:
            pieces.append(next(said))
        except StopIteration as end:
            return Answer("".join(pieces), bool(end.value))


class Jax:
    """Koda's own weights; the reference."""

    def __init__(self, weights_folder: Path, tokenizer_file: Path):
        from model import weights
        from model.data import tokenizer as tokenizers
        from model.evaluation.generate import Generator

        self.model = weights.load(weights_folder)
        self.tokenizer = tokenizers.load(str(tokenizer_file))
        self.stop = tokenizers.end_of_text(self.tokenizer)
        self.generator = Generator(self.model)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        import jax.numpy as jnp

        return Probe.of(np.asarray(self.model(jnp.asarray([ids]))[0]), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        return list(self.generator(ids, self.stop, Sampling(limit=count)))

    def tokenize(self, text: str) -> list[int]:
        from model.data.tokenizer import encode_plain

        return encode_plain(self.tokenizer, [text])[0]

    def prompt(self, messages: list[chat.Message]) -> str:
        return chat.prompt(messages)

    def ends(self) -> set[int]:
        return {self.stop}

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Said:
        from tokenizers.decoders import DecodeStream

        decoder, token = DecodeStream(skip_special_tokens=True), None
        for token in self.generator(chat.encode_prompt(self.tokenizer, messages), self.stop, sampling):
            if piece := decoder.step(self.tokenizer, token):
                yield piece
        return token == self.stop


class HuggingFace:
    """transformers on torch, as `AutoModelForCausalLM` opens it."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        with self.torch.no_grad():
            return Probe.of(self.model(self.torch.tensor([ids])).logits[0].numpy(), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        inputs = self.torch.tensor([ids])
        settings = {"attention_mask": self.torch.ones_like(inputs), "do_sample": False, "max_new_tokens": count}
        return self.model.generate(inputs, **settings)[0, len(ids) :].tolist()

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, split_special_tokens=True)["input_ids"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def ends(self) -> set[int]:
        found = self.model.generation_config.eos_token_id
        return set(found if isinstance(found, list) else () if found is None else (found,))

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Said:
        from transformers import TextIteratorStreamer

        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings: dict[str, Any] = {"max_new_tokens": sampling.limit, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            self.torch.manual_seed(sampling.seed)
            settings |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        settings["repetition_penalty"] = sampling.repetition_penalty
        ended: list[Any] = []  # what came out of it, or how it failed

        def generate() -> None:
            try:
                ended.append(self.model.generate(**inputs, **settings, streamer=streamer))
            except Exception as error:
                ended.append(error)
                streamer.end()  # so that nobody waits for more

        worker = threading.Thread(target=generate, daemon=True)  # Ctrl-C does not wait for the rest of the answer
        worker.start()
        yield from streamer
        worker.join()
        if isinstance(ended[0], Exception):
            raise ended[0]
        return int(ended[0][0, -1]) == self.tokenizer.eos_token_id


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
        return reply["tokens"] + (list(self.ends()) if reply["stop_type"] == "eos" else [])

    def tokenize(self, text: str) -> list[int]:
        return self._post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self._post("/apply-template", {"messages": messages})["prompt"]

    def ends(self) -> set[int]:
        with urllib.request.urlopen(f"{self.server.listening_address}/props", timeout=120) as reply:
            end = json.load(reply)["eos_token"]
        return set(self._post("/tokenize", {"content": end, "add_special": False, "parse_special": True})["tokens"])

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Said:
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


class Mlx:
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

        said: list[int] = []
        for token, _ in generate_step(self.mx.array(ids), self.model, max_tokens=count):
            said.append(int(token))
            if said[-1] in self.ends():
                break
        return said

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer(text, split_special_tokens=True)["input_ids"]

    def prompt(self, messages: list[chat.Message]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def ends(self) -> set[int]:
        return set(self.tokenizer.eos_token_ids)

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Said:
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
