from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from model.generate import Generator, choose
from model.llama import Llama
from model.sampling import Sampling


def test_generation_with_a_cache_equals_generation_without_one(model: Llama) -> None:
    prompt = [7, 7, 2]
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(model(np.asarray([ids]))[0, -1].argmax()))
    assert list(Generator(model)(prompt, (), Sampling(limit=12))) == ids[3:]


def test_cache_has_room_for_prompt_and_answer(model: Llama) -> None:
    """64, 128 and 256 positions of 512 are taken; the tokens are those of a cache of the whole context."""
    wide = Llama(replace(model.config, max_position_embeddings=512), rngs=nnx.Rngs(3))
    generate, lengths = Generator(wide), []
    prefill = generate._prefill
    generate._prefill = lambda weights, tokens, cache, count: (
        lengths.append(jax.tree.leaves(cache)[0].shape) or prefill(weights, tokens, cache, count)
    )
    for count, limit in ((3, 20), (60, 8), (100, 60)):
        prompt = [1 + number % 7 for number in range(count)]
        tokens = list(generate(prompt, (), Sampling(limit=limit)))
        longest = list(generate(prompt, (), Sampling(limit=512)))[:limit]
        assert tokens == longest and len(tokens) == limit
    assert [64 in shape for shape in lengths[:1]] == [True]
    assert [max(shape) for shape in lengths[::2]] == [64, 128, 256]


def test_generation_ends_at_the_stop_token_the_limit_and_the_full_context(model: Llama) -> None:
    generate = Generator(model)
    tokens = list(generate([5], (), Sampling(limit=10)))
    assert len(tokens) == 10
    assert list(generate([5], [tokens[3]], Sampling(limit=10))) == tokens[: tokens.index(tokens[3]) + 1]
    assert len(list(generate([5] * 60, (), Sampling(limit=100)))) == 4  # the context has 64 positions


def test_the_same_seed_gives_the_same_tokens(model: Llama) -> None:
    generate = Generator(model)
    first, again, other = (list(generate([5], (), Sampling(limit=8, temperature=1.0, seed=seed))) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 1e-40},
        {"temperature": 1.0, "repetition_penalty": 2.0},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.4},
    ],
)
def test_sampled_tokens_have_the_probabilities_of_transformers(settings: dict[str, float]) -> None:
    """20,000 draws against the probabilities after transformers' own logits processors."""
    from transformers.generation import logits_process as theirs

    size, draws = 40, 20_000
    logits = np.random.default_rng(0).normal(0, 2, size).astype(np.float32)
    seen = np.arange(size) < 10
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    scores, before = torch.tensor(logits)[None], torch.arange(10)[None]
    if sampling.repetition_penalty != 1:
        scores = theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(before, scores)
    scores = theirs.TemperatureLogitsWarper(sampling.temperature)(before, scores)
    if sampling.top_k:
        scores = theirs.TopKLogitsWarper(sampling.top_k)(before, scores)
    if sampling.top_p < 1:
        scores = theirs.TopPLogitsWarper(sampling.top_p)(before, scores)
    expected = scores.softmax(-1)[0].numpy()
    keys = jax.random.split(jax.random.key(1), draws)
    drawn = jax.vmap(lambda key: choose(jnp.asarray(logits), jnp.asarray(seen), key, sampling))(keys)
    shares = np.bincount(np.asarray(drawn), minlength=size) / draws
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(expected))
    # Five standard errors of a share: a correct sampler exceeds that in one of 40 tokens once in 40,000 runs.
    np.testing.assert_array_less(np.abs(shares - expected), 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9)


def test_repetition_penalty_covers_the_prompt_and_the_generated_tokens(model: Llama) -> None:
    """The penalty is larger than any logit, so that no token occurs twice."""
    prompt = [7, 7, 2]
    tokens = list(Generator(model)(prompt, (), Sampling(limit=40, repetition_penalty=1e9)))
    assert len({*prompt, *tokens}) == 2 + len(tokens)


def test_second_model_of_the_same_shape_compiles_nothing(model: Llama) -> None:
    first, second = Generator(model), Generator(Llama(model.config, rngs=nnx.Rngs(7)))
    tokens = list(first([5, 6], stops=(), sampling=Sampling(limit=12)))
    compiled = first._step._cache_size()
    assert list(second([5, 6], stops=(), sampling=Sampling(limit=12))) != tokens  # with numbers of its own
    assert second._step._cache_size() == compiled
