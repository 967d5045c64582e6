"""What each tracker shows of a run, read by its own library. Figures are in the order in which the tracker got them."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from model.training.records import read_metrics


class Shown(NamedTuple):
    """A run in a tracker."""

    figures: list[tuple[str, int, float]]  # name, step, value
    texts: list[str]
    config: dict[str, Any]

    def newest(self) -> dict[tuple[str, int], float]:
        """The last value of each figure at each step."""
        return {(name, step): value for name, step, value in self.figures}


def tensorboard(run: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    (folder,) = (run / "tensorboard/pretrain").iterdir()
    everything = {"scalars": 0, "tensors": 0}
    figures, texts = (EventAccumulator(str(path), everything).Reload() for path in (folder, folder / "events"))
    scalars = [(name, e.step, e.value) for name in figures.Tags()["scalars"] for e in figures.Scalars(name)]

    def read(tag: str) -> list[str]:
        return [tensor_util.make_ndarray(e.tensor_proto).item().decode() for e in texts.Tensors(tag)]

    (written,) = read("configuration/text_summary")
    config = dict(line.strip().split(" = ", 1) for line in written.splitlines())
    events = read("events/text_summary") if "events/text_summary" in texts.Tags()["tensors"] else []
    return Shown(scalars, events, {name: value.strip("'") for name, value in config.items()})


def wandb(run: Path) -> Shown:
    """The files of all its processes, which are one run: `wandb sync` sends them in the order of their beginning."""
    figures: list[tuple[str, int, float]] = []
    texts: list[str] = []
    config: dict[str, Any] = {}
    ids, last = set(), -1
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in _records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                assert row["_step"] > last  # else the server drops it
                last = row["_step"]
                texts += [row["event"]] if "event" in row else []
                figures += [(name, row["step"], value) for name, value in row.items() if "/" in name]
    assert len(ids) == 1
    return Shown(figures, texts, config)


def _records(path: Path) -> Iterator[Any]:
    """A .wandb file: a header of 7 bytes, and LevelDB's log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def trackio(run: Path) -> Shown:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("koda")
    logs = SQLiteStorage.get_logs("koda", name)
    figures = [(key, log["step"], value) for log in logs for key, value in log.items() if "/" in key]
    texts = [alert["text"] for alert in SQLiteStorage.get_alerts("koda", name)]
    return Shown(figures, texts[::-1], SQLiteStorage.get_run_config("koda", name) or {})


def mlflow(run: Path) -> Shown:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("koda")
    (shown,) = client.search_runs([experiment.experiment_id])
    figures = []
    for name in shown.data.metrics:
        history = sorted(client.get_metric_history(shown.info.run_id, name), key=lambda metric: metric.timestamp)
        figures += [(name, metric.step, metric.value) for metric in history]
    texts = [value for name, value in sorted(shown.data.tags.items()) if name.startswith("event ")]
    return Shown(figures, texts, shown.data.params)


READERS: dict[str, Callable[[Path], Shown]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
    "mlflow": mlflow,
}


def read_back(name: str, training: Path) -> Shown:
    """What a tracker shows of the training in this folder."""
    return READERS[name](training.parent)


def shows_the_metrics(name: str, training: Path) -> bool:
    """Does a tracker show just the steps and the figures of metrics.jsonl? TensorBoard has them as float32."""
    metrics, shown = read_metrics(training), read_back(name, training).newest()
    figures = {("heldout/loss", line.step): line.heldout_loss for line in metrics.heldout}
    for line in metrics.training:
        values = asdict(line)
        figures |= {(f"train/{key}", line.step): values[key] for key in values.keys() - {"step", "time"}}
    same_steps = bool(figures) and shown.keys() == figures.keys()
    return same_steps and all(math.isclose(shown[key], value, rel_tol=2**-23) for key, value in figures.items())
