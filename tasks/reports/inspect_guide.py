"""What the pictures of `koda inspect` mean: their equations, what to look for, and where the code is that made them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Picture(NamedTuple):
    """What is written under a picture."""

    equation: str
    look: str
    chance: str  # what a network that learned nothing gives; empty where nothing is to be compared
    file: str
    symbol: str  # the function or class in it

    @property
    def code(self) -> str:
        """File and line of the code. Raises ValueError where the symbol is not there any more."""
        return f"{self.file}:{line_of(ROOT / self.file, self.symbol)}"


def line_of(path: Path, symbol: str) -> int:
    """The line where a function or class is defined."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(rf"(def|class) {symbol}\b", line):
            return number
    raise ValueError(f"{path} defines no {symbol}")


HEADS, WALK, LENS = "model/inspect/heads.py", "model/inspect/walk.py", "model/inspect/lens.py"
GUIDE = {
    "course": Picture(
        "A[t, s]: how much position t takes from position s; each row sums to 1. n: half of a row that is a random "
        "text twice. Induction: mean of A[t, t − n + 1] over the second half. Previous: mean of A[t, t − 1]. "
        "Duplicate: sum of A[t, s] over earlier s with the same token. Sink: mean of A[t, 0]. Entropy: −Σ A log A /"
        " log(t + 1). Copying: Σ Re λ / Σ |λ|, λ the eigenvalues of E · W_V · W_O · U.",
        "A head that turns bright at one step has learned one thing. A previous-token head in an early layer comes "
        "before an induction head in a later one, which needs it; then the loss on the repetition leaves that on "
        "random tokens.",
        "",
        HEADS,
        "score",
    ),
    "ablation": Picture(
        "Δ = loss with the head's output replaced by its mean − loss as it is, nats per token.",
        "The larger, the more the model needs that head. A score can be high where the model needs nothing of it; "
        "this is the check.",
        "A head that writes nothing has exactly 0.",
        "model/inspect/ablation.py",
        "ablations",
    ),
    "behaviour": Picture(
        "Loss by position on held-out text: the last tenth of a row less the second tenth. Loss on random tokens "
        "and on their repetition: what looking back is worth.",
        "Below 0, the model uses what it has read to predict what comes. The gap between the two lines of random "
        "tokens is what induction buys.",
        "0 where nothing before helps; ln(vocabulary) is the loss of guessing.",
        HEADS,
        "score",
    ),
    "norms": Picture(
        "√(mean x²) of the residual stream x before each layer, and after the last (the lowest row).",
        "Each layer adds to the stream; where two rows look alike, the layer between them adds little.",
        "",
        WALK,
        "walk",
    ),
    "ranks": Picture(
        "Stable rank ‖W‖²_F / ‖W‖²₂; effective rank exp(−Σ p log p) with p = σ / Σσ, of the singular values σ. Mean"
        " over the layers.",
        "How many directions a matrix uses. Where the stable rank falls, a few directions have grown beyond all "
        "others.",
        "At step 0 the random matrix has its own value: compare with that, not with the largest possible.",
        "model/inspect/spectra.py",
        "stable_rank",
    ),
    "updates": Picture(
        "√mean(ΔW²) / √mean(W²) a step, between two snapshots.",
        "It follows the learning rate, and falls as the weights grow.",
        "A change of less than 0.5 % of the weights is lost in the rounding of two snapshots, and left out.",
        "model/inspect/learning.py",
        "learning",
    ),
    "bits": Picture(
        "−log₂ p(token | what is before it), for each token of one held-out text.",
        "The more colour, the more surprising. Spaces, line breaks and word ends lose it first; names and numbers "
        "keep it.",
        "log₂(vocabulary) bits a token.",
        WALK,
        "next_token_losses",
    ),
    "lens": Picture(
        "softmax(norm(h_l) · U): the stream after layer l, read as if it were the last (the logit lens).",
        "Follow a column from the bottom: where does the final answer first appear, and with how much probability?",
        "The first row is the model's own output.",
        LENS,
        "read",
    ),
    "divergence": Picture(
        "KL(p_L ‖ p_l) between the model's prediction and the lens of layer l, nats.",
        "0 in the last row. A dark column is a token that is settled early.",
        "",
        LENS,
        "read",
    ),
    "patterns": Picture(
        "A[t, s], a row for each position t of the text, a column for each position s before it.",
        "The diagonal: itself. One below it: the token before. The first column: a sink. Stripes: particular tokens.",
        "An even row: each position 1 / (t + 1).",
        WALK,
        "walk",
    ),
    "attribution": Picture(
        "(part · γ / rms(h)) · (U_y − U_y′): what each head and each feed-forward part adds to the logit of the "
        "likeliest next token y, less that of the runner-up y′. The parts sum to the difference.",
        "A few parts decide. Those to the left argue for the other token.",
        "",
        LENS,
        "attribute",
    ),
    "angles": Picture(
        "cos(position · f) with f the frequency of rotary pair i, θ^(−2i / d) where positions are not scaled: by "
        "such angles queries and keys know their distance.",
        "The first pairs tell neighbours apart, the last ones hardly turn within the context.",
        "",
        "model/rope.py",
        "angles",
    ),
    "finetuning": Picture(
        "ΔW = W after − W before; its singular values over the largest of W. New: of the 16 first directions of W +"
        " ΔW, those whose cosine with every direction of W is below 0.6.",
        "With LoRA, the rank bounds how many values there are. New directions are what fine-tuning added rather "
        "than adjusted.",
        "No change: no value, and no new direction.",
        "model/inspect/changes.py",
        "updates",
    ),
    "changed text": Picture(
        "KL(fine-tuned ‖ base) of the prediction of each token, nats.",
        "Coloured is where the two models disagree: the markers of the conversation, and the end of the answer.",
        "0 where they predict the same.",
        "model/inspect/changes.py",
        "compare",
    ),
    "wavelengths": Picture(
        "2π / f positions for a full turn of rotary pair i, before and after; f = θ^(−2i / d) where positions are "
        "not scaled, and NTK raises θ.",
        "Pairs above a context's line never see a whole turn in it. NTK moves the slow ones up, by as much as the "
        "context grew, and leaves the fast ones.",
        "",
        "model/inspect/changes.py",
        "wavelengths",
    ),
    "distances": Picture(
        "Mean A[t, s] by distance t − s, of the positions in the last quarter of the longer context, all heads.",
        "Beyond the old context, attention should go on falling gently, not stop.",
        "",
        "model/inspect/changes.py",
        "by_distance",
    ),
    "origins": Picture(
        "The longest runs of an answer's tokens that are in the token shards, word for word.",
        "Coloured: copied. A small model on little text repeats whole phrases of it; what is not coloured it put "
        "together.",
        "Runs of fewer than 6 tokens are in any text, and are left out.",
        "model/inspect/spans.py",
        "longest_spans",
    ),
}
SCORES = {
    "induction": "induction",
    "previous": "previous token",
    "duplicate": "duplicate token",
    "sink": "sink: attention to the first position",
    "entropy": "entropy of attention",
    "copying": "copying, by the weights",
    "writes": "copying, by what is written, nats",
}
