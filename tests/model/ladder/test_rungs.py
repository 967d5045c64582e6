"""Which trainings a ladder is made of."""

from dataclasses import replace

import pytest

from flows.cli.plan import pretraining_job
from flows.config import load
from model.config import LlamaConfig
from model.errors import KodaError
from model.ladder.rungs import FEWEST, SHARE, Rung, affordable, chosen, family, rungs, size, total_steps

TARGET = LlamaConfig(
    vocab_size=4096,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=3,
    intermediate_size=512,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)
TOKENS = 2_457_600


@pytest.mark.parametrize("preset", ["tiny", "koda-124m", "koda-400m", "koda-1.3b"])
def test_each_rung_costs_at_most_its_share_and_reads_no_more_than_the_target(preset: str) -> None:
    job = pretraining_job(load(preset))
    target, recipe = job.model, job.recipe
    per_step = recipe.batch_size * target.max_position_embeddings
    tokens = recipe.steps * per_step
    ladder = rungs(target, tokens, recipe.batch_size, recipe.warmup_steps, SHARE)
    assert len(ladder) >= FEWEST and [rung.n for rung in ladder] == sorted(rung.n for rung in ladder)
    for rung in ladder:
        assert (
            rung.model.head_dim == target.head_dim
            and rung.model.max_position_embeddings == target.max_position_embeddings
        )
        if preset != "tiny":  # whose family of whole groups is too small
            assert rung.model.num_attention_heads * target.num_key_value_heads == (
                rung.model.num_key_value_heads * target.num_attention_heads
            )
        longest = rung.steps[-1] * per_step
        assert longest <= 1.001 * tokens and rung.n * longest <= 1.01 * SHARE * size(target) * tokens
        assert rung.steps[0] >= 2 * recipe.warmup_steps


def test_family_has_the_proportions_of_its_target() -> None:
    shapes = family(TARGET)
    assert [shape.hidden_size for shape in shapes] == [32, 64, 96, 128, 160]
    assert [shape.num_hidden_layers for shape in shapes] == [4, 4, 4, 4, 4]  # as deep as it, where it is so shallow
    deep = family(replace(TARGET, num_hidden_layers=12))
    assert [shape.num_hidden_layers for shape in deep] == [4, 4, 6, 8, 10]
    assert all(shape.num_attention_heads % shape.num_key_value_heads == 0 for shape in shapes)


def test_target_with_few_heads_is_refused_with_what_would_do() -> None:
    with pytest.raises(KodaError, match=r"num_attention_heads = 2.*3 smaller sizes.*5 heads"):
        chosen(replace(TARGET, num_attention_heads=2, num_key_value_heads=1, hidden_size=64, head_dim=32))


def test_budget_takes_the_largest_ladder_that_fits_it_and_refuses_what_is_too_little() -> None:
    recipe = pretraining_job(load("tiny")).recipe
    plans = [rungs(TARGET, TOKENS, 8, 50, share) for share in (0.05, 0.1, 0.2)]
    seconds = {rung.name: 0.01 for plan in plans for rung in plan}
    cost = [sum(0.01 * total_steps(rung, recipe) + 2.0 * (2 * len(rung.steps) + 2) for rung in plan) for plan in plans]
    assert cost == sorted(cost)
    for number in (1, 2):
        assert affordable(plans, seconds, recipe, 2.0, cost[number]) == plans[number]
    with pytest.raises(KodaError, match=r"--hours .* is too little for 3 rungs: .* hours would do"):
        affordable(plans, seconds, recipe, 2.0, 0.9 * min(c for c, p in zip(cost, plans, strict=True) if len(p) >= 3))


def test_steps_of_a_rung_are_those_that_its_trainings_do_not_share() -> None:
    """A decay begins after the warm-up at the earliest, also where it would be longer."""
    recipe = replace(pretraining_job(load("tiny")).recipe, warmup_steps=50, decay_fraction=0.6)
    rung = Rung(TARGET, (100, 200))  # decays from 50, where 40 would be its share, and from 80
    assert total_steps(rung, recipe) == 200 + 50 + 2 * 100
