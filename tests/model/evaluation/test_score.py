import jax
import numpy as np
import pytest
from flax import nnx

from model.evaluation.score import Scorer, score_batch
from model.generate import Generator
from model.llama import Llama
from model.sampling import Sampling


def plain(model: Llama, ids: list[int]) -> np.ndarray:
    """Log-probability of each token but the first, in a row of its own without padding."""
    logprobs = jax.nn.log_softmax(model(np.asarray([ids]))[0])
    return np.asarray(logprobs)[np.arange(len(ids) - 1), ids[1:]]


def test_packed_scores_equal_those_of_single_rows(model: Llama) -> None:
    random = np.random.default_rng(0)
    requests = [
        (random.integers(0, 320, n).tolist(), random.integers(0, 320, m).tolist())
        for n, m in ((1, 1), (5, 3), (40, 9), (31, 1), (64, 1), (2, 60), *([(7, 2)] * 20))
    ]
    for (context, continuation), score in zip(requests, Scorer(model)(requests), strict=True):
        expected = plain(model, context + continuation)[-len(continuation) :].sum()
        assert score.logprob == pytest.approx(expected, abs=2e-3) and score.tokens == len(continuation)


def test_a_continuation_is_greedy_where_greedy_decoding_generates_it(model: Llama) -> None:
    prompt = [3, 1, 4, 1, 5]
    tokens = list(Generator(model)(prompt, (), Sampling(limit=6)))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 320]
    scores = Scorer(model)([(prompt, tokens), (prompt, wrong)])
    assert [s.greedy for s in scores] == [True, False] and scores[0].logprob > scores[1].logprob


def test_a_request_longer_than_the_context_loses_its_beginning(model: Llama) -> None:
    ids = np.random.default_rng(1).integers(0, 320, 100).tolist()
    score = Scorer(model)([(ids[:90], ids[90:])])[0]
    assert score.logprob == pytest.approx(plain(model, ids[-65:])[-10:].sum(), abs=2e-3)


@pytest.mark.parametrize("length", [2, 50, 65, 66, 300])
def test_a_stream_scores_every_token_once_after_half_a_window_or_more(model: Llama, length: int) -> None:
    ids = np.random.default_rng(2).integers(0, 320, length)
    logprobs = Scorer(model).stream(ids, 64)
    assert logprobs.shape == (length - 1,) and (logprobs < 0).all()
    np.testing.assert_allclose(logprobs[:64], plain(model, ids[:65].tolist()), atol=2e-3)
    if length > 100:
        # Windows begin at 0, 32, 64 …: token 97 is the first that the window at 64 scores, 33 tokens after its begin.
        np.testing.assert_allclose(logprobs[96], plain(model, ids[64 : 64 + 65].tolist())[32], atol=2e-3)


@pytest.mark.parametrize(("rows", "length"), [(1, 2), (3, 65), (20, 40), (2, 300)])
def test_every_token_of_a_row_is_scored_after_all_before_it(model: Llama, rows: int, length: int) -> None:
    """Of rows that are packed together, and of some that are longer than the model's own context."""
    tokens = np.random.default_rng(7).integers(0, 320, (rows, length))
    logprobs = Scorer(model).rows(tokens)
    assert logprobs.shape == (rows, length - 1)
    np.testing.assert_allclose(logprobs, [plain(model, ids.tolist()) for ids in tokens], atol=2e-3)


def test_a_context_is_read_once_for_all_its_continuations(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four choices of one context: its tokens are read once, and the scores are those of single rows."""
    random = np.random.default_rng(3)
    context = random.integers(0, 320, 50).tolist()
    choices = [random.integers(0, 320, size).tolist() for size in (3, 1, 7, 1)]
    scorer, rows = Scorer(model), []
    original = scorer._score_rows
    monkeypatch.setattr(scorer, "_score_rows", lambda batch, width: rows.extend(batch) or original(batch, width))
    scores = scorer([(context, choice) for choice in choices])
    # The context, and each choice without its last token, which is only predicted.
    assert [len(row.tokens) for row in rows if row.tokens] == [50 + 2 + 0 + 6 + 0]
    for choice, score in zip(choices, scores, strict=True):
        expected = plain(model, context + choice)[-len(choice) :].sum()
        assert score.logprob == pytest.approx(expected, abs=2e-3) and score.tokens == len(choice)


def test_requests_in_one_row_cannot_see_each_other(model: Llama) -> None:
    """A request alone and among two hundred others: equal scores, to float32's rounding."""
    random = np.random.default_rng(4)
    requests = [
        (
            random.integers(0, 320, random.integers(1, 60)).tolist(),
            random.integers(0, 320, random.integers(1, 5)).tolist(),
        )
        for _ in range(200)
    ]
    together = Scorer(model)(requests)
    for number in range(0, 200, 23):
        alone = Scorer(model)([requests[number]])[0]
        assert together[number].logprob == pytest.approx(alone.logprob, abs=1e-3)
        assert together[number].greedy == alone.greedy


def test_truncated_requests_are_counted(model: Llama) -> None:
    ids = np.random.default_rng(5).integers(0, 320, 100).tolist()
    scorer = Scorer(model)
    scorer([(ids[:60], ids[60:65]), (ids[:60], ids[60:66]), (ids[:90], ids[90:])])
    assert scorer.truncated == 2  # 65 tokens are 64 that are read and one that is only predicted


def test_the_logits_of_a_batch_are_never_in_memory_at_once(model: Llama) -> None:
    """The compiled step needs less memory than the logits of its 4096 positions would."""
    scorer = Scorer(model)
    batch = np.zeros((4, 16, 256), np.int32)
    at = np.zeros(4096, np.int32)
    compiled = score_batch.lower(scorer.graph, scorer.state, batch, at, at, np.int32(1)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4096 * model.config.vocab_size * 4


def test_second_model_of_the_same_shape_compiles_nothing(model: Llama) -> None:
    """Another one of the same configuration, with other numbers and other scores."""
    text = np.arange(1, 40)
    first = Scorer(model).stream(text, 32)
    compiled = score_batch._cache_size()
    second = Scorer(Llama(model.config, rngs=nnx.Rngs(7))).stream(text, 32)
    assert score_batch._cache_size() == compiled
    assert not np.allclose(first, second)
