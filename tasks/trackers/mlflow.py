"""MLflow: the experiment `koda`, or MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI."""

import os
from datetime import UTC, datetime
from typing import Any

from tasks.trackers.tracker import Identity, Tracker

ID = "koda.id"  # the tag that has a training's identity: MLflow makes the ids of runs itself
MOST = 1000  # metrics in a request
DEFAULTS = {
    # A server that does not reply is noticed in half a minute, and tried again later.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MLflow(Tracker):
    name = "mlflow"
    package = "mlflow"

    def open(self, training: Identity, config: dict[str, Any]) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        self.metrics: list[Any] = []
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "koda"))
        run = next(iter(self.client.search_runs([experiment], f"tags.`{ID}` = '{training.id}'")), None)
        if run is None:
            tags = {ID: training.id, "koda.run": training.run, "koda.stage": training.stage}
            run = self.client.create_run(experiment, run_name=f"{training.run}/{training.stage}", tags=tags)
        self.id = run.info.run_id
        self.client.update_run(self.id, status="RUNNING")
        # What a parameter is, it stays: a setting that a later attempt changes is as the first one had it.
        missing = [Param(name, str(value)) for name, value in config.items() if name not in run.data.params]
        self.client.log_batch(self.id, params=missing)

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        from mlflow.entities import Metric

        self.metrics += [Metric(name, value, round(1000 * time), step) for name, value in values.items()]

    def event(self, step: int, text: str, time: float) -> None:
        moment = datetime.fromtimestamp(time, UTC)  # a tag has one value; to the microsecond it is of one event
        self.client.set_tag(self.id, f"event {moment:%Y-%m-%d %H.%M.%S.%f}", text)

    def flush(self) -> None:
        while self.metrics:
            self.client.log_batch(self.id, metrics=self.metrics[:MOST])
            del self.metrics[:MOST]

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else self.client.create_experiment(name)
