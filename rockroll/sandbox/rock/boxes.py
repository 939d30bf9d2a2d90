"""ROCK's sandboxes as boxes of the node: how one is asked for, comes up, and is described.

In: the SDK's start form and headers. Out: detached boxes whose name is ROCK's sandbox id; get_status's answer. Leaves
commands and files to compat.py.

    start ──► pending ──► running ──stop──► stopped ──restart──► running
                 └─ failed (told by get_status)   └── delete, or idle for auto_clear_seconds ──► deleted
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rockroll.errors import (
    HostError,
    ImageMissing,
    LimitNotEnforced,
    RockrollError,
    SandboxLost,
    SandboxNotFound,
    UsageError,
)
from rockroll.sandbox import wire
from rockroll.sandbox.client import finish
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container.podman import PodmanService
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.rock.forms import Start
from rockroll.sandbox.wire import SandboxInfo

PATIENCE_S = 30.0
"""How long start_async and get_status wait for a box that is coming up before they answer "pending". A box takes a
tenth of a second; the SDK would look again only after three."""
START_S = 180.0
"""Where a start names no startup_timeout: the SDK's own."""
FAILURES_KEPT = 1000
LABEL = "rock."
"""Labels that hold what ROCK tells of a sandbox and the node does not know."""
STATES = {"starting": "pending", "running": "running", "paused": "running", "stopped": "stopped", "exited": "stopped"}


class Boxes:
    """Those that are coming up, and why some did not; all else is asked of the node."""

    def __init__(self, node: NodeLink) -> None:
        self._node = node
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._failed: OrderedDict[str, RockrollError] = OrderedDict()
        self._pulling: dict[str, asyncio.Task[None]] = {}

    async def start(self, form: Start, headers: Mapping[str, str], *, patience_s: float) -> str:
        """The id of a box that is up, or that is still coming up after `patience_s`. Raises what kept it from it."""
        name = form.sandbox_id or secrets.token_hex(16)
        config = config_of(form, headers, name)
        if name in self._starting:
            raise UsageError(f"sandbox {name!r} is being started already; use another sandbox_id")
        self._failed.pop(name, None)
        task = self._starting[name] = asyncio.create_task(self._bring_up(config, form))
        task.add_done_callback(lambda done: self._over(name, done))
        try:
            await asyncio.wait({task}, timeout=patience_s)
        except asyncio.CancelledError:
            task.cancel()  # the client is gone before it has heard the id
            raise
        if task.cancelled():
            raise SandboxLost(f"sandbox {name!r} was stopped while it was coming up")
        if task.done():
            self._failed.pop(name, None)  # told here
            task.result()
        return name

    async def pending(self, name: str, patience_s: float) -> bool:
        """Whether it is still coming up after so long."""
        if task := self._starting.get(name):
            await asyncio.wait({task}, timeout=patience_s)
        return name in self._starting

    def failure(self, name: str) -> RockrollError | None:
        """Why it did not come up, where that is so."""
        return self._failed.get(name)

    async def give_up(self, name: str) -> None:
        """Ends a start that is under way."""
        if task := self._starting.get(name):
            task.cancel()
            await asyncio.wait({task})

    def _over(self, name: str, done: asyncio.Task[None]) -> None:
        del self._starting[name]
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._failed[name] = error if isinstance(error, RockrollError) else HostError(f"{error!r}")
            while len(self._failed) > FAILURES_KEPT:
                self._failed.popitem(last=False)

    async def _bring_up(self, config: SandboxConfig, form: Start) -> None:
        limit = form.startup_timeout or START_S
        try:
            async with asyncio.timeout(limit):
                if form.pull == "always":
                    config = await self._pull(config, form)
                try:
                    await self._create(config)
                except ImageMissing:
                    if form.pull == "never" or config.image_name.startswith("localhost/"):
                        raise
                    await self._create(await self._pull(config, form))
        except TimeoutError:
            raise HostError(f"the sandbox was not up after {limit:g} s (startup_timeout); it was given up") from None

    async def _create(self, config: SandboxConfig) -> None:
        body = wire.Create(config=dataclasses.asdict(config), owner="detached")
        try:
            await self._node.call("sandbox.create", body, type=SandboxInfo)
        except LimitNotEnforced as error:
            # The SDK asks for 50G unless told not to: most callers never chose a limit that this host lacks.
            if config.disk is None or "disk" not in error.message:
                raise
            labels = {key: value for key, value in config.labels.items() if key != f"{LABEL}disk"}
            await self._create(dataclasses.replace(config, disk=None, labels=labels))
        except asyncio.CancelledError:
            await finish(self._undo(config))
            raise

    async def _undo(self, config: SandboxConfig) -> None:
        """Returns when nothing is left of it: the node removes a box whose making is cancelled, but tells nobody when
        it has. The label tells ours from one that had this name before."""
        ref = wire.Ref(id=config.name or "")
        with contextlib.suppress(SandboxNotFound):
            info = await self._node.call("sandbox.get", ref, type=SandboxInfo)
            if info.labels.get(f"{LABEL}start") == config.labels[f"{LABEL}start"]:
                await self._node.call("sandbox.delete", wire.Ref(id=info.id), type=SandboxInfo)

    async def _pull(self, config: SandboxConfig, form: Start) -> SandboxConfig:
        """Once for all who wait for it; the config with the name that the image has then."""
        image = whole_name(config.image_name)
        if image not in self._pulling:
            task = self._pulling[image] = asyncio.create_task(pull(image, form))
            task.add_done_callback(lambda done: self._pulled(image, done))
        await asyncio.shield(self._pulling[image])
        return dataclasses.replace(config, image=image)

    def _pulled(self, image: str, done: asyncio.Task[None]) -> None:
        del self._pulling[image]
        if not done.cancelled():
            done.exception()  # those who waited were told; perhaps nobody waits any more


def whole_name(image: str) -> str:
    """With its registry: Docker, and so ROCK, takes a name without one for an image of docker.io."""
    first, slash, _ = image.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


async def pull(image: str, form: Start) -> None:
    """Fetches an image into the store that boxes use. ImageMissing with the registry's words."""
    login = None
    if form.registry_username and form.registry_password:
        login = (form.registry_username, form.registry_password)
    async with PodmanService() as podman:
        await podman.image_pull(image, form.startup_timeout or START_S, login=login)


def config_of(form: Start, headers: Mapping[str, str], name: str) -> SandboxConfig:
    """What the node is asked for. UsageError names what this node cannot be."""
    for refused, why in (
        (form.image_os.casefold() != "linux", f'image_os: "linux" only; got {form.image_os!r}'),
        (form.num_gpus, f"num_gpus: sandboxes here have no GPU; got {form.num_gpus}; leave it out"),
        (form.accelerator_type, f"accelerator_type: sandboxes here have no GPU; got {form.accelerator_type!r}"),
        (form.use_kata_runtime, "use_kata_runtime: there is no Kata runtime here; leave it out"),
        (
            form.auto_archive_seconds is not None,
            "auto_archive_seconds: nothing is archived here; keep files with `rockroll sandbox snapshot`",
        ),
    ):
        if refused:
            raise UsageError(why)
    facts = {
        "user_id": headers.get("x-user-id"),
        "experiment_id": headers.get("x-experiment-id"),
        "namespace": headers.get("x-namespace"),
        "cluster": headers.get("x-cluster"),
        "cpus": f"{form.cpus:g}",
        "memory": form.memory,
        "disk": form.disk,
        "auto_delete_seconds": None if form.auto_delete_seconds is None else str(form.auto_delete_seconds),
        "start": secrets.token_hex(6),
    }
    chosen: dict[str, Any] = {}
    if network := headers.get("x-rockroll-network"):
        chosen["network"] = network
    if pids := headers.get("x-rockroll-pids"):
        if not pids.isdecimal():
            raise UsageError(f"X-Rockroll-Pids: a number of processes, as in 512; got {pids!r}")
        chosen["pids"] = int(pids)
    try:
        return SandboxConfig(
            image=form.image.strip(),
            name=name,
            cpus=form.limit_cpus or form.cpus,
            memory=_size(form.memory),
            disk=None if form.disk is None else _size(form.disk),
            idle_ttl=max(1, form.auto_clear_time_minutes) * 60,
            labels={LABEL + key: value for key, value in facts.items() if value is not None},
            **chosen,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _size(text: str) -> str:
    """As units.size reads it: ROCK also takes 8Gi."""
    return text.strip().lower().removesuffix("i")


async def find(node: NodeLink, name: str) -> SandboxInfo:
    """A box, also one that is gone. SandboxNotFound where none of those that the node remembers had that name."""
    try:
        return await node.call("sandbox.get", wire.Ref(id=name), type=SandboxInfo)
    except SandboxNotFound:
        every = await node.call("sandbox.list", wire.List(all=True), type=list[SandboxInfo])
        gone = [info for info in every if name in (info.id, info.name)]
        if not gone:
            raise
        return max(gone, key=lambda info: info.created)


def described(info: SandboxInfo, name: str, host_ip: str) -> dict[str, Any]:
    """get_status's result. name: as the caller calls the box."""
    alive, labels = info.state == "running", info.labels
    cause = f" ({info.cause})" if info.cause else ""
    return {
        "sandbox_id": name,
        "status": {
            "image_pull": {"status": "success", "message": f"{info.image} is in the local store"},
            "docker_run": {"status": "success", "message": f"the sandbox is {info.state}{cause}"},
        },
        "state": STATES.get(info.state, "deleted"),
        "is_alive": alive,
        "host_name": info.node,
        "host_ip": host_ip,
        "port_mapping": {},
        "image": info.image,
        "gateway_version": f"rockroll-{metadata.version('rockroll')}",
        "swe_rex_version": None,
        "user_id": labels.get(f"{LABEL}user_id", "default"),
        "experiment_id": labels.get(f"{LABEL}experiment_id", "default"),
        "namespace": labels.get(f"{LABEL}namespace", "default"),
        "cpus": float(cpus) if (cpus := labels.get(f"{LABEL}cpus")) else None,
        "memory": labels.get(f"{LABEL}memory"),
        "disk": labels.get(f"{LABEL}disk"),
        "create_time": _time(info.created),
        "start_time": _time(info.created),
        "stop_time": _time(info.ended),
        "delete_time": _time(info.ended) if info.state == "gone" else None,
        "state_history": [],
    }


def not_up(name: str, host_name: str, host_ip: str, error: RockrollError | None) -> dict[str, Any]:
    """get_status's result for a box that is coming up, or that did not for that reason."""
    phase, message = ("failed", error.message) if error else ("running", "the sandbox is coming up")
    at = "image_pull" if isinstance(error, ImageMissing) else "docker_run"
    return {
        "sandbox_id": name,
        "status": {at: {"status": phase, "message": message}},
        "state": "stopped" if error else "pending",
        "is_alive": False,
        "host_name": host_name,
        "host_ip": host_ip,
        "port_mapping": {},
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
