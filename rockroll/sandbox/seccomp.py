"""The system calls that a box may make: Podman's own profile without the kernel's key store.

In: the host's seccomp.json. Out: one of rockroll's own beside its containers.conf, or None where the host has none.
Leaves loading it to Podman.

The key store is left out for two reasons. It is shared with the host, and was a way out of containers before. And where
a box may use it, the runtime must make a keyring for each one: of those the user that stands for every box's root may
have 200 (kernel.keys.maxkeys), so that box 201 would fail with "disk quota exceeded". With the calls refused no keyring
is needed.
"""

from __future__ import annotations

import json
from pathlib import Path

PROFILES = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
"""Where Podman looks, in its order."""
REFUSED = frozenset({"add_key", "keyctl", "request_key"})


def write(target: Path, profiles: tuple[Path, ...] = PROFILES) -> Path | None:
    """Writes the profile to `target` and returns it; None where no profile of the host's can be read."""
    for path in profiles:
        try:
            profile = json.loads(path.read_bytes())
            rules = profile["syscalls"]
            for rule in rules:
                rule["names"] = [name for name in rule["names"] if name not in REFUSED]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        profile["syscalls"] = [rule for rule in rules if rule["names"]]
        if profile.get("defaultAction") == "SCMP_ACT_ALLOW":
            profile["syscalls"].append({"names": sorted(REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": 1})
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps(profile))
        temporary.replace(target)
        return target
    return None
