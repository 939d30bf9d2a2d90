"""Podman over its REST socket: rockroll's own service, and a small async client.

In: the containers.conf that runtime.py wrote. Out: containers made, started, stopped, listed; typed errors.
Leaves what a sandbox is (profile.py), exec (the OCI runtime, once per session) and identity to others.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import aiohttp

from rockroll import home
from rockroll.errors import HostError, ImageMissing, SandboxError, SandboxNotFound
from rockroll.sandbox.container import runtime
from rockroll.sandbox.linux import reaper
from rockroll.sandbox.linux.process import birth

HOME_LABEL = "rockroll.home"
API = "http://podman/v4.0.0/libpod"
CALL_TIMEOUT_S = 120.0  # a loaded host starts 7 boxes a second with 1,000 alive; longer than this is a hang
NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_read=600.0)
"""For an image's bytes: of any number, each of them within ten minutes."""
PIECE = 256 << 10
PREDECESSOR_S = 5.0
"""A service whose node was killed has this long to finish what it was asked: a create takes up to 1 s."""
STEADY_S = 1.0
"""A service that dies sooner than this after its start cannot stay: the next one waits 0.2, 0.4 … LONGEST_PAUSE_S."""
LONGEST_PAUSE_S = 10.0
_log = logging.getLogger(__name__)


class PodmanService:
    """A `podman system service` of this process, under rockroll's containers.conf.

    start() ─► running ─► close(). The service dies with the thread that started it (PDEATHSIG), so start it from a
    thread that lives as long as the process: the main one. The listening socket is made here and handed over
    (socket activation), so that the first request waits in its backlog and nothing has to poll for readiness.

    record: a file that names the service's process. A service that one before us recorded there is waited for, and
    killed should it linger: it ends by SIGTERM, which lets it finish a create that nobody knows of any more.
    revive: a service that dies is replaced at the same socket; calls that can be asked twice are asked again.
    """

    def __init__(
        self, host: runtime.HostRuntime | None = None, *, record: Path | None = None, revive: bool = False
    ) -> None:
        self._host = host
        self._record, self._revive = record, revive
        self._listening: socket.socket | None = None
        self._watch: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._podman: Podman | None = None
        self._log: BinaryIO | None = None
        self.path: Path | None = None

    @property
    def podman(self) -> Podman:
        """The client; only after start()."""
        if self._podman is None:
            raise RuntimeError("PodmanService is not started")
        return self._podman

    @property
    def pid(self) -> int | None:
        """The service's pid while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> Podman:
        """Starts the service and waits until it answers. Raises HostError with the cure."""
        self._host = self._host or await asyncio.to_thread(runtime.detect)
        if self._record:
            await _outlive(self._record)
        _remove_stale_sockets()
        directory = home.runtime_dir()
        self.path = Path(tempfile.mktemp(prefix=f"podman-{os.getpid()}-", suffix=".sock", dir=directory))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the service
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._podman = Podman(self.path, describe_failure=self._failure)
        try:
            self._listening.bind(str(self.path))
            self._listening.listen(256)
            await self._spawn()
            if not self._revive:
                self._close_listening()
            await self._podman.version()
        except BaseException:
            await self.close()
            raise
        if self._revive:
            self._podman.ask_again = True
            self._watch = asyncio.get_running_loop().create_task(self._keep_alive())
        return self._podman

    async def _spawn(self) -> None:
        assert self._listening is not None and self._host is not None
        # sh moves the socket to fd 3, where socket activation looks, and keeps the pid that LISTEN_PID names.
        # It comes as stdin: dash knows no descriptor above 9, and a busy process has none below.
        script = 'exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        try:
            with reaper.starting():
                self._process = await asyncio.create_subprocess_exec(
                    *("setpriv", "--pdeathsig", "TERM", "sh", "-c", script, "sh"),
                    *(runtime.podman_binary(), "system", "service", "--time", "0"),
                    env=self._host.environment(),
                    stdin=self._listening.fileno(),
                    cwd=home.runtime_dir(),  # conmon inherits it, and leaves a file named "oom" there on cgroup v1
                    stdout=self._log,
                    stderr=self._log,
                    start_new_session=True,  # Ctrl-C is the node's to handle: it still needs Podman to clean up
                )
        except FileNotFoundError as error:
            raise HostError(f"{error.filename} is not installed; run scripts/setup, or apt install podman") from None
        if self._record:
            self._record.write_text(f"{self._process.pid} {birth(self._process.pid)}")

    async def _keep_alive(self) -> None:
        loop, failed = asyncio.get_running_loop(), 0
        while True:
            assert self._process is not None
            began = loop.time()
            code = await self._process.wait()
            failed = 0 if loop.time() - began > STEADY_S else failed + 1
            _log.warning("Podman's service ended with %s; another one is started: %s", code, self._failure())
            if failed:
                await asyncio.sleep(min(LONGEST_PAUSE_S, 0.1 * 2**failed))
            try:
                await self._spawn()
            except (HostError, OSError) as error:
                _log.error("Podman's service could not be started again: %s", error)
                self._close_listening()
                return

    def _close_listening(self) -> None:
        """Whoever asks from now on hears at once that nobody answers."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def close(self) -> None:
        """Ends the service and removes its socket. Containers go on."""
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        self._close_listening()
        if self._podman:
            await self._podman.close()
            self._podman = None
        if self._process and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._record:
            self._record.unlink(missing_ok=True)
        if self.path:
            self.path.unlink(missing_ok=True)
        if self._log:
            self._log.close()
            self._log = None

    async def __aenter__(self) -> Podman:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _failure(self) -> str:
        if self._log is None:
            return ""
        text = os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace").strip()
        return text.splitlines()[-1] if text else ""


class Podman:
    """The few REST calls rockroll needs. Every method raises HostError when the service does not answer.

    Container methods take a full id or name and raise SandboxNotFound where there is none.
    """

    def __init__(self, socket_path: Path, describe_failure: Any = None) -> None:
        self._failure = describe_failure or (lambda: "")
        self.ask_again = False
        """Whether a service that dies is replaced at this socket: then a call that it left unanswered is repeated."""
        # keepalive below the service's own idle time; no limit on connections: events and waits hold one each
        connector = aiohttp.UnixConnector(str(socket_path), limit=0, keepalive_timeout=30)
        self._http = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S), auto_decompress=False
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()

    # -- host

    async def version(self) -> dict[str, Any]:
        """Podman's version object."""
        return await self._json("GET", "/version")

    async def info(self) -> dict[str, Any]:
        """`podman info`."""
        return await self._json("GET", "/info")

    # -- containers

    async def create(self, body: Mapping[str, Any]) -> str:
        """Makes a container from a SpecGenerator body (profile.create_body); its id. Raises ImageMissing."""
        image, name = str(body.get("image", "")), str(body.get("name", ""))
        try:
            made = await self._json("POST", "/containers/create", json=body, image=image)
        except HostError as error:
            if not self.ask_again or not name or "already in use" not in error.message:
                raise
            # The name is ours alone: an earlier asking of this very call made it, wholly or in part.
            await self.remove(name)
            made = await self._json("POST", "/containers/create", json=body, image=image)
        return made["Id"]

    async def start(self, id: str) -> None:
        """Starts a container; nothing when it runs already."""
        await self._call("POST", f"/containers/{_q(id)}/start")

    async def stop(self, id: str, timeout_s: int = 0) -> None:
        """SIGTERM to PID 1, SIGKILL after timeout_s; nothing when it is stopped already."""
        await self._call("POST", f"/containers/{_q(id)}/stop", params={"timeout": str(timeout_s)})

    async def kill(self, id: str, signal: str = "KILL") -> None:
        """A signal to PID 1."""
        await self._call("POST", f"/containers/{_q(id)}/kill", params={"signal": signal})

    async def remove(self, id: str, force: bool = True) -> bool:
        """Removes a container and its anonymous volumes; False when it was gone already."""
        params = {"force": str(force).lower(), "v": "true", "timeout": "0"}
        for attempt in range(3):
            try:
                await self._call("DELETE", f"/containers/{_q(id)}", params=params)
            except SandboxNotFound:
                return attempt > 0
            except HostError as error:
                # With a user namespace Podman's own cleanup still unmounts /dev/shm in 5 % of removals; asked again,
                # it waits for that cleanup's lock.
                unheard = "could not be stopped" in error.message
                if attempt == 2 or not (unheard or "resource busy" in error.message):
                    raise
                if unheard:
                    found = await self.inspect(id)
                    if birth(int(found["State"]["Pid"])) == 0:
                        leave_exit(found, None)
            else:
                return True
        return False

    async def inspect(self, id: str) -> dict[str, Any]:
        """`podman inspect`: State.Pid, State.Status, Config.Labels, GraphDriver.Data.UpperDir, …"""
        return await self._json("GET", f"/containers/{_q(id)}/json")

    async def list(self, labels: Mapping[str, str] | None = None, all: bool = True) -> list[dict[str, Any]]:
        """Containers that carry every label given; sizes are not asked for (that takes seconds)."""
        filters = {"label": [f"{key}={value}" for key, value in (labels or {}).items()]}
        params = {"all": str(all).lower(), "filters": json.dumps(filters)}
        return await self._json("GET", "/containers/json", params=params) or []

    # -- images

    async def images(self) -> list[dict[str, Any]]:
        """Every image of the local store."""
        return await self._json("GET", "/images/json") or []

    async def image_exists(self, name: str) -> bool:
        """Whether the local store has it."""
        try:
            await self._call("GET", f"/images/{_q(name)}/exists", image=name)
        except ImageMissing:
            return False
        return True

    async def image_inspect(self, name: str) -> dict[str, Any]:
        """`podman image inspect`. Raises ImageMissing."""
        return await self._json("GET", f"/images/{_q(name)}/json", image=name)

    async def image_remove(self, name: str) -> None:
        """Removes one tag. Raises ImageMissing."""
        await self._call("DELETE", f"/images/{_q(name)}", image=name)

    async def image_import(self, tar: Path, name: str, changes: list[str] | None = None) -> str:
        """A root file system in a tar becomes an image; its id. changes: Dockerfile lines, as ENV A=b."""
        params = [("reference", name), *(("changes", change) for change in changes or [])]
        with await asyncio.to_thread(tar.open, "rb") as body:
            made = await self._json("POST", "/images/import", params=params, data=body)
        return made["Id"]

    async def image_pull(self, name: str, timeout_s: float, *, login: tuple[str, str] | None = None) -> None:
        """Pulls from a registry, as that user with that password. Raises ImageMissing with the registry's words, also
        when it takes too long."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        url, ask = f"{API}/images/pull", {"reference": name}
        headers = {}
        if login:
            said = json.dumps({"username": login[0], "password": login[1]})
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(said.encode()).decode()
        try:
            async with self._http.post(url, params=ask, timeout=timeout, headers=headers) as response:
                await self._raise_for(response, "POST /images/pull", name)
                async for line in response.content:
                    said = json.loads(line) if line.strip() else {}
                    if said.get("error"):
                        raise ImageMissing(f"{name} could not be pulled: {said['error']}")
        except TimeoutError:
            raise ImageMissing(f"{name} could not be pulled: no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    async def image_save(self, name: str, format: str) -> AsyncGenerator[bytes, None]:
        """An image as an archive, piece by piece; by its id it carries no name. Raises ImageMissing."""
        url = f"{API}/images/{_q(name)}/get"
        try:
            async with self._http.get(url, params={"format": format}, timeout=NO_LIMIT) as response:
                await self._raise_for(response, "GET /images/NAME/get", name)
                async for data in response.content.iter_chunked(PIECE):
                    yield data
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    async def image_load(self, archive: AsyncIterator[bytes]) -> None:
        """What image_save has made, into the local store; nothing of it where `archive` raises."""
        url, headers = f"{API}/images/load", {"Content-Type": "application/x-tar"}
        try:
            async with self._http.post(url, data=archive, timeout=NO_LIMIT, headers=headers) as response:
                await self._raise_for(response, "POST /images/load", "")
                await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    # -- the wire

    async def _json(self, method: str, path: str, **kwargs: Any) -> Any:
        return json.loads(await self._call(method, path, **kwargs) or b"null")

    async def _call(self, method: str, path: str, image: str = "", **kwargs: Any) -> bytes:
        for left in (2, 1, 0) if self.ask_again else (0,):
            try:
                async with self._http.request(method, API + path, **kwargs) as response:
                    await self._raise_for(response, f"{method} {path}", image)
                    return await response.read()
            except TimeoutError:
                raise HostError(f"Podman did not answer {method} {path}; see `podman ps` and the host's load") from None
            except (aiohttp.ClientError, OSError) as error:
                # Every call here comes to the same when it is asked twice: to start what runs or remove what is gone
                # is nothing, and create looks after itself. A file that is sent can be read only once.
                if not left or "data" in kwargs:
                    raise self._unreachable(error) from error
        raise AssertionError("the last try returns or raises")

    async def _raise_for(self, response: aiohttp.ClientResponse, call: str, image: str) -> None:
        if response.status < 400:
            return
        raw = await response.read()
        try:
            said = json.loads(raw)
            message = str(said.get("message") or said.get("cause"))
        except ValueError:
            message = raw.decode(errors="replace").strip()
        raise _failure(response.status, call, image, message)

    def _unreachable(self, error: Exception) -> HostError:
        reason = self._failure() or str(error) or type(error).__name__
        return HostError(f"rockroll's Podman service does not answer: {reason}; run `rockroll doctor`")


def leave_exit(found: Mapping[str, Any], code: int | None) -> None:
    """Tells Podman of the end of a container whose init is dead, where conmon was killed before it could leave its exit
    file: without one Podman takes it to run, or to be stopping for ever, and neither starts nor removes it.

    found: of `inspect`. code: init's, where it is known.
    """
    if found["State"]["Status"] in ("running", "paused", "stopping"):
        code = 128 + signal.SIGKILL if code is None else code
        (runtime.exits_dir() / found["Id"]).write_text(str(code))


def _failure(status: int, call: str, image: str, message: str) -> Exception:
    lower = message.lower()
    if image and (status == 404 or "no such image" in lower or "image not known" in lower):
        return ImageMissing(
            f"image {image} is not in the local store; run `rockroll image build`, or `rockroll image pull {image}`"
        )
    if status == 404:
        return SandboxNotFound(f"Podman knows no such container: {message}")
    if "no space left" in lower:
        return HostError(f"no disk space is left where Podman keeps containers: {message}; free some and try again")
    if "no such file or directory" in lower and "statfs" in lower:
        return SandboxError(f"a mount's source does not exist on this host: {message}")
    if "allocating lock" in lower:
        return HostError("Podman's locks are used up (2,048 containers and volumes); remove some with `podman rm`")
    return HostError(f"Podman refused {call} ({status}): {message}")


async def _outlive(record: Path) -> None:
    """Waits until the service of a node that was killed has ended; after PREDECESSOR_S it is killed too."""
    try:
        pid, born = map(int, record.read_text().split())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    try:
        if birth(pid) != born:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(PREDECESSOR_S):
                await ended.wait()
        except TimeoutError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
    finally:
        os.close(pidfd)


def _remove_stale_sockets() -> None:
    """Sockets of processes that were killed before they could remove them."""
    for path in home.runtime_dir().glob("podman-*-*.sock"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)


def _q(name: str) -> str:
    return quote(name, safe="")
