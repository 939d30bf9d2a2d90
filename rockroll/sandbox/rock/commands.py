"""Commands of ROCK's SDK: create_session, run_in_session, close_session, execute.

In: lines for a session, programs. Out: what they printed and their exit codes, which are the kernel's and the shell's
own: no output is searched for them. Leaves the running to the node.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request

from rockroll.errors import SandboxLost, SessionError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http.answers import unless_gone
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.rock import forms
from rockroll.sandbox.rock.forms import COMMAND_ERROR, Answer, CommandFailed, Envelope, success
from rockroll.sandbox.rock.link import as_bytes, node_of
from rockroll.sandbox.wire import Observation, SandboxInfo, SessionInfo

router = APIRouter(route_class=Envelope, default_response_class=Answer)

OUTPUT = 16 << 20
"""Bytes kept of what one command prints."""
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Colours, cursor movements and titles: ROCK takes them out of what a session prints."""
TIMED_OUT = -1
"""What ROCK calls the exit code of a program that did not end by itself."""


@router.post("/create_session")
async def create_session(form: forms.NewSession, request: Request) -> Answer:
    """A session that is open already is no error where nothing of it would be different."""
    if form.remote_user not in (None, "root"):
        raise UsageError(
            f"remote_user: a session runs as the user of the image; got {form.remote_user!r}; use `su` in the command"
        )
    node, asked = node_of(request), bool(form.env or form.startup_source)
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
    node = node_of(request)
    if form.session not in (known := await _sessions(node, form.sandbox_id)):
        state = (await node.call("sandbox.get", wire.Ref(id=form.sandbox_id), type=SandboxInfo)).state
        if state in ("stopped", "exited"):
            raise SandboxLost(f"sandbox {form.sandbox_id!r} is {state}; `restart` brings it back, with its files")
        there = ", ".join(known) or "none"
        raise SessionError(f"no session {form.session!r}: create_session opens one; open are: {there}")
    running = _run(node, form.sandbox_id, form.session, form.command, form.timeout)
    done = _survived(await unless_gone(request, running), form.sandbox_id)
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
    node = node_of(request)
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
    running = node_of(request).call("execute", body, type=Observation)
    done = _survived(await unless_gone(request, running), form.sandbox_id)
    why = _why(done, form.timeout)
    stderr = _text(done.stderr)
    if why:
        stderr = "\n".join([*([stderr.removesuffix("\n")] if stderr else []), f"rockroll: {why}\n"])
    code = TIMED_OUT if done.exit_code is None else done.exit_code
    seen = {"stdout": _text(done.stdout), "stderr": stderr, "exit_code": code, "failure_reason": why}
    if form.check and code != 0:
        told = why or f"exit code {code}"
        prefix = f"{form.error_msg}: " if form.error_msg else ""
        raise CommandFailed(f"{prefix}{told} of the program {argv!r}", **{**seen, "failure_reason": told})
    return success(seen)


async def _sessions(node: NodeLink, name: str) -> list[str]:
    return [each.session for each in await node.call("session.list", wire.Ref(id=name), type=list[SessionInfo])]


async def _run(node: NodeLink, name: str, session: str, command: str, timeout: float | None) -> Observation:
    # One stream keeps the order of writing, as ROCK's terminal does. On the first line, so that no line number moves.
    line = b"exec 2>&1; " + as_bytes(command, "command")
    body = wire.Run(id=name, command=line, session=session, timeout=timeout, max_output=OUTPUT)
    return await node.call("session.run", body, type=Observation)


def _survived(done: Observation, name: str) -> Observation:
    """SandboxLost where the box died under the command."""
    if done.outcome == "lost":
        raise SandboxLost(f"sandbox {name!r} died meanwhile ({done.cause}); `restart` brings it back, with its files")
    return done


def _why(done: Observation, timeout: float | None) -> str:
    """Why a command is not simply over; "" where it is."""
    ends = {
        "timeout": f"timeout after {timeout or 0:g} s, and everything it had started was killed",
        "oom": "killed for memory",
        "killed": "killed by a signal",
    }
    told = [ends[done.outcome]] if done.outcome in ends else []
    if done.truncated_bytes:
        told.append(f"{done.truncated_bytes} bytes of output over {OUTPUT} were left out")
    return "; ".join(told)


def _shown(done: Observation) -> str:
    """What a session printed, as ROCK shows it: without escapes, and without white space around it."""
    return ESCAPES.sub("", _text(done.stdout + done.stderr)).strip()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
