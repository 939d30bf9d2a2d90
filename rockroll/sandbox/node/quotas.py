"""Whether one more box is within what its owner, and the node, may have.

In: what there is, what is asked for, the quotas of node.yaml. Out: nothing, or a sentence. Pure. Leaves the host's own
limits to limits.py, and how fast boxes are made to admission.py.

What counts is what a box may use at most, running or stopped: a stopped box can be started again at any time.
"""

from __future__ import annotations

from rockroll import units
from rockroll.sandbox.boxes.grant import Granted
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node.node_config import Quota, Quotas

OWNER_LABEL = "owner"
"""The label that says whose a box is, when that is not the process that made it."""


def owner_of(config: SandboxConfig, detached: bool, pid: int | None, peer: str = "") -> str:
    """Who a box is counted for: its label, else the process that made it, by its pid or, from another host, by its
    connection; what outlives that is counted as one."""
    if label := config.labels.get(OWNER_LABEL):
        return label
    if detached:
        return "detached"
    return client_name(peer) if pid is None else f"process {pid}"


def client_name(peer: str) -> str:
    """A client of a cluster, as the hub and the nodes count it."""
    return f"client {peer}" if peer else "detached"


def refusal(quotas: Quotas, owner: str, mine: Granted, all_: Granted, more: Granted) -> str | None:
    """Why `more` cannot be. mine, all_: what the owner and the node have now."""
    own = quotas.owners.get(owner, quotas.owner)
    key = f"quotas.owners.{owner}" if owner in quotas.owners else "quotas.owner"
    return _over(own, key, f"owner {owner!r}", mine, more) or _over(quotas.node, "quotas.node", "this node", all_, more)


def _over(quota: Quota, key: str, who: str, used: Granted, more: Granted) -> str | None:
    most = {"boxes": quota.boxes, "cpus": quota.cpus, "memory": quota.memory_bytes, "pids": quota.pids}
    for field, limit in most.items():
        now, wanted = getattr(used, field), getattr(more, field)
        # A hair over: 0.1 added ten times is not 1.
        if limit is not None and now + wanted > limit * (1 + 1e-9):
            cure = "delete some" if field == "boxes" else f"ask for less {field}, delete some boxes"
            return (
                f"{key}.{field} is {_show(field, limit)}; {who} has {_show(field, now)} and asks for"
                f" {_show(field, wanted)} more: {cure}, or raise it in node.yaml"
            )
    return None


def _show(field: str, amount: float) -> str:
    return units.show_size(amount) if field == "memory" else f"{amount:g}"
