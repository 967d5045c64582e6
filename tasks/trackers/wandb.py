"""Weights & Biases: the project `koda`, or WANDB_PROJECT; a run is a group, and each of its trainings a run of it."""

import netrc
import os
import time as clock
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.trackers.tracker import Identity, Tracker

OFFLINE = {"offline", "dryrun", "disabled"}


class WandB(Tracker):
    name = "wandb"
    package = "wandb"
    settles = 30.0  # its own process writes, or sends, each 10 to 15 s, and ends with this one

    @classmethod
    def lacks(cls) -> str:
        if os.environ.get("WANDB_MODE") in OFFLINE or cls._has_key():
            return ""
        return "has no key: set WANDB_API_KEY, or WANDB_MODE=offline (`wandb sync` sends it later)."

    @staticmethod
    def _has_key() -> bool:
        """In the environment, or where `wandb login` puts it."""
        if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            return True
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
        try:
            return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            return False

    @classmethod
    def rest(cls, training: Path) -> str:
        # What its own process had taken and not sent is in files of its own.
        return f"{super().rest(training)} && wandb sync {training.parent}/wandb/run-*"

    def open(self, training: Identity, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_DIR", str(training.folder))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.began, self.row = training.began, 0
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "koda"),
            id=training.id,
            name=f"{training.run}/{training.stage}",
            group=training.run,
            job_type=training.stage,
            config=config,
            resume="allow",
            # Of the machine and the code it would show those of this process.
            settings=wandb.Settings(x_disable_stats=True, console="off", disable_git=True, save_code=False),
        )
        # Its own count of rows never goes back; the training does.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        self._add({"step": step, **values, "_timestamp": time})

    def event(self, step: int, text: str, time: float) -> None:
        self._add({"step": step, "event": text, "_timestamp": time})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)

    def _add(self, row: dict[str, Any]) -> None:
        """Rows are numbered by hundredths of a second: the server drops a row whose number it has passed, and without
        it nobody knows how many an earlier process has written."""
        self.row = max(self.row + 1, self.run.step, int(100 * (clock.time() - self.began)))
        self.run.log(row, step=self.row, commit=True)
