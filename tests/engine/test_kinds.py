"""Which engines can run here: said from what is installed, without importing any of it."""

from __future__ import annotations

import sys

import pytest

from rockroll.engine import kinds, vllm_versions
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError


@pytest.mark.parametrize(
    ("installed", "gpu", "ok", "said"),
    [
        (None, False, False, "scripts/setup --vllm, which installs the one for this CPU"),
        (None, True, False, "scripts/setup --vllm, which installs the one for a GPU"),
        (("0.32.0", True), False, True, "vLLM 0.32.0 for CPUs"),
        (("0.32.0", True), True, True, "the GPU here is not used by it"),
        (("0.24.0", False), True, True, "vLLM 0.24.0 for CUDA"),
        (("0.24.0", False), False, False, "no GPU is here"),
        (("0.9.2", False), True, False, "install 0.24 or newer"),
        (("0.30.0+cu130", False), True, True, "vLLM 0.30.0+cu130 for CUDA"),
    ],
)
def test_vllm(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, bool] | None, gpu: bool, ok: bool, said: str
) -> None:
    monkeypatch.setattr(vllm_versions, "installed", lambda: installed)
    monkeypatch.setattr(kinds, "has_gpu", lambda: gpu)
    kind = kinds.kinds()[1]
    assert (kind.name, kind.ok) == ("vllm", ok)
    assert said in f"{kind.detail}; {kind.cure}"
    if not ok:
        with pytest.raises(UsageError, match=r"engine\.kind vllm cannot run here"):
            kinds.require(EngineConfig(kind="vllm"))


def test_looking_imports_no_engine() -> None:
    before = set(sys.modules)
    assert kinds.require(EngineConfig()).ok
    assert not {"vllm", "torch", "transformers"} & (set(sys.modules) - before)


def test_each_device_gets_its_arguments() -> None:
    config = EngineConfig(
        kind="vllm", model="/m", max_batch=8, prefill_tokens=64, memory="256m", device="cuda:1", gpu_share=0.3
    )
    cpu = vllm_versions.arguments(config, 1024, cpu=True)
    assert cpu["enforce_eager"] and cpu["kv_cache_memory_bytes"] == 2**28 and "gpu_memory_utilization" not in cpu
    assert not cpu["enable_chunked_prefill"] and cpu["max_num_batched_tokens"] >= cpu["max_model_len"] == 1025
    gpu = vllm_versions.arguments(config, 1024, cpu=False)
    assert not gpu["enforce_eager"] and gpu["gpu_memory_utilization"] == config.gpu_share
    assert gpu["max_num_batched_tokens"] == 72 and gpu["logprobs_mode"] == "processed_logprobs"
    assert vllm_versions.environment(config, cpu=False).get("CUDA_VISIBLE_DEVICES") in ("1", None)


def test_vllms_sockets_lie_with_the_runs_where_their_names_are_not_too_long() -> None:
    short, long = (EngineConfig(kind="vllm", address=f"ipc:///run/{'x' * n}/engine") for n in (65, 66))
    assert vllm_versions.environment(short, cpu=True)["VLLM_RPC_BASE_PATH"] == f"/run/{'x' * 65}"
    assert "VLLM_RPC_BASE_PATH" not in vllm_versions.environment(long, cpu=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"gpu_share": 0.0}, "gpu_share"), ({"gpu_share": 1.5}, "gpu_share"), ({"memory": "lots"}, "a size is digits")],
)
def test_wrong_settings_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineConfig(kind="vllm", **changes)  # type: ignore[arg-type]
