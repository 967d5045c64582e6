"""Rows with a question and its answer in columns: Dolly (Conover et al. 2023) and Alpaca (Taori et al. 2023).

    {"instruction": "Sum up.", "context": "It rained.", "response": "Rain."}
    {"instruction": "Sum up.", "input": "It rained.", "output": "Rain.", "history": [["Hi", "Hello."]]}

The context joins the question after an empty line. `history` has the turns before, questions and answers in pairs.
"""

from typing import Any

from model.data.conversation import BadRow, Turn

CONTEXTS, ANSWERS = ("context", "input"), ("response", "output")
READ = frozenset({"instruction", "history", *CONTEXTS, *ANSWERS})


def read(row: dict[str, Any]) -> list[Turn]:
    """The turns of a row. Raises BadRow."""
    answers = [column for column in ANSWERS if row.get(column) is not None]
    if not answers:
        columns = ", ".join(sorted(row))
        raise BadRow("no_conversation", f"it has neither `response` nor `output`, only {columns}")
    if len(answers) > 1:
        raise BadRow("no_conversation", "it has both `response` and `output`: which is the answer?")
    for column in sorted(READ & row.keys() - {"history"}):
        if not isinstance(row[column], str) and row[column] is not None:
            raise BadRow("no_conversation", f"its `{column}` is {type(row[column]).__name__}, not a string")
    question = "\n\n".join(
        text for text in (row["instruction"], *(row.get(column) for column in CONTEXTS)) if text and not text.isspace()
    )
    if not question:
        raise BadRow("no_conversation", "its `instruction` is blank")
    return [*_history(row.get("history")), Turn("user", question), Turn("assistant", row[answers[0]])]


def _history(pairs: Any) -> list[Turn]:
    turns = []
    if not isinstance(pairs or [], list):
        raise BadRow("no_conversation", f"its `history` is {type(pairs).__name__}, not a list of questions and answers")
    for number, pair in enumerate(pairs or ()):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow("no_conversation", f"its `history[{number}]` is not a question and its answer")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns
