"""The page of `koda inspect`, from figures that were made up."""

from model.inspect.figures import Learning
from tasks.reports.inspect_guide import GUIDE, SCORES
from tasks.reports.inspect_page import _learning

SAME = [[[0.5]], [[0.5]]]  # two snapshots of one layer with one head


def test_weights_that_have_not_changed_yet_have_no_line_of_changes() -> None:
    """Step 1 of a warm-up from 0 changes nothing: the first snapshots of a training are equal."""
    learning = Learning(
        steps=[0, 1],
        kept=True,
        damaged=[],
        scores=dict.fromkeys(SCORES, SAME),
        chance=dict.fromkeys(SCORES, 0.5),
        ablation=[[0.0]],
        ablated_tokens=64,
        emergence={name: [[-1]] for name in SCORES},
        losses=[6.0, 6.0],
        first_losses=[6.0, 6.0],
        second_losses=[6.0, 6.0],
        late_less_early=[0.0, 0.0],
        norms=[[1.0, 1.0], [1.0, 1.0]],
        stable_rank={"q_proj": [[2.0], [2.0]]},
        effective_rank={"q_proj": [[2.0], [2.0]]},
        update_ratio={"q_proj": [None, None]},
        full_rank={"q_proj": 4},
        pieces=["a", "b"],
        size=1,
        bits=[[9.0], [9.0]],
    )
    page = "".join(_learning(learning))
    assert GUIDE["ranks"].code in page and GUIDE["updates"].code not in page
