"""What holds a box, read from the kernel, and every way out of it that was tried. docs/security.md names each test."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from rockroll import home
from rockroll.sandbox import wire
from rockroll.sandbox.container import profile, runtime, seccomp
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import IS_ROOT, Lab, only_root

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
for word in sys.argv[1:]:
    number, *arguments = map(int, word.split(","))
    ctypes.set_errno(0)
    got = libc.syscall(number, *map(ctypes.c_long, arguments))
    print(word, "ok" if got >= 0 else errno.errorcode[ctypes.get_errno()])
"""


async def called(lab: Lab, *calls: str) -> dict[str, str]:
    """System calls (x86-64: "number,argument,...") → "ok" or the name of the error."""
    done = await lab.execute("python3", "-c", CALL, *calls)
    assert done.exit_code == 0, done
    return dict(line.split() for line in done.stdout.decode().splitlines())


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def said(lab: Lab, script: str) -> str:
    """Both streams of a script that may fail."""
    done = await lab.execute("bash", "-c", script)
    return (done.stdout + done.stderr).decode()


# ---- the profile, as the kernel has it -----------------------------------------------------------------------------


async def test_init_shell_and_program_are_held_alike(shared: Lab) -> None:
    await shared.run("sleep 1000 & disown")
    program = await shared.call("sandbox.processes", wire.Ref(id=shared.id))
    assert len(program) >= 3
    for pid in (shared.box.init, *shared.processes()):
        seen = status(pid)
        # bits of linux/capability.h: chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service
        allowed = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 10))
        for kind in ("CapBnd", "CapEff", "CapPrm"):
            assert int(seen[kind], 16) | allowed == allowed, (pid, kind, seen[kind])
        assert (int(seen["CapInh"], 16), int(seen["CapAmb"], 16)) == (0, 0)
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        if IS_ROOT:
            assert set(seen["Uid"].split()) == {str(runtime.MAPPED_FIRST_ID)}, "root of the box is nobody on the host"
    await shared.execute("pkill", "sleep")


@only_root
async def test_each_namespace_is_its_own(shared: Lab) -> None:
    for name in ("user", "mnt", "pid", "net", "ipc", "uts"):
        assert not Path(f"/proc/{shared.box.init}/ns/{name}").samefile(f"/proc/self/ns/{name}"), name


@pytest.mark.parametrize(
    "need",
    [
        "touch /tmp/f && chown 1:1 /tmp/f",  # CHOWN
        "su -s /bin/sh nobody -c 'umask 077; mkdir /tmp/n'; touch /tmp/n/f",  # SETUID, SETGID, DAC_OVERRIDE
        "su -s /bin/sh nobody -c 'touch /tmp/o'; chmod 600 /tmp/o",  # FOWNER
        "touch /tmp/s; chown :1 /tmp/s; chmod 2755 /tmp/s; test -g /tmp/s",  # FSETID
        "su -s /bin/sh nobody -c 'sleep 9 & echo $!' >/tmp/p; kill $(cat /tmp/p)",  # KILL
        "python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 80))'",  # NET_BIND_SERVICE
    ],
)
async def test_each_capability_that_is_kept_is_needed_by_an_image_s_root(shared: Lab, need: str) -> None:
    done = await shared.execute("sh", "-c", f"set -e; {need}")
    assert done.exit_code == 0, done


async def test_the_devices_are_the_harmless_ones(shared: Lab) -> None:
    # By stat: what is bound over a file has that file's type in a listing.
    found = await said(shared, "stat -c '%F %n' /dev/* /dev/*/* 2>/dev/null | sed -n 's/.* special file //p' | sort")
    found = " ".join(name for name in found.split() if not name.startswith("/dev/pts/"))
    assert found.split() == ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"]


async def test_no_path_of_the_host_is_shown_but_read_only_command_files(shared: Lab) -> None:
    standing = {"/dev/rr", "/proc/meminfo", "/sys/devices/system/cpu/online", profile.INIT}
    files = {"/etc/hosts", "/etc/hostname", "/run/.containerenv"}
    for line in Path(f"/proc/{shared.box.init}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point, options, kind = left.split(" ")[4], left.split(" ")[5].split(","), right.split(" ")[0]
        if kind in ("overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "shm"):
            continue
        if kind == "devtmpfs":
            assert point.startswith(("/dev/", "/proc/")), line  # the six devices, and /dev/null over what is masked
            continue
        assert point in standing | files, f"a mount that nobody has promised: {line}"
        assert "ro" in options or point in files, line
        standing.discard(point)
    assert standing == set()


async def test_nothing_gains_privilege_by_its_file(shared: Lab) -> None:
    done = await said(
        shared, "cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id; su -s /bin/sh nobody -c '/tmp/id -u -r; /tmp/id -u'"
    )
    assert len(set(done.split())) == 1, "a setuid program runs as who starts it"
    assert "1" in await said(shared, "grep NoNewPrivs /proc/self/status")


async def test_the_kernel_s_own_files_cannot_be_written(shared: Lab) -> None:
    targets = (
        "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/drop_caches /proc/sys/net/ipv4/ip_forward"
        " /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run"
        " /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
        " /sys/fs/cgroup/devices/devices.allow /sys/fs/cgroup/pids/release_agent"
        " /sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/pids/cgroup.procs"
        " /proc/self/uid_map /proc/self/gid_map"
    )
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():  # v1 has a folder of the box's own memory there
        targets += " /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cgroup.procs"
    script = f"for f in {targets}; do (echo 1 >$f) 2>/dev/null && echo WROTE $f; done"
    script += "; find /proc/sys /sys -writable -type f 2>/dev/null | grep -v ^/sys/fs/cgroup/ | head -5"
    script += "; mkdir /sys/fs/cgroup/*/sub 2>/dev/null && echo MADE"
    assert await said(shared, script) == ""


async def test_what_tells_of_the_host_is_masked(shared: Lab) -> None:
    paths = "/proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/acpi /proc/scsi /sys/firmware /proc/kmsg"
    paths += " /proc/pressure /sys/devices/virtual/powercap"
    script = f"for f in {paths}; do cat $f 2>/dev/null; ls -A $f/ 2>/dev/null; done"
    assert await said(shared, script) == ""
    addresses = await said(shared, "cut -c 1-16 /proc/kallsyms 2>/dev/null | sort -u")
    assert addresses.strip() in ("", "0" * 16)


async def test_no_process_of_the_host_is_seen_or_reached(shared: Lab) -> None:
    pids = [int(word) for word in (await said(shared, "cd /proc; ls -d [0-9]*")).split()]
    assert len(pids) <= len(shared.processes()) + 3
    assert "1" not in await said(
        shared, f"kill -0 {os.getpid()} 2>/dev/null && echo 1; kill -0 -- -{os.getpid()} 2>/dev/null && echo 1"
    )
    # Everything a box may signal, at once: its own.
    await shared.execute("sh", "-c", "kill -CONT -1")
    assert (await said(shared, "readlink /proc/1/root /proc/1/cwd")).split() == ["/", "/"]
    assert "catatonit" not in await said(shared, "ls /proc/1/root/usr/libexec/podman 2>&1")


@pytest.mark.parametrize("way", ["session", "execute"])
async def test_no_descriptor_leads_to_the_host(shared: Lab, way: str) -> None:
    script = "for p in /proc/[0-9]*; do for f in $p/fd/*; do stat -L -c '%d:%i %F' $f 2>/dev/null; done; done | sort -u"
    if way == "session":
        told = (await shared.run(script)).stdout.decode()
    else:
        told = await said(shared, script)
    kinds = {line.partition(" ")[2] for line in told.splitlines()}
    assert kinds <= {"fifo", "character special file", "directory", "anon_inode", "weird file"}, told
    folders = {line.split()[0] for line in told.splitlines() if line.endswith(" directory")}
    host = {
        f"{found.st_dev}:{found.st_ino}"
        for path in ("/", "/run", "/proc", home.home(), home.runtime_dir())
        if (found := os.stat(path))
    }
    assert not folders & host
    links = await said(shared, "readlink /proc/1/fd/* /proc/self/fd/* | sort -u")
    assert not re.search(r"rockroll-[0-9a-f]|/run/|cgroup|\.json|/var/lib", links), links


async def test_the_descriptor_of_a_host_s_folder_is_no_working_directory_either(shared: Lab) -> None:
    """The leak of runc (CVE-2024-21626): a working directory of /proc/self/fd/N that runc itself had open."""
    for number in range(3, 12):
        done = await shared.execute("sh", "-c", "pwd -P; ls -d ../../../../etc/shadow", cwd=f"/proc/self/fd/{number}")
        assert done.exit_code == 126, done


@only_root
async def test_null_is_the_box_s_own_where_its_root_is_the_host_s(host: SandboxHost, tmp_path: Path) -> None:
    lab = await Lab(host, mounts=[f"{tmp_path}:/out"]).up()
    node = os.stat("/dev/null")
    script = "stat -L -c %d:%i /proc/self/fd/0 /proc/$PPID/fd/0"
    for done in (
        await lab.execute("sh", "-c", script),
        await lab.run("stat -L -c %d:%i /proc/$$/fd/* /proc/self/fd/0"),
    ):
        assert f"{node.st_dev}:{node.st_ino}" not in done.stdout.decode().split(), done
    assert (await lab.execute("sh", "-c", "rm /dev/null && mkfifo /dev/null")).exit_code == 0
    with pytest.raises(Exception, match="has replaced its /dev/null"):
        await lab.execute("true")
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) == 0o666


# ---- ways out through the kernel -----------------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64's system calls")


@X86
async def test_system_calls_that_lead_out_are_refused(shared: Lab) -> None:
    names = {
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308, "open_tree": 428, "fsopen": 430,
        "fsmount": 432, "move_mount": 429, "mount_setattr": 442, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "open_by_handle_at": 304, "keyctl": 250, "add_key": 248, "request_key": 249,
        "init_module": 175, "finit_module": 313, "kexec_load": 246, "syslog": 103, "fanotify_init": 300, "acct": 163,
        "swapon": 167, "reboot": 169, "quotactl": 179, "iopl": 172, "ioperm": 173, "clock_settime": 227,
        "settimeofday": 164, "sethostname": 170, "setdomainname": 171, "kcmp": 312, "lookup_dcookie": 212,
    }  # fmt: skip
    got = await called(shared, *(f"{number},0,0,0,0,0" for number in names.values()))
    allowed = {name: got[f"{number},0,0,0,0,0"] for name, number in names.items()}
    assert {name: code for name, code in allowed.items() if code not in ("EPERM", "ENOSYS")} == {}


@X86
async def test_no_namespace_of_its_own_and_threads_all_the_same(shared: Lab) -> None:
    flags = [*seccomp.NEW_NAMESPACES, CLONE_NEWUSER | CLONE_NEWNS, CLONE_NEWUSER | CLONE_NEWNET | 17]
    got = await called(
        shared, *(f"272,{flag}" for flag in flags), *(f"56,{flag},0,0,0,0" for flag in flags), "435,0,88"
    )
    assert got.pop("435,0,88") == "ENOSYS", "clone3, whose flags no filter sees"
    assert set(got.values()) == {"EPERM"}
    assert await shared.out("python3 -c 'import threading as t; x = t.Thread(); x.start(); x.join(); print(1)'") == "1"
    assert (await shared.execute("unshare", "-U", "true")).exit_code != 0


@only_root
async def test_namespaces_are_refused_by_the_kernel_s_count_as_well(shared: Lab) -> None:
    assert await said(shared, "cat /proc/sys/user/max_user_namespaces") == "0\n"


async def test_no_device_can_be_made_or_opened(shared: Lab) -> None:
    script = """
    mknod /tmp/mem c 1 1; mknod /tmp/kmsg c 1 11; mknod /tmp/sda b 8 0; mknod /tmp/tun c 10 200; mknod /tmp/kvm c 10 232
    ls /dev/mem /dev/kmsg /dev/sda /dev/vda /dev/loop0 /dev/loop-control /dev/fuse /dev/kvm /dev/net/tun /dev/vsock
    """
    assert not [
        line
        for line in (await said(shared, script)).splitlines()
        if "ot permitted" not in line and "No such" not in line
    ]


async def test_ptrace_reaches_the_box_and_nobody_else(shared: Lab) -> None:
    trace = f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (os.getppid(), {os.getpid()}, {os.getppid()}, {shared.box.init}):
    if pid > 1 and libc.ptrace(16, pid, 0, 0) == 0:
        print("attached", pid)
    elif pid > 1:
        print(errno.errorcode[ctypes.get_errno()])
"""
    done = await shared.execute("python3", "-c", trace)
    assert set(done.stdout.decode().split()) <= {"ESRCH", "EPERM"}, done
    # Its parent, outside of the box, has no number in there: a program's parent is none.
    assert (await shared.execute("sh", "-c", "echo $PPID")).stdout == b"0\n"


@X86
async def test_the_shell_s_parent_cannot_be_traced(shared: Lab) -> None:
    trace = "import ctypes, os; l = ctypes.CDLL(None); print(os.environ['P'], l.ptrace(16, int(os.environ['P']), 0, 0))"
    assert await shared.out(f'P=$PPID python3 -c "{trace}"') == "0 -1"


async def test_a_crash_leaves_nothing_on_the_host(shared: Lab) -> None:
    before = {*Path("/").glob("core*"), *Path("/tmp").glob("core*")}
    await shared.execute("sh", "-c", "ulimit -c unlimited; cd /tmp; sh -c 'kill -SEGV $$'")
    if not Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        assert {*Path("/").glob("core*"), *Path("/tmp").glob("core*")} <= before


# ---- what lies on the host -----------------------------------------------------------------------------------------


async def test_folders_and_sockets_on_the_host_are_this_user_s_alone(shared: Lab) -> None:
    await shared.run("true")
    for top in (home.node_dir(), home.runtime_dir(), home.home() / "conf"):
        assert stat.S_IMODE(top.stat().st_mode) == 0o700 and top.stat().st_uid == os.getuid()
    folder = home.runtime_dir() / "b" / shared.id
    assert folder.is_dir()
    for path in (home.runtime_dir() / "b", *folder.iterdir()):
        if path.is_dir() and path.name != "s":
            assert not stat.S_IMODE(path.stat().st_mode) & 0o066, path
    spools = [path for path in home.node_dir().rglob("*") if path.is_file()]
    assert spools and not [path for path in spools if stat.S_IMODE(path.stat().st_mode) & 0o022], "writable by others"


async def test_the_node_cannot_be_called_from_a_box(shared: Lab) -> None:
    sockets = await said(shared, "cat /proc/net/unix | tail -n +2; find / -xdev -type s 2>/dev/null; ls /dev/rr 2>&1")
    assert "node.sock" not in sockets and "podman" not in sockets, sockets
