"""Trackio: the project `koda`; on this machine, in a Space (TRACKIO_SPACE_ID) or at a server (TRACKIO_SERVER_URL)."""

from typing import Any

from tasks.trackers.tracker import Identity, Tracker


class Trackio(Tracker):
    name = "trackio"
    package = "trackio"
    settles = 30.0  # a thread of it sends each half second, and keeps here what a server does not take

    def open(self, training: Identity, config: dict[str, Any]) -> None:
        import trackio

        self.run = trackio.init(
            "koda",
            name=training.id,
            group=training.run,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        self.run.log(values, step=step)

    def event(self, step: int, text: str, time: float) -> None:
        self.run.alert(text.partition(":")[0], text=text, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish()
