import math

import pytest

from model.training.cadence import FIRST, Cadence, SaveCost

LONGEST = 900.0


def trained(cadence: Cadence, now: float, steps: int, seconds: float) -> float:
    """So many steps of so many seconds are made from `now` on; returns when the last one is."""
    for _ in range(steps):
        now += seconds
        cadence.step(now)
    return now


def saved(cadence: Cadence, now: float, stall: float, steps: int, seconds: float) -> float:
    """A save begins, the loop waits, and while it is written some steps are made; returns when it is committed."""
    cadence.began(now, now + stall)
    cadence.step(now + stall)  # from which on the next one is measured
    now = trained(cadence, now + stall, steps, seconds)
    cadence.committed(now)
    return now


def test_cost_is_the_stall_and_what_steps_are_slower_by_during_the_write() -> None:
    cadence = Cadence(share=0.005, disk_share=0.5, longest=LONGEST)
    now = trained(cadence, 0.0, 50, 0.1)
    saved(cadence, now, stall=0.3, steps=10, seconds=0.15)
    assert cadence.cost is not None
    assert (cadence.cost.stall, cadence.cost.write) == pytest.approx((0.3, 0.3 + 1.5))
    assert cadence.cost.slowdown == pytest.approx(11 * 0.05)
    assert cadence.interval() == pytest.approx(0.85 / 0.005)
    assert cadence.cost.optimal_interval() == pytest.approx(math.sqrt(2 * 0.85 * 3600))


def test_cheap_save_waits_for_the_disk_and_costly_one_no_longer_than_asked() -> None:
    cheap = Cadence(share=0.005, disk_share=0.25, longest=LONGEST)
    saved(cheap, trained(cheap, 0.0, 50, 0.1), stall=0.01, steps=100, seconds=0.1)
    assert cheap.interval() == pytest.approx((0.01 + 10) / 0.25)
    costly = Cadence(share=0.005, disk_share=0.25, longest=LONGEST)
    saved(costly, trained(costly, 0.0, 50, 0.1), stall=30, steps=1, seconds=0.1)
    assert costly.interval() == LONGEST


def test_first_save_comes_soon_and_without_a_share_only_each_longest() -> None:
    assert Cadence(share=0.005, disk_share=0.5, longest=LONGEST).interval() == FIRST
    assert Cadence(share=0.005, disk_share=0.5, longest=3.0).interval() == 3.0
    never = Cadence(share=0.0, disk_share=0.5, longest=LONGEST)
    saved(never, trained(never, 0.0, 9, 0.1), stall=0.1, steps=2, seconds=0.1)
    assert never.interval() == LONGEST and never.cost is not None


def test_evaluation_is_no_slow_step() -> None:
    cadence = Cadence(share=0.005, disk_share=0.5, longest=LONGEST)
    now = trained(cadence, 0.0, 9, 0.1)
    cadence.began(now, now)
    now = trained(cadence, now, 2, 0.1)
    cadence.interrupt()
    now = trained(cadence, now + 60, 2, 0.1)
    cadence.committed(now)
    assert cadence.cost is not None and cadence.cost.slowdown == pytest.approx(0)


def test_one_odd_save_is_soon_forgotten() -> None:
    cadence = Cadence(share=0.005, disk_share=0.5, longest=LONGEST)
    now = 0.0
    for stall in (2.0, *[0.0] * 8):
        now = saved(cadence, trained(cadence, now, 9, 0.1), stall=stall, steps=2, seconds=0.1)
    assert cadence.cost is not None and cadence.cost.total() == pytest.approx(2.0 / 2**8)


def test_save_that_failed_measures_nothing() -> None:
    cadence = Cadence(share=0.005, disk_share=0.5, longest=LONGEST)
    cadence.began(0.0, 5.0)  # and is never committed
    saved(cadence, trained(cadence, 30.0, 9, 0.1), stall=0.1, steps=2, seconds=0.1)
    assert cadence.cost == SaveCost(pytest.approx(0.1), pytest.approx(0), pytest.approx(0.3))
