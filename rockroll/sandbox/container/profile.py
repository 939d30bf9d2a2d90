"""The box: what a SandboxConfig becomes for Podman, and whether the kernel really holds it to that.

In: a SandboxConfig; later the pid of the container's first process. Out: the REST create body; the list of limits
that are not enforced, read back from the kernel. Leaves raising LimitNotEnforced to the caller.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rockroll import home, units
from rockroll.errors import HostError, SandboxLost
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import runtime, seccomp
from rockroll.sandbox.container.podman import HOME_LABEL
from rockroll.sandbox.net import egress

# What root inside an image needs to install packages, change users and end its processes, within its own namespaces.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE")
ALLOWED = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 10))
"""The same as the kernel numbers them (linux/capability.h)."""
# Beside what Podman masks: how busy the host is, with triggers that its kernel then works for; what power it draws.
MASKED = ("/proc/pressure", "/sys/devices/virtual/powercap")
CPU_PERIOD_US = 100_000
INIT = "/dev/rockroll-init"  # /dev is a tmpfs: the mount point leaves no file in the writable layer


def create_body(
    config: SandboxConfig,
    *,
    name: str,
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    mounts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The SpecGenerator body for Podman.create.

    name: the container's name. env, labels, mounts (OCI mounts): the host's own, over the config's.
    PID 1 is catatonit in its pause mode: it reaps orphans, ends on SIGTERM, and is the only process of an idle box.
    """
    body: dict[str, Any] = {
        **_user_namespace(config),
        "name": name,
        "image": config.image_name,
        "entrypoint": [INIT],
        "command": ["-P"],
        "env": {**egress.environment(config), **config.env, **(env or {})},
        "labels": {**config.labels, **(labels or {}), HOME_LABEL: home.home_id()},
        "hostname": "sandbox",
        "netns": {} if config.network == "open" else {"nsmode": "none"},
        "httpproxy": False,  # the host's own proxy, and the password in its address, are none of the box's business
        "cap_drop": ["ALL"],
        "cap_add": [f"CAP_{name}" for name in CAPABILITIES],
        "no_new_privileges": True,
        "seccomp_profile_path": seccomp.profile(),
        "mask": list(MASKED),
        "log_configuration": {"driver": "none"},
        # A volume that the image declares would lie outside the writable layer: no limit, no snapshot, no recycling.
        "image_volume_mode": "ignore",
        "systemd": "false",
        "oom_score_adj": 500,  # when the host itself runs out, a box goes before the trainer
        "resource_limits": {
            "memory": {"limit": config.memory_bytes, "swap": config.memory_bytes},
            "cpu": {
                "period": CPU_PERIOD_US,
                "quota": round(config.cpus * CPU_PERIOD_US),
                **({"cpus": _cpuset(config)} if config.cpuset is not None else {}),
            },
            "pids": {"limit": config.pids},
        },
        "mounts": [_bind(_catatonit(), INIT, read_only=True), *(mounts or [])],
        "user": config.user or "",
        **_rlimits(),
    }
    for mount in config.parsed_mounts:
        if not Path(mount.source).exists():
            raise HostError(f"mounts: {mount.source} does not exist on this host")
        body["mounts"].append(_bind(mount.source, mount.destination, mount.read_only))
    return body


def _rlimits() -> dict[str, Any]:
    """An ordinary user's Podman does not heed those of containers.conf."""
    if not runtime.is_rootless():
        return {}
    return {"r_limits": [{"type": name, "soft": most, "hard": most} for name, most in runtime.ulimits().items()]}


def _cpuset(config: SandboxConfig) -> str:
    wanted, here = config.parsed_cpuset or frozenset(), os.sched_getaffinity(0)
    if missing := wanted - here:
        raise HostError(
            f"cpuset: CPUs {units.show_numbers(here)} can be used on this host; got {config.cpuset}, "
            f"and {units.show_numbers(missing)} is not among them"
        )
    return units.show_numbers(wanted)


def _user_namespace(config: SandboxConfig) -> dict[str, Any]:
    """Root of the box is nobody on the host. One mapping for all boxes: where the kernel cannot map ids at the mount,
    Podman copies the image once for it, not once a box. Not with a writable mount, whose files no mapped id could
    write, nor for an ordinary user, whose Podman lives in a user namespace already."""
    if not first_id(config):
        return {}
    mapping = [{"container_id": 0, "host_id": runtime.MAPPED_FIRST_ID, "size": runtime.MAPPED_IDS}]
    return {
        "userns": {"nsmode": "private"},
        "idmappings": {"UIDMap": mapping, "GIDMap": mapping, "HostUIDMapping": False, "HostGIDMapping": False},
    }


def first_id(config: SandboxConfig) -> int:
    """What root of such a box is called on the host; 0 where it has no user namespace of its own."""
    host = runtime.detect()
    if host.rootless or not host.user_namespaces or any(not mount.read_only for mount in config.parsed_mounts):
        return 0
    return runtime.MAPPED_FIRST_ID


def verify(pid: int, config: SandboxConfig) -> list[str]:
    """What the kernel does not hold the container of pid to: limits ("memory", "swap", "pids", "cpus", "cpuset"), and
    the rest of the profile ("seccomp", "no-new-privileges", "capabilities"); [] is best.

    Reads the cgroup files (v1 and v2) of a process that was started under the limits; about 0.2 ms.
    Raises SandboxLost when pid is gone.
    """
    got = enforced(pid)
    wanted = {"memory": config.memory_bytes, "swap": config.memory_bytes, "pids": config.pids, "cpus": config.cpus}
    missing = [limit for limit, value in wanted.items() if got[limit] is None or got[limit] > value * 1.001]
    if (cpuset := config.parsed_cpuset) is not None and not cpus_of(pid) <= cpuset:
        missing.append("cpuset")
    return missing + _open_doors(pid)


def _open_doors(pid: int) -> list[str]:
    """What should hold the box's first process, and so all that follow it, and does not: "seccomp",
    "no-new-privileges", "capabilities"."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost(f"the sandbox's first process {pid} is gone") from None
    found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    held = {
        "seccomp": found.get("Seccomp") == "2",
        "no-new-privileges": found.get("NoNewPrivs") == "1",
        "capabilities": not int(found["CapBnd"], 16) & ~ALLOWED,
    }
    return [name for name, holds in held.items() if not holds]


def enforced(pid: int) -> dict[str, float | None]:
    """What the kernel enforces on pid: memory and memory+swap in bytes, pids, cpus; None where there is no limit.

    A host without swap accounting but also without swap enforces "swap" by "memory".
    """
    groups = cgroups(pid)
    memory, pids, cpu = groups.get("memory"), groups.get("pids"), groups.get("cpu")
    if memory and (memory / "memory.max").exists():
        limit, extra = _number(memory / "memory.max"), _number(memory / "memory.swap.max")
        total = limit + extra if limit is not None and extra is not None else None
    elif memory:
        limit = _number(memory / "memory.limit_in_bytes")
        total = _number(memory / "memory.memsw.limit_in_bytes")
    else:
        limit = total = None
    return {
        "memory": limit,
        "swap": limit if total is None and not _host_has_swap() else total,
        "pids": _number(pids / "pids.max") if pids else None,
        "cpus": _cpus(cpu) if cpu else None,
    }


def cpus_of(pid: int) -> frozenset[int]:
    """The CPUs that pid's cgroup allows; those of the host where no cgroup holds it to any."""
    groups = cgroups(pid)
    for controller, name in (("cpuset", "cpuset.effective_cpus"), ("unified", "cpuset.cpus.effective")):
        group = groups.get(controller)
        if group and (group / name).exists():
            return units.numbers((group / name).read_text())
    return frozenset(range(os.cpu_count() or 1))


def cgroups(pid: int) -> dict[str, Path]:
    """Controller → directory of pid's cgroup under /sys/fs/cgroup (v1, v2 and both at once); those visible here."""
    found: dict[str, Path] = {}
    mounts = _cgroup_mounts()
    try:
        with open(f"/proc/{pid}/cgroup") as file:  # some five times a start: without Path it takes a third
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost(f"the sandbox's first process {pid} is gone") from None
    for line in lines:
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["unified"]:
            if name in mounts:
                root, point = mounts[name]
                found[name] = point / (path[1:] if root == "/" else os.path.relpath(path, root))
    if unified := found.get("unified"):
        for name in ("memory", "pids", "cpu"):
            if name not in found and (unified / f"{name}.max").exists():
                found[name] = unified
    return found


def remove_cgroups(container: str) -> None:
    """Removes what is left of a removed container's cgroups: where conmon was killed in the middle of its end, Podman
    takes them to be gone."""
    for root, point in set(_cgroup_mounts().values()):
        group = point / os.path.relpath(f"/libpod_parent/libpod-{container}", root)
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:
                continue  # gone meanwhile, or a process is still leaving it


@functools.cache
def _cgroup_mounts() -> dict[str, tuple[str, Path]]:
    """Controller ("unified" for v2) → the cgroup path its mount starts at, the mount point."""
    found: dict[str, tuple[str, Path]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split(" ")[3:5]
        if kind == "cgroup2":
            found["unified"] = (root, Path(point))
        elif kind == "cgroup":
            for name in options.split(","):
                found.setdefault(name, (root, Path(point)))
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    # v1 writes "no limit" as the largest multiple of a page; v2 and pids write "max"
    return None if text == "max" or int(text) >= 2**62 else int(text)


def _cpus(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _host_has_swap() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def _bind(source: str, destination: str, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "ro" if read_only else "rw"]
    return {"type": "bind", "source": source, "destination": destination, "options": options}


@functools.cache
def _catatonit() -> str:
    for path in ("/usr/libexec/podman/catatonit", "/usr/lib/podman/catatonit", shutil.which("catatonit")):
        if path and Path(path).exists():
            return str(Path(path).resolve())
    raise HostError("catatonit, the sandbox's init, is not installed; run scripts/setup, or apt install catatonit")
