"""What `execute` promises: one program, no shell, the kernel's own word on how it ended."""

from __future__ import annotations

import asyncio
import time

import pytest

from rockroll.errors import UsageError
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_argv_is_passed_as_it_is(shared: Lab) -> None:
    done = await shared.execute("printf", "%s|", "a b", "$HOME", "*", "'\"", "ü")
    assert done.stdout.decode() == "a b|$HOME|*|'\"|ü|"


async def test_exit_codes_are_the_kernels(shared: Lab) -> None:
    assert [(await shared.execute("sh", "-c", f"exit {code}")).exit_code for code in (0, 1, 255)] == [0, 1, 255]
    assert (await shared.execute("sh", "-c", "kill -SEGV $$")).exit_code == 139
    assert (await shared.execute("sh", "-c", "kill -KILL $$")).exit_code == 137
    forged = await shared.execute("sh", "-c", "echo 0; echo 'exit code 0' >&2; exit 9")
    assert (forged.exit_code, forged.outcome) == (9, "ok")


async def test_streams_stdin_environment_and_folder(shared: Lab) -> None:
    data = bytes(range(256)) * 4096
    done = await shared.execute("sh", "-c", "cat; echo $A-$PWD >&2", stdin=data, env={"A": "b"}, cwd="/srv")
    assert (done.stdout, done.stderr) == (data, b"b-/srv\n")
    assert (await shared.execute("cat")).stdout == b""
    assert (
        await shared.execute("sh", "-c", "echo x >/dev/stdout; echo y >/dev/stderr; cat /dev/stdin", stdin=b"z")
    ).output == "x\nzy\n"


async def test_what_cannot_run_is_said_as_a_shell_says_it(shared: Lab) -> None:
    missing = await shared.execute("nosuchprogram")
    assert (missing.exit_code, missing.stdout) == (127, b"") and b"not found" in missing.stderr
    assert (await shared.execute("/etc/passwd")).exit_code == 126
    nowhere = await shared.execute("true", cwd="/nowhere")
    assert nowhere.exit_code == 126 and b"/nowhere" in nowhere.stderr
    with pytest.raises(UsageError, match="program"):
        await shared.execute()
    with pytest.raises(UsageError, match="NUL"):
        await shared.execute("echo", "a\0b")
    with pytest.raises(UsageError, match="timeout"):
        await shared.execute("true", timeout=0)


async def test_a_daemon_holds_neither_the_call_nor_loses_its_life(lab: Lab) -> None:
    begun = time.perf_counter()
    done = await lab.execute("sh", "-c", "(sleep 1; echo late) & setsid -f sleep 345; echo now")
    assert done.stdout == b"now\n" and time.perf_counter() - begun < 1
    assert len(lab.named("345")) == 1


async def test_output_over_the_limit_is_counted(shared: Lab) -> None:
    done = await shared.execute("head", "-c", "5000000", "/dev/zero", max_output=1000)
    assert (len(done.stdout), done.truncated_bytes, done.exit_code) == (1000, 4_999_000, 0)


async def test_a_cancelled_execute_is_killed(lab: Lab) -> None:
    call = asyncio.create_task(lab.execute("sh", "-c", "setsid -f sleep 876; sleep 876"))
    while len(lab.named("876")) < 2:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not lab.named("876")


async def test_a_cancelled_start_leaves_nothing(lab: Lab) -> None:
    for delay in (0.0, 0.005, 0.02, 0.04):
        call = asyncio.create_task(lab.execute("sleep", "876"))
        await asyncio.sleep(delay)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await lab.until_none("876")


async def test_it_runs_with_the_containers_own_privileges(shared: Lab) -> None:
    """The same seccomp filter, capabilities and no-new-privileges as Podman gives, for sessions and executes."""
    lines = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/{}/status"
    init = (await shared.execute("sh", "-c", lines.format("1"))).stdout
    assert b"NoNewPrivs:\t1" in init and b"Seccomp:\t2" in init
    assert (await shared.execute("sh", "-c", lines.format("self"))).stdout == init
    assert (await shared.run(lines.format("self"))).stdout == init


async def test_many_at_once(shared: Lab) -> None:
    done = await asyncio.gather(*(shared.execute("sh", "-c", f"echo {i}; exit {i}") for i in range(12)))
    assert [(o.stdout, o.exit_code) for o in done] == [(f"{i}\n".encode(), i) for i in range(12)]
