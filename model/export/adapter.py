"""The LoRA adapter in PEFT's form, and the model with it merged in."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from model import weights
from model.config import LORA_TARGETS
from model.data import tokenizer as tokenizers
from model.evaluation.endings import ending_share
from model.export.names import MODULES
from model.files import write_json
from model.llama import Llama
from model.lora import Lora, adapted, merge_lora
from model.training.job import Job, LoraRecipe
from model.training.promote import restored, trained


def finish(job: str, tokenizer: str, prompts: str, out: str, answer_limit: int) -> dict[str, Any]:
    """Write adapter/ and the merged weights/ of a finished fine-tuning below `out`; returns the figures.

    Among them the share of held-out questions whose answer ends by itself, before and after.
    """
    order = Job.read(Path(job))
    training, facts = restored(order)
    model = trained(training)
    if order.lora is not None:
        write_adapter(Path(out) / "adapter", model, order.lora)
    merge_lora(model)
    weights.save(Path(out) / "weights", model)

    learned = tokenizers.load(tokenizer)
    assert order.init is not None
    before = ending_share(weights.load(Path(order.init)), learned, Path(prompts), answer_limit)
    return {
        "heldout_loss": round(facts["heldout_loss"], 4),
        "ends_by_itself_before": before["ends_by_itself"],
        **ending_share(model, learned, Path(prompts), answer_limit),
    }


def write_adapter(folder: Path, model: Llama, recipe: LoraRecipe) -> None:
    """Write the updates beside the matrices as a folder that `peft.PeftModel.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for name, linear in adapted(model, recipe.targets):
        assert isinstance(linear.lora, Lora)
        module = MODULES[LORA_TARGETS[name]]
        for number in range(model.config.num_hidden_layers):
            prefix = f"base_model.model.model.layers.{number}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(np.asarray(linear.lora.a[number]).T)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(np.asarray(linear.lora.b[number]).T)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": recipe.rank,
            "lora_alpha": recipe.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(recipe.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "base_model_name_or_path": None,
        },
    )
