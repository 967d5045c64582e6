import jax
import numpy as np
import pytest

from model.evaluation.generate import Generator
from model.evaluation.score import Scorer
from model.llama import Llama
from model.sampling import Sampling


def plain(model: Llama, ids: list[int]) -> np.ndarray:
    """Log-probability of each token but the first, one row at a time and without filling up."""
    logprobs = jax.nn.log_softmax(model(np.asarray([ids]))[0])
    return np.asarray(logprobs)[np.arange(len(ids) - 1), ids[1:]]


def test_scores_are_those_of_single_rows(model: Llama) -> None:
    random = np.random.default_rng(0)
    requests = [
        (random.integers(0, 320, n).tolist(), random.integers(0, 320, m).tolist())
        for n, m in ((1, 1), (5, 3), (40, 9), (31, 1), (64, 1), (2, 60), *([(7, 2)] * 20))
    ]
    for (context, continuation), score in zip(requests, Scorer(model)(requests), strict=True):
        expected = plain(model, context + continuation)[-len(continuation) :].sum()
        assert score.logprob == pytest.approx(expected, abs=2e-3) and score.tokens == len(continuation)


def test_greedy_is_what_the_model_would_say(model: Llama) -> None:
    prompt = [3, 1, 4, 1, 5]
    said = list(Generator(model)(prompt, -1, Sampling(limit=6)))
    wrong = [*said[:-1], (said[-1] + 1) % 320]
    scores = Scorer(model)([(prompt, said), (prompt, wrong)])
    assert [s.greedy for s in scores] == [True, False] and scores[0].logprob > scores[1].logprob


def test_what_is_too_long_loses_its_beginning(model: Llama) -> None:
    ids = np.random.default_rng(1).integers(0, 320, 100).tolist()
    score = Scorer(model)([(ids[:90], ids[90:])])[0]
    assert score.logprob == pytest.approx(plain(model, ids[-65:])[-10:].sum(), abs=2e-3)


@pytest.mark.parametrize("length", [2, 50, 65, 66, 300])
def test_a_stream_scores_every_token_once_with_room_before_it(model: Llama, length: int) -> None:
    ids = np.random.default_rng(2).integers(0, 320, length)
    found = Scorer(model).stream(ids, 64)
    assert found.shape == (length - 1,) and (found < 0).all()
    np.testing.assert_allclose(found[:64], plain(model, ids[:65].tolist()), atol=2e-3)
    if length > 100:  # token 97 is read in the window that begins at 64 - 32 · 0 … 65: half a window before it at least
        np.testing.assert_allclose(found[96], plain(model, ids[64 : 64 + 65].tolist())[32], atol=2e-3)


def test_continuations_of_one_context_are_read_behind_it_once(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four choices of one context: a fraction of the positions, and the scores of single rows."""
    random = np.random.default_rng(3)
    context = random.integers(0, 320, 50).tolist()
    choices = [random.integers(0, 320, size).tolist() for size in (3, 1, 7, 1)]
    scorer, rows = Scorer(model), []
    right = scorer._answers
    monkeypatch.setattr(scorer, "_answers", lambda given, width: rows.extend(given) or right(given, width))
    scores = scorer([(context, choice) for choice in choices])
    read = [len(row.tokens) for row in rows if row.tokens]
    assert read == [50 + 2 + 0 + 6 + 0]
    for choice, score in zip(choices, scores, strict=True):
        expected = plain(model, context + choice)[-len(choice) :].sum()
        assert score.logprob == pytest.approx(expected, abs=2e-3) and score.tokens == len(choice)


def test_what_stands_in_one_row_does_not_see_its_neighbours(model: Llama) -> None:
    """The same requests alone, and among two hundred others: equal but for float32's rounding."""
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


def test_requests_that_lose_their_beginning_are_counted(model: Llama) -> None:
    ids = np.random.default_rng(5).integers(0, 320, 100).tolist()
    scorer = Scorer(model)
    scorer([(ids[:60], ids[60:65]), (ids[:60], ids[60:66]), (ids[:90], ids[90:])])
    assert scorer.truncated == 2  # 65 tokens are 64 that are read and one that is only predicted


def test_the_logits_of_a_batch_are_never_held(model: Llama) -> None:
    """The compiled step keeps less than the logits of its 4096 positions would take."""
    scorer = Scorer(model)
    read = np.zeros((4, 16, 256), np.int32)
    at = np.zeros(4096, np.int32)
    compiled = scorer._ask.lower(scorer.state, read, at, at, np.int32(1)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4096 * model.config.vocab_size * 4
