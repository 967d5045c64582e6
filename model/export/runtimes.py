"""The runtimes that people open the exports in, behind one small interface. Only here are torch and llama.cpp imported.

Each is what its users have: transformers on torch, llama.cpp as a server on loopback, mlx-lm; and Koda's own JAX model,
which the others are compared with.
"""

import json
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.data import chat


class Answer(NamedTuple):
    """What a model said, and whether it stopped by itself."""

    text: str
    stopped: bool


class Runtime(Protocol):
    """A model opened in some runtime."""

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Log-probabilities of the token after `ids`, `[vocabulary]`, float32."""

    def tokenize(self, text: str) -> list[int]:
        """The ids the runtime's own tokenizer gives a text."""

    def answer(self, messages: list[chat.Message], limit: int) -> Answer:
        """The greedy answer to a conversation, through the runtime's own chat template."""


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

    def logprobs(self, ids: list[int]) -> np.ndarray:
        return self.generator.logprobs(ids)

    def tokenize(self, text: str) -> list[int]:
        from model.data.tokenizer import encode_plain

        return encode_plain(self.tokenizer, [text])[0]

    def answer(self, messages: list[chat.Message], limit: int) -> Answer:
        ids = list(self.generator(chat.encode_prompt(self.tokenizer, messages), limit=limit, stop=self.stop))
        return Answer(self.tokenizer.decode([i for i in ids if i != self.stop]), ids[-1] == self.stop)


class HuggingFace:
    """transformers on torch, as `AutoModelForCausalLM` opens it."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def logprobs(self, ids: list[int]) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, split_special_tokens=True)["input_ids"]

    def answer(self, messages: list[chat.Message], limit: int) -> Answer:
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        return Answer(self.tokenizer.decode(new, skip_special_tokens=True), int(new[-1]) == self.tokenizer.eos_token_id)


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
        request = urllib.request.Request(
            f"{self.server.listening_address}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def logprobs(self, ids: list[int]) -> np.ndarray:
        # The server lists nothing where the chosen token ends the text or is half a letter. So the choice is forced;
        # what is listed are the model's own probabilities, before any bias.
        asked = {"n_predict": 1, "n_probs": 1 << 20, "cache_prompt": False, "logit_bias": [[self.letter, 1e6]]}
        reply = self._post("/completion", {"prompt": ids, **asked})
        listed = reply["completion_probabilities"][0]["top_logprobs"]
        found = np.full(len(listed), -np.inf, np.float32)
        for entry in listed:
            found[entry["id"]] = entry["logprob"]
        return found

    def tokenize(self, text: str) -> list[int]:
        return self._post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def answer(self, messages: list[chat.Message], limit: int) -> Answer:
        reply = self._post("/v1/chat/completions", {"messages": messages, "max_tokens": limit, "temperature": 0})
        choice = reply["choices"][0]
        return Answer(choice["message"]["content"], choice["finish_reason"] == "stop")


class Mlx:
    """mlx-lm, computing in float32: half precision is emulated, and very slow, on a CPU."""

    def __init__(self, folder: Path):
        import mlx.core
        import mlx_lm

        self.mx, self.lm = mlx.core, mlx_lm
        self.model, self.tokenizer, *_ = mlx_lm.load(str(folder))
        self.model.set_dtype(mlx.core.float32)

    def logprobs(self, ids: list[int]) -> np.ndarray:
        logits = self.model(self.mx.array([ids]))[0, -1].astype(self.mx.float32)
        return np.array(logits - self.mx.logsumexp(logits))

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer(text, split_special_tokens=True)["input_ids"]

    def answer(self, messages: list[chat.Message], limit: int) -> Answer:
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        text, reason = "", None
        for piece in self.lm.stream_generate(self.model, self.tokenizer, prompt, max_tokens=limit):
            text, reason = text + piece.text, piece.finish_reason
        return Answer(text, reason == "stop")
