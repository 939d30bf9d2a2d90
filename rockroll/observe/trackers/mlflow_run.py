"""MLflow, by its package's client.

In: rows. Out: a run of the experiment $MLFLOW_EXPERIMENT_NAME, or `rockroll`, where $MLFLOW_TRACKING_URI says; mlflow's
own default is ./mlflow.db. Leaves showing it to `mlflow ui`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rockroll.observe.metrics import Row
from rockroll.observe.trackers import flat, numbers

_LONGEST = 500
"""Characters of a parameter that every store of mlflow takes."""
_AT_ONCE = 100
"""Parameters of one request."""


def open_run(folder: Path, name: str, recipe: Mapping[str, Any]) -> MlflowRun:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

    client = MlflowClient()
    folder.mkdir(exist_ok=True)
    file = folder / "mlflow.id"
    if file.exists():
        id = file.read_text().strip()
        client.update_run(id, status="RUNNING")
        return MlflowRun(client, id)
    wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rockroll")
    experiment = client.get_experiment_by_name(wanted)
    where = experiment.experiment_id if experiment else client.create_experiment(wanted)
    id = client.create_run(where, run_name=name, tags={"rockroll.run_dir": str(folder.parent)}).info.run_id
    params = [Param(key, str(value)[:_LONGEST]) for key, value in flat(recipe).items()]
    for at in range(0, len(params), _AT_ONCE):
        client.log_batch(id, params=params[at : at + _AT_ONCE])
    file.write_text(id + "\n")
    return MlflowRun(client, id)


class MlflowRun:
    def __init__(self, client: Any, id: str) -> None:
        self._client, self._id = client, id

    def write(self, row: Row) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now, step = int(time.time() * 1000), int(row["step"])
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in numbers(row).items()])

    def close(self, ok: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if ok else "FAILED")
