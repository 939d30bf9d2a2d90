"""What this host can do for sandboxes, found out by doing it.

In: the host. Out: one Check a fact, each defect with its cure in one line. Leaves showing them to cli/doctor.py.
An ordinary user's container checks run inside `podman unshare`, as the node does: there
`python -m rockroll.sandbox.doctor` prints them as JSON.
"""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from rockroll import home, units
from rockroll.errors import HostError, RockrollError
from rockroll.sandbox.boxes import grant
from rockroll.sandbox.config import DEFAULT_IMAGE, SandboxConfig
from rockroll.sandbox.container import disk, profile, runtime
from rockroll.sandbox.container.podman import Podman, PodmanService
from rockroll.sandbox.linux import netns
from rockroll.sandbox.node import limits, node_config

PROGRAMS = {"podman": "podman", "conmon": "conmon", "catatonit": "catatonit", "setpriv": "util-linux"}
PACKAGES = ("aiohttp", "msgspec", "pyzmq", "typer", "rich", "pydantic", "torch", "transformers", "deepspeed")
LIMITS = SandboxConfig(cpus=0.5, memory="64m", pids=32)
CGROUP_CURE = (
    "as root every limit holds; an ordinary user needs cgroup v2 and a systemd login session (loginctl enable-linger); "
    "until then: rockroll sandbox up --allow-unenforced, allow_unenforced in Python and in recipes, "
    "limits.allow_unenforced in node.yaml for all"
)


ENOUGH_BOXES = 16
"""Under this the quick start's boxes do not fit."""
DISK_CURE = (
    "as root, with loop devices and mke2fs (apt-get install e2fsprogs), a disk limit holds; until then start sandboxes "
    "that ask for one with allow_unenforced"
)


class Check(msgspec.Struct, frozen=True):
    """One fact about this host."""

    name: str
    ok: bool
    detail: str
    cure: str = ""
    """What to do about it, "" where nothing is wrong."""
    needed: bool = False
    """Whether a sandbox that asks for nothing special does not start without it."""


class Report(msgspec.Struct, frozen=True):
    """ok: sandboxes can run here."""

    ok: bool
    checks: list[Check]


async def examine() -> Report:
    """Every check, truly run; about 1 s. Starts one sandbox and removes it."""
    checks = [check for check in _host()]
    prefix = runtime.rootless_prefix() if shutil.which("podman") else []
    if prefix:
        checks += await _unshared(prefix)
    else:
        checks += [check async for check in _containers()]
    return Report(all(check.ok for check in checks if check.needed), checks)


def _host() -> Iterator[Check]:
    for program, package in PROGRAMS.items():
        path = runtime.which(program) or ("/usr/libexec/podman/catatonit" if program == "catatonit" else None)
        found = bool(path) and Path(str(path)).exists()
        yield Check(program, found, path if found and path else "missing", _install(package, found), needed=True)
    if os.getuid() != 0:
        yield _subordinate_ids()
    files, processes = (resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    enough = files == resource.RLIM_INFINITY or files >= 4096
    cure = "" if enough else "raise the hard limit: `* hard nofile 65536` in /etc/security/limits.d/rockroll.conf"
    yield Check("rlimits", enough, f"hard limits: {_limit(files)} files, {_limit(processes)} processes", cure)
    yield _disk()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= 3 * 2**30
    yield Check("memory", enough, units.show_size(memory), "" if enough else "the quick start wants 4g of memory")
    yield Check("cores", True, f"{len(os.sched_getaffinity(0))} ({platform.machine()}, Linux {platform.release()})")
    yield _gpus()
    yield _packages()


def _subordinate_ids() -> Check:
    user = pwd.getpwuid(os.getuid()).pw_name
    missing = [path for path in ("/etc/subuid", "/etc/subgid") if not _has_range(Path(path), user)]
    helper = runtime.which("newuidmap")
    ok = not missing and helper is not None
    detail = (
        f"{user} has a range in /etc/subuid and /etc/subgid" if ok else f"{user}: {', '.join(missing)} has no range"
    )
    cure = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    if helper is None:
        detail, cure = "newuidmap is missing", _install("uidmap", False)
    return Check("subordinate ids", ok, detail, "" if ok else cure, needed=True)


def _has_range(path: Path, user: str) -> bool:
    lines = path.read_text().splitlines() if path.exists() else []
    return any(line.split(":")[0] in (user, str(os.getuid())) for line in lines)


def _disk() -> Check:
    free = shutil.disk_usage(home.home()).free
    ok = free >= 2 * 2**30
    cure = "" if ok else f"free some space, or set ROCKROLL_HOME to a bigger disk; {home.home()} needs 2g"
    return Check("disk", ok, f"{units.show_size(free)} free under {home.home()}", cure)


def _gpus() -> Check:
    program = shutil.which("nvidia-smi")
    if not program:
        return Check("gpus", True, "none: engine and trainer run on the CPU")
    said = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)
    if said.returncode != 0:
        return Check("gpus", False, f"nvidia-smi fails: {said.stdout.strip()[:200]}", "reinstall the NVIDIA driver")
    return Check("gpus", True, "; ".join(line.split(" (UUID")[0] for line in said.stdout.strip().splitlines()))


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check("packages", not missing, detail, "run scripts/setup" if missing else "")


async def _unshared(prefix: list[str]) -> list[Check]:
    """The container checks, in the place where an ordinary user's node runs."""
    runtime.detect()
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "rockroll.sandbox.doctor"),
        env=runtime.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode == 0:
        return msgspec.json.decode(out, type=list[Check])
    said = (err.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
    cure = "run `podman unshare true` and cure what it says; user namespaces must be allowed for ordinary users"
    return [Check("podman unshare", False, said, cure, needed=True)]


async def _containers() -> AsyncIterator[Check]:
    try:
        host = await asyncio.to_thread(runtime.detect, True)
    except HostError as error:
        yield Check("oci runtime", False, error.message, _install("crun runc", False), needed=True)
        return
    refused = "".join(f"; {name} does not: {why}" for name, why in host.refused.items())
    yield Check("oci runtime", True, f"{host.runtime} runs a container ({host.binary}){refused}", needed=True)
    cure = "" if host.user_namespaces else "allow them: sysctl user.max_user_namespaces=65536; sandboxes run without"
    detail = "each sandbox gets one of its own" if host.user_namespaces else "none could be made for a container"
    yield Check("user namespaces", host.user_namespaces, detail, cure)
    refusal = await asyncio.to_thread(disk.probe)
    yield Check("disk limits", not refusal, refusal or "a disk was mounted and removed", DISK_CURE if refusal else "")
    service = PodmanService(host)
    try:
        podman = await service.start()
    except RockrollError as error:
        yield Check("podman service", False, error.message, "run `podman info` and cure what it says", needed=True)
        return
    try:
        async for check in _sandboxes(podman):
            yield check
    finally:
        await service.close()


async def _sandboxes(podman: Podman) -> AsyncIterator[Check]:
    info = await podman.info()
    driver, store, version = info["store"]["graphDriverName"], info["store"]["graphRoot"], info["version"]["Version"]
    recent = int(version.split(".")[0]) >= 4
    yield Check("podman version", recent, version, "" if recent else "install Podman 4.0 or newer", needed=True)
    detail = f"answers; {driver} store at {store}"
    fast = driver != "vfs"
    cure = "" if fast else "vfs copies the image for each sandbox: `podman system reset`, then driver = overlay"
    yield Check("podman service", fast, detail, cure)
    yield _capacity(Path(store))
    there = await podman.image_exists(DEFAULT_IMAGE)
    yield Check("image", there, DEFAULT_IMAGE, "" if there else "run `rockroll image build`", needed=True)
    if not there:
        return
    name = f"rockroll-doctor-{os.getpid()}"
    try:
        id = await podman.create(profile.create_body(LIMITS, name=name))
        await podman.start(id)
        pid = int((await podman.inspect(id))["State"]["Pid"])
        yield Check("sandbox", True, "one was started", needed=True)
        layout = "v2" if set(profile.cgroups(pid)) == {"unified", "memory", "pids", "cpu"} else "v1 or hybrid"
        missing = profile.verify(pid, LIMITS)
        held = [limit for limit in ("memory", "swap", "pids", "cpus") if limit not in missing]
        detail = f"cgroup {layout}; enforced: {', '.join(held) or 'none'}"
        detail += f"; not enforced: {', '.join(missing)}, so that sandboxes are refused here" if missing else ""
        yield Check("limits", not missing, detail, CGROUP_CURE if missing else "", needed=True)
        netns.listen_in(pid, 41414).close()
        yield Check("model endpoint", True, "a socket was opened inside the sandbox's network", needed=True)
    except RockrollError as error:
        yield Check(
            "sandbox", False, error.message, "cure what Podman says, then run `rockroll doctor` again", needed=True
        )
    finally:
        await podman.remove(name)


def _capacity(store: Path) -> Check:
    """How many default boxes fit beside what runs now, and which limit would refuse the next one."""
    try:
        policy = node_config.load(node_config.path()).limits
    except RockrollError as error:
        return Check("capacity", False, error.message, "correct it: until then the node makes no sandbox", needed=True)
    facts = limits.read(store, file_locks=runtime.is_rootless())
    found = limits.binding(limits.rooms(facts, grant.Granted(), grant.of(SandboxConfig()), policy))
    first, others = found[0], [f"{room.name} {room.boxes:,}" for room in found[1:3]]
    detail = f"{first.boxes:,} more default sandboxes; {first.name} bind ({first.rule}), then {', '.join(others)}"
    if (sessions := limits.slow_pipes()) is not None:
        detail += f"; over {sessions} sessions the pipes are small (fs.pipe-user-pages-soft)"
    enough = first.boxes >= ENOUGH_BOXES
    return Check("capacity", enough, detail, "" if enough else first.cure)


def _install(package: str, found: bool) -> str:
    return "" if found else f"run scripts/setup, or as root: apt-get install {package}"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


async def _print_checks() -> None:
    sys.stdout.buffer.write(msgspec.json.encode([check async for check in _containers()]))


if __name__ == "__main__":
    asyncio.run(_print_checks())
