import json
import random
from pathlib import Path

import pytest

from model.data import docs


@pytest.fixture(scope="session")
def standard_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up items of all eight tasks, in the columns of their Hub data sets, with the oddities that these have."""
    folder = tmp_path_factory.mktemp("items")
    draw = random.Random(0)
    words = " ".join(topic.text for topic in docs.topics()).split()

    def said(most: int) -> str:
        start = draw.randrange(len(words) - most)
        return " ".join(words[start : start + draw.randrange(1, most)])

    def lettered(labels: str) -> dict:
        return {"choices": {"text": [said(9) for _ in labels], "label": list(labels)}, "answerKey": draw.choice(labels)}

    makers = {
        "hellaswag": lambda: {
            "activity_label": said(3),
            "ctx_a": f"{said(12)} [title] {said(4)}  {said(3)}",
            "ctx_b": draw.choice(["", said(4)]),
            "endings": [f"{said(12)} [step] {said(4)}" for _ in range(4)],
            "label": str(draw.randrange(4)),
        },
        "arc_easy": lambda: {"question": said(20), **lettered("ABCD")},
        "arc_challenge": lambda: {"question": said(20), **lettered(draw.choice(["1234", "ABC"]))},
        "winogrande": lambda: {
            "sentence": f"{said(8)} _ {said(8)} .",
            "option1": said(2),
            "option2": said(2),
            "answer": draw.choice("12"),
        },
        "piqa": lambda: {"goal": said(8), "sol1": said(20), "sol2": said(20), "label": draw.randrange(2)},
        "boolq": lambda: {"passage": said(60), "question": said(7), "label": draw.randrange(2)},
        "openbookqa": lambda: {"question_stem": f"{said(9)} ", **lettered("ABCD")},
        "lambada_openai": lambda: {"text": f"{said(40)} {draw.choice(words)}"},
    }
    for name, make in makers.items():
        rows = (json.dumps(make()) for _ in range(20))
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder
