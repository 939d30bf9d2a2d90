"""What runs containers on this host: Podman, the OCI runtime that truly works, and rockroll's own containers.conf.

In: the host. Out: a HostRuntime (runtime binary, state directory, environment of every podman call), found by running
a container once and remembered until Podman, a runtime or the kernel changes. Leaves talking to Podman to podman.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from rockroll import home
from rockroll.errors import HostError
from rockroll.sandbox.container import locks

RUNTIMES = ("crun", "runc")  # in order of preference: crun starts a box some ms faster
PROBE_TIMEOUT_S = 60
MAPPED_FIRST_ID = 0x70000000  # above what systemd hands out to containers and what useradd puts in /etc/subuid
MAPPED_IDS = 65536
USER_NAMESPACE_OPTIONS = tuple(f"--{kind}map=0:{MAPPED_FIRST_ID}:{MAPPED_IDS}" for kind in ("uid", "gid"))
CONF_VERSION = 8  # part of what a remembered verdict depends on: raise it when containers.conf changes


class HostRuntime(msgspec.Struct, frozen=True):
    """How containers run here."""

    runtime: str
    """"crun" or "runc"."""
    binary: str
    """Its path."""
    state_root: str
    """Its --root directory, for `BINARY --root STATE_ROOT exec …`."""
    rootless: bool
    """Whether an ordinary user runs it: the node then lives inside `podman unshare` (rootless_prefix)."""
    user_namespaces: bool
    """Whether a box can have a user namespace of its own (always so for an ordinary user)."""
    podman: str
    """Podman's version."""
    store: str
    """The folder of its containers and images."""
    run_store: str
    """The folder of those that run."""
    refused: dict[str, str]
    """Runtimes that do not run here, and what they said."""

    def environment(self) -> dict[str, str]:
        """The environment for every podman and runtime process: ours, with rockroll's containers.conf."""
        return environment()


_detected: dict[str, HostRuntime] = {}


def detect(refresh: bool = False) -> HostRuntime:
    """The runtime of this host; probes once (under 1 s), then answers from a file. Raises HostError with the cure."""
    directory = _conf_dir()
    if not refresh and (known := _detected.get(str(directory))):
        return known
    key = _key()
    kept = directory / "runtime.json"
    with _locked(directory / "runtime.lock"):
        found = None if refresh else _read(kept, key)
        if not found:
            found = _probe(key)
            kept.write_bytes(msgspec.json.encode({"key": key, "host": found}))
    _detected[str(directory)] = found
    return found


def is_rootless() -> bool:
    """Whether Podman runs for an ordinary user, asked from outside or inside `podman unshare`."""
    return os.getuid() != 0 or "_CONTAINERS_ROOTLESS_UID" in os.environ


def rootless_prefix() -> list[str]:
    """What to put before the argv of the node process: nothing as root, `podman unshare` for an ordinary user.

    There the process is uid 0 of Podman's user namespace and holds CAP_SYS_ADMIN over every box's namespaces.
    Pass environment() as its environment.
    """
    return [podman_binary(), "unshare"] if os.getuid() != 0 else []


def podman_binary() -> str:
    """Podman's path. Raises HostError where there is none."""
    found = which("podman")
    if not found:
        raise HostError("podman is not installed; run scripts/setup, or as root: apt-get install podman crun runc")
    return found


def environment() -> dict[str, str]:
    """This process's environment with rockroll's containers.conf; for an ordinary user, also its own store.

    An ordinary user gets a store of rockroll's own, one for all homes: without a storage.conf Podman 4.3 may settle
    on the vfs driver, which copies the whole image for each box (2.8 s), and a store remembers its driver.
    """
    made = dict(os.environ)
    made["CONTAINERS_CONF"] = str(_conf_dir() / "containers.conf")
    if is_rootless():
        made["CONTAINERS_STORAGE_CONF"] = str(_conf_dir() / "storage.conf")
        made["XDG_RUNTIME_DIR"] = str(home.user_runtime_dir())
    return made


def _conf_dir() -> Path:
    return home.made(home.home() / "conf")


def _state_root(runtime: str) -> str:
    return str(home.user_runtime_dir() / runtime) if is_rootless() else f"/run/{runtime}"


def _key() -> dict[str, str]:
    version = subprocess.run([podman_binary(), "--version"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        raise HostError(f"podman --version fails: {version.stderr.strip()}; reinstall podman")
    key = {
        "podman": version.stdout.split()[-1],
        "kernel": platform.release(),
        "uid": str(home.user_id()),
        "store": f"{Path.home()} {os.environ.get('XDG_DATA_HOME')} {home.user_runtime_dir()}",
        "conf": str(CONF_VERSION),
        "limits": _ulimits(),
        "locks": str(locks.wanted()),
    }
    for runtime in RUNTIMES:
        binary = which(runtime)
        key[runtime] = f"{binary}:{os.stat(binary).st_mtime_ns}" if binary else ""
    return key


def _read(path: Path, key: dict[str, str]) -> HostRuntime | None:
    try:
        kept = json.loads(path.read_bytes())
        if kept["key"] == key and (_conf_dir() / "containers.conf").exists():
            return msgspec.convert(kept["host"], HostRuntime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _probe(key: dict[str, str]) -> HostRuntime:
    refused: dict[str, str] = {}
    for runtime in RUNTIMES:
        binary = which(runtime)
        if not binary:
            refused[runtime] = "not installed"
            continue
        trial = _conf_dir() / "containers.trial.conf"  # not the real one: a node may be starting podman under that now
        trial.write_text(_conf(runtime, binary))
        said = _run_once(trial)
        if said is None:
            user_namespaces = is_rootless() or _run_once(trial, *USER_NAMESPACE_OPTIONS) is None
            trial.replace(_conf_dir() / "containers.conf")
            store, run_store = _stores()
            return HostRuntime(
                runtime=runtime,
                binary=binary,
                state_root=_state_root(runtime),
                rootless=is_rootless(),
                user_namespaces=user_namespaces,
                podman=key["podman"],
                store=store,
                run_store=run_store,
                refused=refused,
            )
        refused[runtime] = said
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise HostError(f"no OCI runtime can run a container here ({reasons}); run `rockroll doctor`")


def _stores() -> tuple[str, str]:
    """Asked once: `podman info` takes half a second."""
    argv = [podman_binary(), "info", "--format", "{{.Store.GraphRoot}}\n{{.Store.RunRoot}}"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(f"podman info fails: {done.stderr.strip()}; cure what it says")
    store, run_store = done.stdout.split()
    return store, run_store


def _run_once(conf: Path, *options: str) -> str | None:
    """Runs `true` in a container whose /usr is the host's, so that no image is needed; None when it ran.

    options: nothing, or USER_NAMESPACE_OPTIONS."""
    box = f"rockroll-probe-{os.getpid()}-{os.urandom(4).hex()}"
    argv = [podman_binary(), "run", "--rm", "--name", box, "--network", "none", "--log-driver", "none"]
    argv += ["--volume", "/usr:/usr:ro"]
    env = {**environment(), "CONTAINERS_CONF": str(conf)}
    with tempfile.TemporaryDirectory(prefix="rockroll-probe-") as directory:
        root = Path(directory)
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        for path in (root, root / "etc", root / "run"):  # in these the box's root makes mount points
            path.mkdir(exist_ok=True)
            if options:
                os.chown(path, MAPPED_FIRST_ID, MAPPED_FIRST_ID)
        try:
            done = subprocess.run(
                [*argv, *options, "--rootfs", directory, "/usr/bin/true"],
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # what it began is not left behind, as far as Podman still answers
            with suppress(subprocess.TimeoutExpired):
                subprocess.run([argv[0], "rm", "--force", box], env=env, capture_output=True, timeout=PROBE_TIMEOUT_S)
            return (
                f"no answer within {PROBE_TIMEOUT_S} s, at a load of {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
            )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _conf(runtime: str, binary: str) -> str:
    """containers.conf: the runtime, and rlimits that this host's hard limits allow (raising one needs a capability)."""
    return f"""\
# Written by rockroll; used for its own Podman service only (CONTAINERS_CONF).
[containers]
default_ulimits = [{_ulimits()}]
keyring = false
[engine]
runtime = "{runtime}"
num_locks = {locks.wanted()}
events_logger = "file"
cgroup_manager = "{_cgroup_manager()}"
{_own_store()}[engine.runtimes]
{runtime} = ["{binary}"]
"""


def _store() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data).absolute() / "rockroll" / "podman"


def _store_name() -> str:
    return hashlib.sha256(str(_store()).encode()).hexdigest()[:8]


def _own_store() -> str:
    """Writes storage.conf for an ordinary user; the lines that containers.conf then needs."""
    if not is_rootless():
        return ""
    store = _store()
    text = f"""\
# Written by rockroll; used for its own Podman service only (CONTAINERS_STORAGE_CONF).
[storage]
driver = "overlay"
rootless_storage_path = "{store}"
"""
    temporary = _conf_dir() / "storage.conf.new"
    temporary.write_text(text)
    temporary.replace(_conf_dir() / "storage.conf")
    # Locks in a file of this store: the shared-memory ones are one set per user, and whichever store comes up first
    # after a boot frees them all.
    return f"""\
lock_type = "file"
tmp_dir = "{home.user_runtime_dir() / f"rockroll-podman-{_store_name()}"}"
"""


def _ulimits() -> str:
    # Podman lowers its own hard limits to these before it starts the runtime
    return ", ".join(f'"{name}={value}:{value}"' for name, value in ulimits().items())


def ulimits() -> dict[str, int]:
    """What a box's processes are limited to one by one, or all of a user's together; no more than this host allows."""
    found = {}
    for name, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, 1_048_576),
        ("nproc", resource.RLIMIT_NPROC, _most_processes()),
        # Counted for root and all boxes together, whatever their user namespaces: one box must not have them all.
        ("sigpending", resource.RLIMIT_SIGPENDING, 4096),
        ("msgqueue", resource.RLIMIT_MSGQUEUE, 204_800),  # two queues of the usual size
    ):
        hard = resource.getrlimit(kind)[1]
        found[name] = most if hard == resource.RLIM_INFINITY else min(hard, most)
    return found


def _most_processes() -> int:
    """On cgroup v1 nothing else limits an ordinary user's boxes, all together: a fork bomb in one of them leaves the
    host enough processes for everybody else to end it."""
    return min(32_768, int(Path("/proc/sys/kernel/pid_max").read_text()) // 4) if is_rootless() else 32_768


def _cgroup_manager() -> str:
    """cgroupfs works everywhere but for an ordinary user on cgroup v2, to whom only systemd delegates a subtree."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return "systemd" if is_rootless() and v2 and (home.user_runtime_dir() / "systemd").is_dir() else "cgroupfs"


def exits_dir() -> Path:
    """Where conmon leaves the exit code of each container for Podman."""
    base = home.user_runtime_dir() / f"rockroll-podman-{_store_name()}" if is_rootless() else Path("/run/libpod")
    return base / "exits"


def which(name: str) -> str | None:
    """Where a program of the host is, also in the directories that an ordinary user's PATH lacks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
