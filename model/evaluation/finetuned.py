"""A finished fine-tuning: its adapter, the model with it merged in, and whether that stops by itself."""

from dataclasses import asdict
from pathlib import Path

from model import weights
from model.data import tokenizer as tokenizers
from model.evaluation.endings import ending_share
from model.export.adapter import write_adapter
from model.figures import FinetunedFigures
from model.lora import merge_lora
from model.training.job import Job
from model.training.promote import restored, trained


def finish(job: str, tokenizer: str, prompts: str, out: str, base: str, limit: int) -> FinetunedFigures:
    """Write adapter/ and the merged weights/ of the finished fine-tuning `job` (a file) below `out`.

    `base`: where the adapter's base model will be, if somebody exports it. `limit`: tokens within which answers to the
    held-out `prompts` should end, before and after.
    """
    finished = Job.read(Path(job))
    training, facts = restored(finished)
    model = trained(training)
    if finished.lora is not None:
        write_adapter(Path(out) / "adapter", model, finished.lora, Path(base))
    merge_lora(model)
    weights.save(Path(out) / "weights", model)

    tokens = tokenizers.load(tokenizer)
    assert finished.init is not None
    before = ending_share(weights.load(Path(finished.init)), tokens, Path(prompts), limit)
    after = ending_share(model, tokens, Path(prompts), limit)
    return FinetunedFigures(
        **asdict(after),
        ends_by_itself_before=before.ends_by_itself,
        heldout_loss=round(facts["heldout_loss"], 4),
    )
