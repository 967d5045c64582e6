import json
import random
from pathlib import Path

import pytest

from model.data import docs


@pytest.fixture(scope="session")
def standard_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic items of all eight tasks, with the columns and the irregularities of their Hub data sets."""
    folder = tmp_path_factory.mktemp("items")
    draw = random.Random(0)
    words = " ".join(topic.text for topic in docs.topics()).split()

    def text(limit: int) -> str:
        """Fewer than `limit` words."""
        start = draw.randrange(len(words) - limit)
        return " ".join(words[start : start + draw.randrange(1, limit)])

    def lettered(labels: str) -> dict:
        return {
            "choices": {"text": [text(9) for _ in labels], "label": list(labels)},
            "answerKey": draw.choice(labels),
        }

    makers = {
        "hellaswag": lambda: {
            "activity_label": text(3),
            "ctx_a": f"{text(12)} [title] {text(4)}  {text(3)}",
            "ctx_b": draw.choice(["", text(4)]),
            "endings": [f"{text(12)} [step] {text(4)}" for _ in range(4)],
            "label": str(draw.randrange(4)),
        },
        "arc_easy": lambda: {"question": text(20), **lettered("ABCD")},
        "arc_challenge": lambda: {"question": text(20), **lettered(draw.choice(["1234", "ABC"]))},
        "winogrande": lambda: {
            "sentence": f"{text(8)} _ {text(8)} .",
            "option1": text(2),
            "option2": text(2),
            "answer": draw.choice("12"),
        },
        "piqa": lambda: {"goal": text(8), "sol1": text(20), "sol2": text(20), "label": draw.randrange(2)},
        "boolq": lambda: {"passage": text(60), "question": text(7), "label": draw.randrange(2)},
        "openbookqa": lambda: {"question_stem": f"{text(9)} ", **lettered("ABCD")},
        "lambada_openai": lambda: {"text": f"{text(40)} {draw.choice(words)}"},
    }
    for name, make in makers.items():
        rows = (json.dumps(make()) for _ in range(20))
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder
