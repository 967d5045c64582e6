"""What one training process does: everything, written out, in one file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.config import Compute, LlamaConfig
from model.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights are learned; a section of the configuration has the same names, with their defaults and reasons."""

    steps: int
    batch_size: int  # rows in a step
    learning_rate: float
    optimizer: str  # adamw | muon
    schedule: str  # wsd | cosine
    warmup_steps: int
    decay_fraction: float  # of the steps, at the end, for wsd
    weight_decay: float
    clip_norm: float
    z_loss: float
    dropout: float = 0.0
    seed: int
    isolate_documents: bool
    gradient_accumulation_steps: int
    spike_deviations: float  # 0: a loss that is finite is never bad
    save_every_steps: int
    save_every_minutes: float
    save_share: float = 0.005  # of the time that temporary saves may cost; 0: only one each save_every_minutes
    disk_share: float = 0.5  # of the time in which one may be being written
    replay_every_minutes: float = 0.0  # steps computed twice; 0: never
    keep_checkpoints: int
    verify_every_saves: int
    full_disk_minutes: float
    log_every_steps: int
    evaluate_every_steps: int
    evaluate_rows: int
    snapshots: int = 0  # steps whose weights are kept, at most

    def decay_start(self) -> int:
        """The step at which `wsd` begins to fall; up to it trainings that differ in their number of steps are equal."""
        return max(min(self.warmup_steps, self.steps), self.steps - round(self.decay_fraction * self.steps))

    def snapshot_steps(self) -> list[int]:
        """The steps whose weights are kept: 0, 1, 2, 4, … 512, where most happens in few steps, then evenly to the
        last; where `snapshots` are fewer than that, some of these."""
        early = [0] + [2**n for n in range(10) if 2**n < self.steps]
        late = max(1, self.snapshots - len(early))
        even = [early[-1] + round((self.steps - early[-1]) * number / late) for number in range(1, late + 1)]
        kept = sorted({*early, *even})
        count, last = min(self.snapshots, len(kept)), len(kept) - 1
        return sorted(kept[last - round(last * number / max(1, count - 1))] for number in range(count))


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training from step 0 to `recipe.steps`, whatever happens in between."""

    folder: str  # checkpoints, metrics and events lie here
    train: str  # shards to learn from
    heldout: str  # shards to measure on
    sequence_length: int
    end_of_text: int
    model: LlamaConfig
    compute: Compute
    recipe: Recipe
    init: str | None = None  # weights to begin with; None: random ones
    lora: LoraRecipe | None = None  # train only low-rank updates
    fsdp: int = 1  # devices that the weights are spread over
    tensor: int = 1  # devices that each matrix product is split over
    second_place: str = ""  # address where its checkpoints are copied to, and read from where there is none here
    cache: str | None = None  # XLA's persistent compilation cache

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """What the whole training reads."""
        return self.recipe.steps * self.tokens_per_step

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> "Job":
        return Job.from_dict(read_json(path))

    @staticmethod
    def from_dict(written: dict[str, Any]) -> "Job":
        raw = dict(written)
        lora = raw.pop("lora")
        return Job(
            model=LlamaConfig(**raw.pop("model")),
            compute=Compute(**raw.pop("compute")),
            recipe=Recipe(**raw.pop("recipe")),
            lora=LoraRecipe(**{**lora, "targets": tuple(lora["targets"])}) if lora else None,
            **raw,
        )
