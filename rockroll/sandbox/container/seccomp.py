"""The system calls that a box may make: what Podman allows on this host, less what leads out of a sealed box.

In: the host's own profile (containers-common). Out: the path of a stricter one, for Podman's create. Leaves proving
that it holds to profile.py, and the reasons at length to docs/security.md.

Podman's profile is made for containers in containers: it allows user namespaces, in which a program has every
capability over new mounts and networks, and with them most of the kernel's attack surface; sockets of families that no
network namespace holds (vsock reaches the machine's hypervisor); and keyrings, whose quota all boxes share.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from rockroll import home
from rockroll.errors import HostError

PLACES = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
"""Where Podman itself looks, in its order."""
_REFUSED = (
    # other namespaces and mounts
    "unshare setns chroot pivot_root mount umount umount2 mount_setattr move_mount open_tree open_tree_attr"
    " fsopen fsconfig fsmount fspick"
    # keys of users, which are the host's users
    " keyctl add_key request_key"
    # the kernel itself: programs for it, its log, its counters, other ways into files and memory
    " bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register open_by_handle_at syslog"
    " init_module finit_module delete_module kexec_load kexec_file_load fanotify_init lookup_dcookie quotactl"
    " quotactl_fd acct swapon swapoff reboot iopl ioperm nfsservctl"
    # 32-bit programs' way to every socket, whose arguments no filter sees; they have socket as well since Linux 4.3
    " socketcall"
)
REFUSED = frozenset(_REFUSED.split())
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
"""Of sockets, beside netlink's: those that the box's network namespace holds."""
NETLINK_AUDIT = 9
NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""mount, cgroup, uts, ipc, user, pid, net: flags of clone."""
_OURS = REFUSED | {"clone", "clone3", "socket"}


def profile() -> str:
    """The path of the profile, written when it is missing or the host's has changed. Raises HostError."""
    path = home.home() / "conf" / "seccomp.json"
    if path not in _checked or not path.exists():
        _write(path)
        _checked.add(path)
    return str(path)


_checked: set[Path] = set()


def _write(path: Path) -> None:
    text = json.dumps(sealed(_of_host())).encode()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists() or path.read_bytes() != text:
        temporary = path.with_suffix(f".{os.getpid()}.new")  # two processes of this user may come here at once
        temporary.write_bytes(text)
        temporary.replace(path)


def _of_host() -> dict[str, Any]:
    for place in PLACES:
        if place.exists():
            return json.loads(place.read_bytes())
    raise HostError(
        f"seccomp: no profile is at {' or '.join(map(str, PLACES))}; it comes with Podman: "
        "apt install golang-github-containers-common, or dnf install containers-common"
    )


def sealed(host: dict[str, Any]) -> dict[str, Any]:
    """The host's profile with our own rules in place of its rules for the same calls."""
    kept = [{**rule, "names": [name for name in rule["names"] if name not in _OURS]} for rule in host["syscalls"]]
    return {**host, "syscalls": [*(rule for rule in kept if rule["names"]), *_rules()]}


def _rules() -> list[dict[str, Any]]:
    rules = [_refuse(sorted(REFUSED), errno.EPERM)]
    # The C library tries it first for threads, and takes this answer to mean an older kernel: its flags are in memory,
    # where no filter sees them.
    rules.append(_refuse(["clone3"], errno.ENOSYS))
    rules.append(_allow("clone", _argument(0, "MASKED_EQ", sum(NEW_NAMESPACES), 0)))
    rules += [_refuse(["clone"], errno.EPERM, _argument(0, "MASKED_EQ", flag, flag)) for flag in NEW_NAMESPACES]
    rules += [_allow("socket", _argument(0, "EQ", family)) for family in FAMILIES]
    netlink = _argument(0, "EQ", socket.AF_NETLINK)
    rules.append(_allow("socket", netlink, _argument(2, "NE", NETLINK_AUDIT)))
    rules.append(_refuse(["socket"], errno.EINVAL, netlink, _argument(2, "EQ", NETLINK_AUDIT)))
    others = set(range(socket.AF_NETLINK)) - set(FAMILIES)
    rules += [_refuse(["socket"], errno.EAFNOSUPPORT, _argument(0, "EQ", family)) for family in sorted(others)]
    rules.append(_refuse(["socket"], errno.EAFNOSUPPORT, _argument(0, "GT", socket.AF_NETLINK)))
    return rules


def _allow(name: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _refuse(names: list[str], code: int, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": list(arguments)}


def _argument(index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": int(value), "valueTwo": int(second), "op": f"SCMP_CMP_{operator}"}
