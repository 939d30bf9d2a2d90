"""How a sandbox of ROCK's begins, ends, and is asked after: start, get_status, is_alive, stop, restart, delete.

In: the SDK's requests. Out: its answers. Leaves the start itself and its description to boxes.py.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request

from rockroll.errors import SandboxNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http.answers import unless_gone
from rockroll.sandbox.rock import forms
from rockroll.sandbox.rock.boxes import LABEL, PATIENCE_S, START_S, Boxes, described, find, not_up
from rockroll.sandbox.rock.forms import Answer, Envelope, success
from rockroll.sandbox.rock.link import node_of
from rockroll.sandbox.wire import SandboxInfo

router = APIRouter(route_class=Envelope, default_response_class=Answer)


@router.post("/start_async")
async def start_async(form: forms.Start, request: Request) -> Answer:
    """Begins a sandbox, and waits a little: most are up before the SDK would ask again."""
    patience = min(PATIENCE_S, form.startup_timeout or START_S)
    return await _start(form, request, patience)


@router.post("/start")
async def start(form: forms.Start, request: Request) -> Answer:
    """The same, until it is up."""
    return await _start(form, request, (form.startup_timeout or START_S) + 1)


async def _start(form: forms.Start, request: Request, patience: float) -> Answer:
    starting = boxes_of(request).start(form, request.headers, patience_s=patience)
    name = await unless_gone(request, starting)
    where = {"sandbox_id": name, "host_name": os.uname().nodename, "host_ip": _host_ip(request)}
    return success({**where, "cpus": form.cpus, "memory": form.memory, "disk": form.disk})


@router.get("/get_status")
async def get_status(request: Request, sandbox_id: str, include_all_states: bool = False) -> Answer:
    return success(await _status(request, sandbox_id, include_all_states))


async def _status(request: Request, name: str, all_states: bool) -> dict[str, Any]:
    boxes = boxes_of(request)
    failed = None if await boxes.pending(name, PATIENCE_S) else boxes.failure(name)
    if failed or await boxes.pending(name, 0):
        return not_up(name, os.uname().nodename, _host_ip(request), failed)
    info = await find(node_of(request), name)
    if name != info.id:
        name = info.name
    found = described(info, name, _host_ip(request))
    if not all_states and found["state"] not in ("pending", "running"):
        raise SandboxNotFound(
            f"sandbox {name!r} is {info.state}; get_status tells of it with include_all_states=true, `restart` brings"
            " a stopped one back"
        )
    return found


@router.get("/is_alive")
async def is_alive(request: Request, sandbox_id: str) -> Answer:
    try:
        found = await _status(request, sandbox_id, all_states=True)
    except SandboxNotFound as error:
        return success({"is_alive": False, "message": error.message})
    return success({"is_alive": found["is_alive"], "message": found["host_name"]})


@router.post("/stop")
async def stop(form: forms.Named, request: Request) -> Answer:
    """Ends its processes; its files stay for `restart`, unless it was started with auto_delete_seconds=0. One that is
    stopped or gone already is no error, as with ROCK: the SDK stops in every `finally`."""
    await boxes_of(request).give_up(form.sandbox_id)
    ref = wire.Ref(id=form.sandbox_id)
    try:
        info = await node_of(request).call("sandbox.get", ref, type=SandboxInfo)
        if info.state in ("running", "paused", "starting"):
            await node_of(request).call("sandbox.stop", ref, type=SandboxInfo)
        if info.labels.get(f"{LABEL}auto_delete_seconds") == "0":
            await node_of(request).call("sandbox.delete", ref, type=SandboxInfo)
    except SandboxNotFound:
        pass
    return success(f"{form.sandbox_id} stopped")


@router.post("/restart")
async def restart(form: forms.Named, request: Request) -> Answer:
    return await _restart(form.sandbox_id, request)


@router.post("/sandboxes/{sandbox_id}/restart")
async def restart_by_path(sandbox_id: str, request: Request) -> Answer:
    return await _restart(sandbox_id, request)


async def _restart(name: str, request: Request) -> Answer:
    node, ref = node_of(request), wire.Ref(id=name)
    info = await node.call("sandbox.get", ref, type=SandboxInfo)
    if info.state not in ("stopped", "exited"):
        raise UsageError(f"sandbox {name!r} is {info.state}; restart is for one that is stopped: stop it first")
    await node.call("sandbox.start", ref, type=SandboxInfo)
    return success({"sandbox_id": name, "host_name": info.node, "host_ip": _host_ip(request)})


@router.post("/delete")
async def delete(form: forms.Named, request: Request) -> Answer:
    """Removes it, running or not, with all its files. One that is gone already is no error."""
    await boxes_of(request).give_up(form.sandbox_id)
    try:
        await node_of(request).call("sandbox.delete", wire.Ref(id=form.sandbox_id), type=SandboxInfo)
    except SandboxNotFound:
        pass
    return success(f"{form.sandbox_id} deleted")


def boxes_of(request: Request) -> Boxes:
    state = request.app.state
    if not hasattr(state, "rock"):
        state.rock = Boxes(state.node)
    return state.rock


def _host_ip(request: Request) -> str:
    """The address of this host that the caller came to."""
    return (request.scope.get("server") or ("127.0.0.1", 0))[0]
