"""configs/: a file that a newcomer copies is one that its program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


def test_rays_launcher_takes_the_cluster_file() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = yaml.safe_load(Path("configs/ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))


def test_the_kuberay_manifest_is_of_this_ray() -> None:
    ray = pytest.importorskip("ray")
    found = yaml.safe_load(Path("configs/kuberay.yaml").read_text())
    assert found["kind"] == "RayCluster" and found["spec"]["rayVersion"] == ray.__version__
    groups = [found["spec"]["headGroupSpec"], *found["spec"]["workerGroupSpecs"]]
    for group in groups:
        mounts = {m["name"] for c in group["template"]["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
