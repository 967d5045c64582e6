"""The LoRA adapter in PEFT's form."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from model.config import LORA_TARGETS
from model.export.names import MODULES
from model.files import atomic_write, write_json
from model.llama import Llama
from model.lora import Lora, adapted
from model.training.job import LoraRecipe


def write_adapter(folder: Path, model: Llama, recipe: LoraRecipe, base: Path) -> None:
    """Write the updates beside the matrices as a folder that PEFT loads; `base`: where it looks for the model that they
    belong to, a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for name, linear in adapted(model, recipe.targets):
        assert isinstance(linear.lora, Lora)
        module = MODULES[LORA_TARGETS[name]]
        for number in range(model.config.num_hidden_layers):
            prefix = f"base_model.model.model.layers.{number}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(np.asarray(linear.lora.a[number]).T)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(np.asarray(linear.lora.b[number]).T)
    with atomic_write(folder / "adapter_model.safetensors", "wb") as file:  # safetensors' own files are private
        file.write(save(tensors, {"format": "pt"}))
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
            "base_model_name_or_path": str(base),
        },
    )
