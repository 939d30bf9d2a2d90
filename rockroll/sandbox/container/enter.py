"""A program that starts processes inside containers: what `runc exec` does, in a tenth of its time.

Run by spawner.py as `python -I -S enter.py FD`: one thread, standard library only, nothing to import later. In: orders
on the socket FD, one JSON object each, with descriptors. Out: each order's process, a child of the node (this program
forks twice, and the node is a child subreaper), and on the order's own pipe its pid, or what failed.

    node ──order──► this ──fork──► joins the cgroups, enters the namespaces ──fork──► gives up every privilege, execs
                                       │ pid ──► pipe                                     │ failure ──► pipe
                                       └ exits: its child is the node's                   └ exec closes the pipe

What must hold, and why: see docs/decisions/004-enter.md. In short: not dumpable from before the first namespace until
exec, so that nothing in the box can look into it; no descriptor but the three given; the box's own seccomp program,
capabilities, no-new-privileges, limits, groups and a session keyring of its own; nothing is left out silently: a step
that fails ends the process before exec.
"""

from __future__ import annotations

import array
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_SET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 23, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
SECCOMP_MODE_FILTER = 2
CLONE_NEWUSER = 0x10000000
CAP_VERSION_3 = 0x20080522
KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
SYS_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_MACHINE = os.uname().machine
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_SECCOMP_GET_FILTER = 17, 0x4206, 0x4207, 0x420C
WALL = 0x40000000
INTERRUPT_AGAIN_S = 0.1
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
MAX_ORDER = 1 << 20
MAX_FDS = 32


class Failed(Exception):
    """A step that failed: (step, errno)."""


def check(step: str, result: int) -> int:
    if result < 0:
        raise Failed(step, ctypes.get_errno())
    return result


def prctl(step: str, option: int, *arguments: int) -> int:
    return check(step, _libc.prctl(option, *(ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4])))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def serve(orders: socket.socket) -> None:
    """One fork an order, until the node closes its end."""
    while True:
        data, ancillary, _, _ = orders.recvmsg(MAX_ORDER, socket.CMSG_SPACE(MAX_FDS * 4))
        if not data:
            return
        fds = array.array("i")
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(raw[: len(raw) - len(raw) % 4])
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            orders.close()
            order = json.loads(data)
            if "seccomp_of" in order:
                tell_seccomp(order["seccomp_of"], fds[0])
            if "counters" in order:
                set_counters(order["counters"], *fds)
            enter(order, list(fds))
        for fd in fds:
            os.close(fd)


def tell_seccomp(pid: int, report: int) -> NoReturn:
    """Writes the seccomp programs that pid runs under, as the kernel has them, the newest first; one a line, in hex.

    pid is stopped for some tens of microseconds.
    """
    try:
        check("seize", _libc.ptrace(PTRACE_SEIZE, pid, 0, 0))
        # Under load one interrupt in a thousand was seen to be lost, and the wait for it never ended: it is repeated.
        signal.signal(signal.SIGALRM, lambda *_: _libc.ptrace(PTRACE_INTERRUPT, pid, 0, 0))
        signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN_S, INTERRUPT_AGAIN_S)
        check("interrupt", _libc.ptrace(PTRACE_INTERRUPT, pid, 0, 0))
        os.waitpid(pid, WALL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        programs: list[str] = []
        while (length := _libc.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, len(programs), None)) > 0:
            raw = ctypes.create_string_buffer(length * 8)
            check("filter", _libc.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, len(programs), raw))
            programs.append(raw.raw.hex())
        if length < 0 and ctypes.get_errno() != errno.ENOENT:
            raise Failed("filter", ctypes.get_errno())
        check("detach", _libc.ptrace(PTRACE_DETACH, pid, 0, 0))
    except Failed as error:
        fail(report, *error.args)
    except OSError as error:
        fail(report, "seccomp", error.errno or 0)
    with os.fdopen(report, "w") as file:
        file.write("".join(f"program {program}\n" for program in programs) + "done\n")
    os._exit(0)


def set_counters(counters: dict[str, int], pidfd: int, report: int) -> NoReturn:
    """The most that the user namespace of pidfd may have of each: /proc/sys/user is that of who opens it."""
    try:
        prctl("dumpable", PR_SET_DUMPABLE, 0)
        check("namespaces", _libc.setns(pidfd, CLONE_NEWUSER))
        for name, most in counters.items():
            with open(f"/proc/sys/user/{name}", "w") as file:
                file.write(str(most))
    except Failed as error:
        fail(report, *error.args)
    except OSError as error:
        fail(report, "counters", error.errno or 0)
    os.write(report, b"done\n")
    os._exit(0)


def enter(order: dict[str, Any], fds: list[int]) -> NoReturn:
    """The first child: everything that needs the host's own privileges, then the namespaces."""
    stdin, stdout, stderr, report, pidfd, *groups = fds
    os.set_inheritable(report, False)
    try:
        prctl("dumpable", PR_SET_DUMPABLE, 0)
        for group in groups:
            os.write(group, b"0")  # this process; its child is born in the same groups
            os.close(group)
        if (adjust := order["oom_score_adj"]) is not None:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(adjust))
        for which, soft, hard in order["rlimits"]:
            resource.setrlimit(which, (soft, hard))
        check("namespaces", _libc.setns(pidfd, order["namespaces"]))
        child = os.fork()
    except Failed as error:
        fail(report, *error.args)
    except OSError as error:
        fail(report, "prepare", error.errno or 0)
    if child == 0:
        become(order, (stdin, stdout, stderr), report)
    os.write(report, b"pid %d\n" % child)
    os._exit(0)


def become(order: dict[str, Any], streams: tuple[int, int, int], report: int) -> NoReturn:
    """The second child, inside: gives up what the box must not have, and becomes the program."""
    step = "start"
    try:
        os.setsid()
        default = ctypes.create_string_buffer(32)  # struct sigaction of zeros: SIG_DFL
        for number in range(1, signal.NSIG):  # by system call: the C library hides 32 and 33, which may be ignored
            _libc.syscall(SYS_RT_SIGACTION[_MACHINE], number, default, None, 8)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        step = "descriptors"
        report = _arrange(streams, report)
        step = "keyring"
        check(step, _libc.syscall(SYS_KEYCTL[_MACHINE], KEYCTL_JOIN_SESSION_KEYRING, 0))
        step = "privileges"
        _privileges(order)
        step = "folder"
        os.umask(order["umask"])
        os.chdir(order["cwd"])
        if not os.getcwd().startswith("/"):  # noqa: PTH109 - pathlib is not loaded here
            raise OSError(2, "the folder is not in the sandbox")
        step = "seccomp"
        for program in order["seccomp"]:
            raw = ctypes.create_string_buffer(bytes.fromhex(program))
            load = _Program(len(program) // 16, ctypes.addressof(raw))
            check(step, _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(load), 0, 0))
        step = "exec"
        _exec(order["argv"], order["env"])
    except Failed as error:
        fail(report, *error.args)
    except OSError as error:
        fail(report, step, error.errno or 0)


def _arrange(streams: tuple[int, int, int], report: int) -> int:
    """0, 1 and 2 as given, the report at 3, and nothing else: a folder of the host left open would be a way out."""
    high = [os.dup2(fd, 100 + number, inheritable=False) for number, fd in enumerate((*streams, report))]
    for target, fd in enumerate(high[:3]):
        os.dup2(fd, target, inheritable=True)
    os.dup2(high[3], 3, inheritable=False)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return 3


def _privileges(order: dict[str, Any]) -> None:
    bounding, effective, permitted, inheritable, ambient = order["capabilities"]
    number = 0
    while _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if not bounding >> number & 1:
            prctl("bounding set", PR_CAPBSET_DROP, number)
        number += 1
    prctl("keep capabilities", PR_SET_KEEPCAPS, 1)
    os.setgroups(order["groups"])
    os.setresgid(order["gid"], order["gid"], order["gid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    # Becoming another user may have made this process dumpable again.
    prctl("dumpable", PR_SET_DUMPABLE, 0)
    prctl("keep capabilities", PR_SET_KEEPCAPS, 0)
    header = _CapHeader(CAP_VERSION_3, 0)
    halves = (_CapData * 2)(
        *((_half(effective, n), _half(permitted, n), _half(inheritable, n)) for n in (0, 1)),
    )
    check("capabilities", _libc.syscall(SYS_CAPSET[_MACHINE], ctypes.byref(header), ctypes.byref(halves)))
    prctl("ambient set", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for bit in range(number):
        if ambient >> bit & 1:
            prctl("ambient set", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit)
    if order["no_new_privileges"]:
        prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)


def _exec(argv: list[str], env: dict[str, str]) -> NoReturn:
    """execvpe, without the module that Python's own would import here."""
    program = argv[0]
    kept: OSError = FileNotFoundError(errno.ENOENT, "not found")
    for folder in [""] if "/" in program else env.get("PATH", "/usr/bin:/bin").split(":"):
        try:
            os.execve(f"{folder}/{program}" if folder else program, argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            kept = error
    raise kept


def _half(bits: int, number: int) -> int:
    return bits >> 32 * number & 0xFFFFFFFF


def fail(report: int, step: str, code: int) -> NoReturn:
    os.write(report, f"failed {step} {code}\n".encode())
    os._exit(127)


if __name__ == "__main__":
    prctl("parent", PR_SET_PDEATHSIG, signal.SIGKILL)
    # Children are not waited for: until then they would count as processes of the box whose groups they have joined.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
