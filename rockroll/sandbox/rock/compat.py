"""`/apis/envs/sandbox/v1`: all that ROCK's SDK (rl-rock 1.11) calls, on this node.

In: that SDK's requests, unchanged. Out: its answers, from boxes of the node. Leaves the endpoints to life.py,
commands.py and files.py, their shape to forms.py, and who may come in to http/gate.py. docs/rock-compat.md says where
the two differ.

    create_app(NodeLink(), token=token, routers=[compat.router])
"""

from __future__ import annotations

from fastapi import APIRouter

from rockroll.errors import UsageError
from rockroll.sandbox.rock import commands, files, life
from rockroll.sandbox.rock.forms import Answer, Envelope, success

router = APIRouter(prefix="/apis/envs/sandbox/v1", tags=["ROCK"], route_class=Envelope, default_response_class=Answer)
for part in (life, commands, files):
    router.include_router(part.router)


@router.get("/get_token")
async def get_token() -> Answer:
    """An answer without a bucket: the SDK then sends files of any size straight to `upload`."""
    return success({"Expiration": None})


@router.post("/commit")
@router.get("/commit/{sandbox_id}")
async def commit() -> Answer:
    raise UsageError(
        "no image is pushed to a registry from here; keep a sandbox's files with `rockroll sandbox snapshot`"
    )


@router.post("/sandboxes/{sandbox_id}/archive")
async def archive(sandbox_id: str) -> Answer:
    raise UsageError("nothing is archived here; keep a sandbox's files with `rockroll sandbox snapshot`")
