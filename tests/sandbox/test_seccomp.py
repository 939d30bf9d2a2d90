"""The seccomp profile: the host's, less what leads out. Whether it holds is tested in test_security.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rockroll.errors import HostError
from rockroll.sandbox.container import seccomp

HOST = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
    "syscalls": [
        {"names": ["read", "unshare", "clone", "clone3"], "action": "SCMP_ACT_ALLOW", "args": []},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": []},
    ],
}


def allowed(profile: dict, name: str) -> list[dict]:
    return [rule for rule in profile["syscalls"] if name in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"]


def test_what_the_host_allows_stays_but_for_what_leads_out() -> None:
    profile = seccomp.sealed(HOST)
    assert allowed(profile, "read") and profile["archMap"] == HOST["archMap"]
    for name in ("unshare", "mount", "clone3", "keyctl", "setns"):
        assert allowed(profile, name) == [], name
    assert all(rule["args"] for name in ("clone", "socket") for rule in allowed(profile, name)), (
        "by their arguments only"
    )
    assert all(rule["names"] for rule in profile["syscalls"]), "no rule is left empty"


def test_a_change_of_the_hosts_profile_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "host.json"
    place.write_text(json.dumps(HOST))
    monkeypatch.setattr(seccomp, "PLACES", (tmp_path / "none.json", place))
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    for names in (["read"], ["read", "write"]):
        place.write_text(json.dumps({**HOST, "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW", "args": []}]}))
        monkeypatch.setattr(seccomp, "_checked", set())  # as in a new node
        written = Path(seccomp.profile())
        assert json.loads(written.read_text())["syscalls"][0]["names"] == names
    written.unlink()
    assert Path(seccomp.profile()).exists(), "one that somebody has removed is made again"


def test_a_host_without_a_profile_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "PLACES", (tmp_path / "none.json",))
    with pytest.raises(HostError, match="containers-common"):
        seccomp._of_host()
