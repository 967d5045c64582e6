"""The MLX folders, written by mlx-lm from the Hugging Face folder."""

import shutil
from pathlib import Path

GROUP = 64  # weights that share a scale
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write(folder: Path, hf_folder: Path, bits: int) -> None:
    """Write one MLX folder: fp16 for 16 bits, quantised in groups of 64 for fewer."""
    import mlx_lm  # here, because it imports transformers, which takes seconds

    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mlx_lm.convert(str(hf_folder), str(folder), quantize=bits < 16, q_bits=bits, q_group_size=GROUP, dtype="float16")
    for name in TOKENIZER_FILES:  # mlx-lm writes its own, which transformers 4 refuses
        shutil.copyfile(hf_folder / name, folder / name)
