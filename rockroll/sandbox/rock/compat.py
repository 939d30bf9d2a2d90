"""`/apis/envs/sandbox/v1`: the endpoints that ROCK's SDK (rl-rock 1.11) calls, on this node.

In: that SDK's requests, unchanged. Out: its answers, from boxes of the node. Leaves their shape to forms.py, life and
description of a box to boxes.py, and who may come in to http/gate.py. docs/rock-compat.md says where the two differ.

    create_app(NodeLink(), token=token, routers=[compat.router])
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Coroutine
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, File, Form, Request, UploadFile

from rockroll import rpc
from rockroll.errors import FileError, PeerLost, RockrollError, SandboxLost, SandboxNotFound, SessionError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client_files import PART, Files
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.node_client import connect_node
from rockroll.sandbox.rock import forms
from rockroll.sandbox.rock.boxes import LABEL, PATIENCE_S, START_S, Boxes, described, find, not_up
from rockroll.sandbox.rock.forms import COMMAND_ERROR, Answer, CommandFailed, Envelope, success
from rockroll.sandbox.wire import Observation, SandboxInfo, SessionInfo

T = TypeVar("T")
OUTPUT = 16 << 20
"""Bytes kept of what one command prints."""
READ = 64 << 20
"""Most bytes of a file that one answer carries: all of it is held as text."""
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Colours, cursor movements and titles: ROCK takes them out of what a session prints."""
TIMED_OUT = -1
"""What ROCK calls the exit code of a program that did not end by itself."""

router = APIRouter(prefix="/apis/envs/sandbox/v1", tags=["ROCK"], route_class=Envelope, default_response_class=Answer)


# ---- life ------------------------------------------------------------------------------------------------------------


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
    starting = _boxes(request).start(form, request.headers, patience_s=patience)
    name = await _while_there(request, starting)
    where = {"sandbox_id": name, "host_name": os.uname().nodename, "host_ip": _host_ip(request)}
    return success({**where, "cpus": form.cpus, "memory": form.memory, "disk": form.disk})


@router.get("/get_status")
async def get_status(request: Request, sandbox_id: str, include_all_states: bool = False) -> Answer:
    return success(await _status(request, sandbox_id, include_all_states))


async def _status(request: Request, name: str, all_states: bool) -> dict[str, Any]:
    boxes = _boxes(request)
    failed = None if await boxes.pending(name, PATIENCE_S) else boxes.failure(name)
    if failed or await boxes.pending(name, 0):
        return not_up(name, os.uname().nodename, _host_ip(request), failed)
    info = await find(_node(request), name)
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
    await _boxes(request).give_up(form.sandbox_id)
    ref = wire.Ref(id=form.sandbox_id)
    try:
        info = await _node(request).call("sandbox.get", ref, type=SandboxInfo)
        if info.state in ("running", "paused", "starting"):
            await _node(request).call("sandbox.stop", ref, type=SandboxInfo)
        if info.labels.get(f"{LABEL}auto_delete_seconds") == "0":
            await _node(request).call("sandbox.delete", ref, type=SandboxInfo)
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
    node, ref = _node(request), wire.Ref(id=name)
    info = await node.call("sandbox.get", ref, type=SandboxInfo)
    if info.state not in ("stopped", "exited"):
        raise UsageError(f"sandbox {name!r} is {info.state}; restart is for one that is stopped: stop it first")
    await node.call("sandbox.start", ref, type=SandboxInfo)
    return success({"sandbox_id": name, "host_name": info.node, "host_ip": _host_ip(request)})


@router.post("/delete")
async def delete(form: forms.Named, request: Request) -> Answer:
    """Removes it, running or not, with all its files. One that is gone already is no error."""
    await _boxes(request).give_up(form.sandbox_id)
    try:
        await _node(request).call("sandbox.delete", wire.Ref(id=form.sandbox_id), type=SandboxInfo)
    except SandboxNotFound:
        pass
    return success(f"{form.sandbox_id} deleted")


# ---- sessions and programs -------------------------------------------------------------------------------------------


@router.post("/create_session")
async def create_session(form: forms.NewSession, request: Request) -> Answer:
    """A session that is open already is no error where nothing of it would be different."""
    if form.remote_user not in (None, "root"):
        raise UsageError(
            f"remote_user: a session runs as the user of the image; got {form.remote_user!r}; use `su` in the command"
        )
    node, asked = _node(request), bool(form.env or form.startup_source)
    spec = wire.SessionSpec(id=form.sandbox_id, session=form.session, env=form.env or {})
    try:
        await node.call("session.create", spec)
    except SessionError:
        if asked or form.session not in await _sessions(node, form.sandbox_id):
            raise
        return success({"output": "", "session_type": "bash"})
    output = ""
    if form.startup_source:
        lines = "\n".join(f"source {path}" for path in form.startup_source)
        done = await _run(node, form.sandbox_id, form.session, lines, form.startup_timeout)
        output = _shown(done)
        if done.outcome != "ok":
            await node.call("session.close", spec)
            raise SessionError(
                f"startup_source: {', '.join(form.startup_source)} did not come to an end ({done.outcome}), and session"
                f" {form.session!r} was closed; it printed: {output[-2000:]!r}"
            )
    return success({"output": output, "session_type": "bash"})


@router.post("/run_in_session")
async def run_in_session(form: forms.Action, request: Request) -> Answer:
    if form.is_interactive_command or form.is_interactive_quit:
        raise UsageError("is_interactive_command: a session has no terminal here; use `rockroll debug ID`")
    node = _node(request)
    if form.session not in (known := await _sessions(node, form.sandbox_id)):
        there = ", ".join(known) or "none"
        raise SessionError(f"no session {form.session!r}: create_session opens one; open are: {there}")
    running = _run(node, form.sandbox_id, form.session, form.command, form.timeout)
    done = await _while_there(request, running)
    why = _why(done, form.timeout)
    seen = {"output": _shown(done), "exit_code": done.exit_code, "failure_reason": why, "expect_string": ""}
    if done.exit_code is None or (form.check == "raise" and done.exit_code != 0):
        told = why or f"exit code {done.exit_code}"
        prefix = f"{form.error_msg}: " if form.error_msg else ""
        raise CommandFailed(
            f"{prefix}{told} of the command {form.command[:500]!r}; it printed: {seen['output'][-2000:]!r}",
            **{**seen, "session_type": "bash", "code": COMMAND_ERROR, "failure_reason": told},
        )
    if form.check == "ignore":
        seen["exit_code"] = None
    return success({"session_type": "bash", **seen})


@router.post("/close_session")
async def close_session(form: forms.OldSession, request: Request) -> Answer:
    node = _node(request)
    if form.session in await _sessions(node, form.sandbox_id):
        await node.call("session.close", wire.SessionSpec(id=form.sandbox_id, session=form.session))
    return success({"session_type": "bash"})


@router.post("/execute")
async def execute(form: forms.Program, request: Request) -> Answer:
    argv = [form.command] if isinstance(form.command, str) else form.command
    if form.shell:
        argv = ["/bin/sh", "-c", *argv]
    if not argv:
        raise UsageError("command: a program and its arguments, as in ['ls', '/']; got an empty list")
    body = wire.Execute(
        id=form.sandbox_id, argv=argv, timeout=form.timeout, env=form.env or {}, cwd=form.cwd, max_output=OUTPUT
    )
    done = await _while_there(request, _node(request).call("execute", body, type=Observation))
    why = _why(done, form.timeout)
    stderr = _text(done.stderr)
    if why:
        stderr = "\n".join([*([stderr.removesuffix("\n")] if stderr else []), f"rockroll: {why}\n"])
    code = TIMED_OUT if done.exit_code is None else done.exit_code
    seen = {"stdout": _text(done.stdout), "stderr": stderr, "exit_code": code, "failure_reason": why}
    if done.outcome == "lost" or (form.check and code != 0):
        told = why or f"exit code {code}"
        prefix = f"{form.error_msg}: " if form.error_msg else ""
        raise CommandFailed(f"{prefix}{told} of the program {argv!r}", **{**seen, "failure_reason": told})
    return success(seen)


# ---- files -----------------------------------------------------------------------------------------------------------


@router.post("/read_file")
async def read_file(form: forms.Read, request: Request) -> Answer:
    box = _BoxFiles(form.sandbox_id)
    size = (await box.stat(form.path)).size
    if size > READ:
        raise FileError(
            f"{form.path} has {size} bytes and read_file carries at most {READ}, as text; use `rockroll sandbox cp`, or"
            " read it in parts with execute"
        )
    data = await box.read_file(form.path, limit=READ)
    encoding = form.encoding or "utf-8"
    try:
        return success({"content": data.decode(encoding, form.errors or "strict")})
    except LookupError as error:
        raise UsageError(f"{error}; encoding and errors are those of Python's bytes.decode") from None
    except UnicodeDecodeError as error:
        raise FileError(
            f'{form.path} is not {encoding} text ({error.reason} at byte {error.start}); encoding="latin-1" gives every'
            " byte as one character"
        ) from None


@router.post("/write_file")
async def write_file(form: forms.Write, request: Request) -> Answer:
    """A file that is there keeps its mode."""
    box = _BoxFiles(form.sandbox_id)
    there = await box.stat(form.path) if await box.exists(form.path) else None
    data = _bytes(form.content, "content")
    await box.write_file(form.path, data, mode=there.mode & 0o777 if there else 0o644)
    return success({"success": True, "message": ""})


@router.post("/upload")
async def upload(
    request: Request,
    file: Annotated[UploadFile, File()],
    target_path: Annotated[str, Form()],
    sandbox_id: Annotated[str, Form(min_length=1)],
) -> Answer:
    """Exact bytes. The file appears under its name when it is whole."""
    box, target = _BoxFiles(sandbox_id), PurePosixPath(target_path)
    if await box.exists(target_path) and (await box.stat(target_path)).kind == "dir":
        raise FileError(f"{target_path} is a folder; target_path is the path of the file itself")
    beside = str(target.with_name(f".rockroll-{os.urandom(6).hex()}")) if target.name else target_path
    try:
        await box.write_file(beside, await file.read(PART))
        while part := await file.read(PART):
            await box.write_file(beside, part, append=True)
        await box.move(beside, target_path)
    except BaseException:
        with contextlib.suppress(RockrollError):
            await box.remove(beside)
        raise
    return success({"success": True, "message": "", "file_name": target.name})


# ---- what there is none of -------------------------------------------------------------------------------------------


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


# ---- the node --------------------------------------------------------------------------------------------------------


class _BoxFiles(Files):
    """The files of one box, on the server's link to the node."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def id(self) -> str:
        return self._name

    async def _connected(self) -> rpc.Client:
        return await connect_node()

    async def _call(self, method: str, body: wire.Struct, type: type[T] = object, *, parts: Any = None) -> T:
        try:
            return await (await connect_node()).call(method, body, type=type, parts=parts)
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error


def _node(request: Request) -> NodeLink:
    return request.app.state.node


def _boxes(request: Request) -> Boxes:
    state = request.app.state
    if not hasattr(state, "rock"):
        state.rock = Boxes(state.node)
    return state.rock


def _host_ip(request: Request) -> str:
    """The address of this host that the caller came to."""
    return (request.scope.get("server") or ("127.0.0.1", 0))[0]


async def _sessions(node: NodeLink, name: str) -> list[str]:
    return [each.session for each in await node.call("session.list", wire.Ref(id=name), type=list[SessionInfo])]


async def _run(node: NodeLink, name: str, session: str, command: str, timeout: float | None) -> Observation:
    # One stream keeps the order of writing, as ROCK's terminal does. On the first line, so that no line number moves.
    line = b"exec 2>&1; " + _bytes(command, "command")
    body = wire.Run(id=name, command=line, session=session, timeout=timeout, max_output=OUTPUT)
    return await node.call("session.run", body, type=Observation)


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Its result; where the client hangs up first the work is cancelled, and with it the command in the box."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise UsageError("the client hung up")  # nobody reads it
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


def _why(done: Observation, timeout: float | None) -> str:
    """Why a command is not simply over; "" where it is."""
    ends = {
        "timeout": f"timeout after {timeout or 0:g} s, and everything it had started was killed",
        "oom": "killed for memory",
        "killed": "killed by a signal",
        "lost": f"the sandbox died meanwhile ({done.cause})",
    }
    told = [ends[done.outcome]] if done.outcome in ends else []
    if done.truncated_bytes:
        told.append(f"{done.truncated_bytes} bytes of output over {OUTPUT} were left out")
    return "; ".join(told)


def _shown(done: Observation) -> str:
    """What a session printed, as ROCK shows it: without escapes, and without white space around it."""
    return ESCAPES.sub("", _text(done.stdout + done.stderr)).strip()


def _bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what}: text that UTF-8 can carry ({error.reason} at character {error.start})") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
