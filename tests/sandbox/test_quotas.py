"""Quotas and the file they are in: every refusal says the rule, the value and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.errors import UsageError
from rockroll.sandbox.boxes import grant
from rockroll.sandbox.boxes.grant import Granted
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node import node_config, quotas
from rockroll.sandbox.node.node_config import NodeConfig, Quota, Quotas

BOX = SandboxConfig(cpus=0.5, memory="64m", pids=32)


def test_without_quotas_everything_is_allowed() -> None:
    assert quotas.refusal(Quotas(), "a", Granted(9999), Granted(9999), grant.of(BOX)) is None


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (
            Quota(boxes=3),
            "quotas.owner.boxes is 3; owner 'a' has 3 and asks for 1 more: delete some, or raise it in node.yaml",
        ),
        (Quota(cpus=1.5), "quotas.owner.cpus is 1.5; owner 'a' has 1.5 and asks for 0.5 more"),
        (Quota(memory="200m"), "quotas.owner.memory is 200m; owner 'a' has 192m and asks for 64m more"),
        (Quota(pids=100), "quotas.owner.pids is 100; owner 'a' has 96 and asks for 32 more"),
    ],
)
def test_each_quota_of_an_owner_is_refused_by_name(quota: Quota, said: str) -> None:
    have = grant.add([grant.of(BOX)] * 3)
    found = quotas.refusal(Quotas(owner=quota), "a", have, have, grant.of(BOX))
    assert found is not None and found.startswith(said)
    assert quotas.refusal(Quotas(owner=quota), "a", Granted(), have, grant.of(BOX)) is None, "another's boxes"


def test_the_last_box_that_fits_is_allowed() -> None:
    have = grant.add([grant.of(SandboxConfig(cpus=0.1))] * 9)
    assert quotas.refusal(Quotas(owner=Quota(cpus=1)), "a", have, have, grant.of(SandboxConfig(cpus=0.1))) is None


def test_a_named_owner_has_a_quota_of_its_own_and_the_node_bounds_all() -> None:
    found = Quotas(owner=Quota(boxes=1), owners={"alice": Quota(boxes=9)}, node=Quota(boxes=5))
    have = grant.add([grant.of(BOX)] * 4)
    assert quotas.refusal(found, "alice", have, have, grant.of(BOX)) is None
    said = quotas.refusal(found, "alice", have, grant.add([grant.of(BOX)] * 5), grant.of(BOX))
    assert said is not None and said.startswith("quotas.node.boxes is 5; this node has 5")


def test_the_owner_is_the_label_else_the_process() -> None:
    labelled = SandboxConfig(labels={"owner": "alice"})
    assert quotas.owner_of(labelled, True, 7) == quotas.owner_of(labelled, False, 8) == "alice"
    assert quotas.owner_of(BOX, False, 7) == "process 7"
    assert quotas.owner_of(BOX, True, 7) == quotas.owner_of(BOX, True, 8) == "detached"


def test_no_file_is_no_limits_and_the_sample_is_valid(tmp_path: Path) -> None:
    assert node_config.load(tmp_path / "node.yaml") == NodeConfig() == node_config.parse("# nothing\n")
    sample = node_config.load(Path(__file__).parents[2] / "configs" / "node.yaml")
    assert sample.pools["small"].sandbox().memory_bytes == 128 << 20
    assert sample.limits == node_config.Limits(), "the sample shows the defaults"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quotas:\n  owner:\n    boxs: 3\n", "node.yaml:3: quotas.owner.boxs: no such key; did you mean boxes?"),
        ("quota: {}\n", "node.yaml:1: quota: no such key; did you mean quotas?"),
        ("quotas: {node: {boxes: many}}\n", "node.yaml:1: quotas.node.boxes: expected"),
        ("quotas: {node: {memory: lots}}\n", "node.yaml:1: quotas.node.memory: a size is digits"),
        ("quotas: {node: {pids: -1}}\n", "node.yaml:1: quotas.node.pids: zero or more; got -1"),
        ("quotas:\n  owners:\n    al:\n      cpu: 1\n", "node.yaml:4: quotas.owners.al.cpu: no such key; did you"),
        ("limits: {memory_overcommit: 0}\n", "node.yaml:1: limits.memory_overcommit: above zero"),
        ("starts: {least: 5, most: 2}\n", "node.yaml:1: starts.least: at most starts.most, 2; got 5"),
        ("pools:\n  a:\n    config: {}\n", "node.yaml:2: pools.a: object missing required field `size`"),
        ("pools: {a: {size: 2, config: {memry: 1g}}}\n", "config.memry: a sandbox has no such setting; did you"),
        ("pools: {a: {size: 2, config: {name: x}}}\n", "config.name: belongs to one box"),
        ("pools: {a: {size: 2, config: {memory: 1k}}}\n", "config.memory: 1k is under the 6 MB"),
        ("pools: {a: {size: 5000}}\n", "pools.a: size: from 0 to 1000; got 5000"),
        ("pools: {a/b: {size: 1}}\n", "a pool's name is"),
        ("limits: {}\nlimits: {}\n", "node.yaml:2: limits stands here twice"),
        ("[1, 2]\n", "node.yaml:1: a mapping of quotas, limits, starts, pools is wanted"),
        ("quotas: {\n", "not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line_and_the_cure(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        node_config.parse(text)
    assert said in error.value.message
