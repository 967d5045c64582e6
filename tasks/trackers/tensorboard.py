"""TensorBoard: event files in `tensorboard/STAGE/ID` of the run's folder, which the Hub shows too."""

from pathlib import Path
from typing import Any

from tasks.trackers.tracker import Identity, Tracker


def event_folder(training: Identity) -> Path:
    """The folder of a training's event files."""
    return training.folder / "tensorboard" / training.stage / training.id.rpartition("-")[2]


class TensorBoard(Tracker):
    """Writes with what is below tensorboardX's SummaryWriter, whose `flush` leaves what its thread has not written."""

    name = "tensorboard"
    package = "tensorboardX"

    def open(self, training: Identity, config: dict[str, Any]) -> None:
        self.folder = event_folder(training)
        is_new = not self.folder.is_dir()
        self.figures = _new_file(self.folder)
        # In a folder of their own: a rewind hides all that its folder has from that step on.
        self.texts = _new_file(self.folder / "events")
        if is_new:
            lines = "\n".join(f"    {name} = {value!r}" for name, value in config.items())
            self._add_text("configuration", lines, 0, training.began)
            self.flush()

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self.figures.write_event(Event(step=step, wall_time=time, summary=scalar(name, value)))

    def event(self, step: int, text: str, time: float) -> None:
        self._add_text("events", text, step, time)

    def rewind(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.figures.close()
        self.figures = _new_file(self.folder)
        self.figures.write_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def flush(self) -> None:
        self.figures.flush()
        self.texts.flush()

    def close(self, finished: bool) -> None:
        self.figures.close()
        self.texts.close()

    def _add_text(self, tag: str, text: str, step: int, time: float) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        self.texts.write_event(Event(step=step, wall_time=time, summary=summary.text(tag, text)))


def _new_file(folder: Path) -> Any:
    """A new event file. Its name has the second; two of one second need another part that differs, in their order."""
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("events.out.tfevents.*")))
    return EventsWriter(str(folder / "events"), f".{number:05}")
