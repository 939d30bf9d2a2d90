"""Rows reach the trackers that a recipe names, each by its real package; a tracker that fails stops nothing."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rockroll.errors import HostError, UsageError
from rockroll.observe import trackers
from rockroll.observe.config import MetricsConfig
from rockroll.observe.display import Status
from rockroll.observe.metrics import MetricsLog
from rockroll.observe.number import Number
from rockroll.observe.prometheus import Exporter

ROWS = [{"step": 0, "eval/pass_rate": 0.25}, {"step": 1, "reward/mean": 0.5}]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory, in which every tracker is to keep what it keeps; no network is asked."""
    folder = tmp_path / "lake"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: lake\ntrain: {lr: 0.001}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():
        monkeypatch.setenv(name, value)
    return folder


def tracked(name: str, run_dir: Path, rows: list[dict[str, float]]) -> list[str]:
    """Sends the rows; what was said."""
    said: list[str] = []
    with trackers.Trackers([name], run_dir, name="lake", say=said.append) as all_:
        for row in rows:
            all_.write(row)
    return said


def test_a_tracker_that_ended_or_hangs_keeps_no_rows(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    class Hung:
        def write(self, row: dict[str, float]) -> None:
            go_on.wait()

        def close(self, ok: bool) -> None:
            pass

    monkeypatch.setattr(trackers, "MOST", 5)
    monkeypatch.setattr(trackers, "_module", lambda name: SimpleNamespace(open_run=lambda *_: Hung()))
    said: list[str] = []
    with trackers.Trackers(["wandb"], run_dir, name="lake", say=said.append) as all_:
        (sender,) = all_._each
        for step in range(50):
            all_.write({"step": step})
        assert sender.rows.qsize() <= 5
        go_on.set()
    assert [line for line in said if "taken none of the last 5 rows" in line] == said != []

    def fails(*_: object) -> None:
        raise OSError("no such server")

    monkeypatch.setattr(trackers, "_module", lambda name: SimpleNamespace(open_run=fails))
    with trackers.Trackers(["wandb"], run_dir, name="lake", say=said.append) as all_:
        (sender,) = all_._each
        sender._thread.join()
        all_.write({"step": 1})
        assert sender.rows.qsize() == 0


@pytest.mark.slow
def test_wandb_gets_the_rows_and_a_resumed_run_goes_on_with_the_same_id(run_dir: Path) -> None:
    wandb = pytest.importorskip("wandb")
    assert tracked("wandb", run_dir, ROWS) == []
    time.sleep(1.1)  # W&B names an offline folder by the second: two of one second would be one, and lose rows
    assert tracked("wandb", run_dir, [{"step": 2, "reward/mean": 0.75}]) == []
    wandb.teardown()  # as at Python's end: `finish` does not wait for its process to close the file
    id = (run_dir / "track" / "wandb.id").read_text().strip()
    files = (run_dir / "track" / "wandb").glob(f"offline-run-*-{id}/run-{id}.wandb")
    written = sorted((step, row) for file in files for step, row in wandb_rows(file))
    assert written == [(0, {"eval/pass_rate": 0.25}), (1, {"reward/mean": 0.5}), (2, {"reward/mean": 0.75})]


def wandb_rows(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The rows in wandb's own file: records in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:  # no header begins so near a block's end
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a record is whole, or its last part is there
            record = Record.FromString(whole)
            whole = b""
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                yield int(items["_step"]), {k: json.loads(v) for k, v in items.items() if not k.startswith("_")}


@pytest.mark.slow
def test_trackio_gets_the_rows(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = (  # its folder is read when it is imported
        "import sys; from pathlib import Path; from tests.observe.test_trackers import ROWS, tracked;"
        "assert tracked('trackio', Path(sys.argv[1]), ROWS) == []"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(run_dir)], cwd=root, check=True, capture_output=True, timeout=100)
    with sqlite3.connect(tmp_path / "trackio" / "rockroll.db") as database:
        found = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    assert [(step, json.loads(values)) for step, values in found] == [
        (0, {"eval/pass_rate": 0.25}),
        (1, {"reward/mean": 0.5}),
    ]


@pytest.mark.slow
def test_mlflow_gets_the_rows_and_the_recipe(run_dir: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    assert tracked("mlflow", run_dir, ROWS) == []
    id = (run_dir / "track" / "mlflow.id").read_text().strip()
    assert tracked("mlflow", run_dir, [{"step": 2, "reward/mean": 0.75}]) == []
    run = MlflowClient().get_run(id)
    assert run.info.status == "FINISHED" and run.data.params == {"name": "lake", "train.lr": "0.001"}
    assert [(each.step, each.value) for each in MlflowClient().get_metric_history(id, "reward/mean")] == [
        (1, 0.5),
        (2, 0.75),
    ]


def test_a_package_that_is_missing_is_one_sentence_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^track: mlflow needs the Python package mlflow: pip install mlflow$"):
        trackers.require(["tensorboard", "mlflow"])


def test_wandb_without_a_key_is_refused_before_it_could_ask_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"wandb has no key for api\.wandb\.ai: run `wandb login`"):
        trackers.require(["wandb"])
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    trackers.require(["wandb"])


def test_none_is_imported_that_was_not_asked_for() -> None:
    code = (
        "import sys; from rockroll.controller.loop import train; from rockroll.observe.trackers import require;"
        "require(['tensorboard']); print([n for n in ('wandb', 'trackio', 'mlflow') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[object] = []

    class Fine:
        def write(self, row: dict[str, float]) -> None:
            got.append(row)

        def close(self, ok: bool) -> None:
            got.append(ok)

    class Broken(Fine):
        def write(self, row: dict[str, float]) -> None:
            raise ConnectionError("no route\nto that host")

    opened = {"wandb": Broken, "trackio": Fine}

    class Opener:
        def __init__(self, name: str) -> None:
            self.open_run = lambda *_: opened[name]()

    monkeypatch.setattr(trackers, "_module", Opener)
    said: list[str] = []
    with trackers.Trackers(["wandb", "tensorboard", "trackio"], run_dir, name="lake", say=said.append) as all_:
        log = MetricsLog(run_dir, tensorboard=False, also=all_.write)
        for row in ROWS:
            log.write(row)
        log.close()
    assert said == ["track: wandb is left out from here on: ConnectionError: no route; metrics.jsonl has every row"]
    assert got == [*ROWS, True] and not (run_dir / "tensorboard").exists()


def test_a_tracker_that_hangs_holds_nobody(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    class Hanging:
        def open_run(self, *_: object) -> None:
            end.wait(60)

    monkeypatch.setattr(trackers, "_module", lambda name: Hanging())
    monkeypatch.setattr(trackers, "_STOP_S", 0.1)
    said: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        trackers.Trackers(["wandb"], run_dir, name="lake", say=said.append) as all_,
    ):
        all_.write(ROWS[0])
        raise KeyboardInterrupt
    end.set()
    assert said[0].startswith("track: wandb is left out from here on: it has not sent everything within 0 s")


def test_prometheus_finds_what_the_display_shows_and_the_last_row() -> None:
    status = Status("lake", 20, step=3, outcomes={"ok": 5}, running=2)
    status.enter("rollout", 64)
    labels = {"engine": "engine-1", "node": "far"}
    status.census = lambda: [Number("engine_steps", "Steps.", labels, 7, True), Number("slots", "Slots.", labels, 2)]
    with Exporter(MetricsConfig(prometheus="127.0.0.1:0"), "lake", status) as exporter:
        exporter.write({"step": 2, "reward/mean": 0.5})
        status.outcomes["ok"] = 6
        said = urllib.request.urlopen(exporter.url).read().decode()
        with pytest.raises(HostError, match="cannot be listened at: Address already in use; choose another port"):
            Exporter(MetricsConfig(prometheus=exporter.url[7:-8]), "other", status)
    for line in (
        'rockroll_step{run="lake"} 3.0',
        'rockroll_episodes_running{run="lake"} 2.0',
        'rockroll_phase{phase="rollout",run="lake"} 1.0',
        'rockroll_episodes_total{outcome="ok",run="lake"} 6.0',
        'rockroll_metric{name="reward/mean",run="lake"} 0.5',
        'rockroll_engine_steps_total{engine="engine-1",node="far",run="lake"} 7.0',
        'rockroll_slots{engine="engine-1",node="far",run="lake"} 2.0',
    ):
        assert line in said.splitlines(), said


@pytest.mark.parametrize("place", ["9100", "localhost:", "127.0.0.1:99999", ":9100"])
def test_an_address_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="metrics prometheus is HOST:PORT, as in"):
        MetricsConfig(prometheus=place)
