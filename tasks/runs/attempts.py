"""How often something was tried that can die, in a journal, so that it is not tried for ever."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import KodaError
from model.files import append_line, read_lines
from model.training.records import Event

LIMIT = 3  # attempts in a row without progress
ENDS = {Event.END, Event.DONE, Event.PREEMPTION, Event.GIVEN_UP}  # after these the count begins at 0 again


@dataclass(frozen=True)
class Attempts:
    """Attempts at one piece of work. Each adds a line to `journal` when it begins and, unless its process dies, when it
    ends; the journal may hold other events too.
    """

    journal: Path
    limit: int = LIMIT

    def without_progress(self, progress: Any) -> int:
        """How many of the last attempts began at this `progress` (a JSON value) and died."""
        died = 0
        for line in reversed(self._lines()):
            if line["event"] in ENDS or (line["event"] == Event.ATTEMPT and line["progress"] != progress):
                break
            died += line["event"] == Event.ATTEMPT
        return died

    def begin(self, progress: Any, give_up: str, **facts: Any) -> None:
        """Count an attempt that begins at `progress`; `facts` go into its line.

        Raises KodaError where the limit is reached: `give_up`, with {died} filled in. The count then begins at 0 again.
        """
        died = self.without_progress(progress)
        if died >= self.limit:
            self._add(Event.GIVEN_UP, cause=f"{died} attempts without progress", **facts)
            raise KodaError(give_up.format(died=died))
        self._add(Event.ATTEMPT, progress=progress, **facts)

    def end(self) -> None:
        """The attempt has ended, well or with an error that was reported."""
        self._add(Event.END)

    def schedule(self, flow_run: str, after: str) -> None:
        """Note that the flow run `flow_run` was created to go on where `after` crashed."""
        if all(line.get("after") != after or line.get("flow_run") != flow_run for line in self._lines()):
            self._add(Event.SCHEDULED, flow_run=flow_run, after=after)

    def began(self) -> dict[str, float]:
        """The flow runs whose process got as far as to begin an attempt, and when (as `time.time()`)."""
        return {
            line["flow_run"]: line["time"]
            for line in self._lines()
            if line["event"] == Event.ATTEMPT and "flow_run" in line
        }

    def never_began(self, flow_run: str) -> int:
        """How many flow runs in a row, `flow_run` being the last, were created after one another and never began."""
        began = self.began()
        crashed = {line["flow_run"]: line["after"] for line in self._lines() if line["event"] == Event.SCHEDULED}
        count = 0
        while flow_run and flow_run not in began:
            count, flow_run = count + 1, crashed.get(flow_run, "")
        return count

    def _lines(self) -> list[dict[str, Any]]:
        """The events in the journal; lines of another kind are left out."""
        return [line for line in read_lines(self.journal) if "event" in line]

    def _add(self, event: Event, **facts: Any) -> None:
        append_line(self.journal, {"time": time.time(), "event": event, **facts})
