"""A model for a sandbox that was made by hand: any server that speaks OpenAI's dialects.

In: a sandbox, the server's URL, its key. Out: programs in the sandbox reach that server at $OPENAI_BASE_URL and
$ANTHROPIC_BASE_URL, still without a network, and never see the key. Leaves the answering to the node's gateway; the
sandboxes of a run are routed by the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from rockroll.sandbox.node_client import connect_here

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox


async def use_model(
    sandbox: Sandbox | str,
    url: str | None,
    *,
    key: str = "",
    speaks: Collection[str] = (),
    budget: Mapping[str, float] | None = None,
) -> None:
    """From now on the model calls of this sandbox of this host go to the server at `url`; None: they are refused.

    sandbox: it, its id or its name. url: as OPENAI_BASE_URL would say it. key: sent to the server in place of whatever
    the sandbox sends. speaks: what the server speaks beside chat and completions: "responses", "messages"; a dialect
    that it does not is asked as a chat. budget: calls, concurrent, body_bytes, seconds (docs/model-service.md).
    It holds until the next `use_model`, over a restart of the sandbox, and ends with the node.
    UsageError for a URL, dialect or budget that cannot be; SandboxNotFound for a sandbox that is not running here.
    """
    node = await connect_here()
    id = sandbox if isinstance(sandbox, str) else sandbox.id
    route = {"id": id, "upstream": url, "key": key, "speaks": list(speaks), "budget": dict(budget or {})}
    await node.call("model.route", route)
