"""Real rank processes: they answer over ipc, fail in one line, and leave nothing when they or their parent end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rockroll.errors import PeerLost, ProcessDied, TrainError
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer

from .conftest import Ranks

Start = Callable[[TrainConfig], AbstractAsyncContextManager[Ranks]]
SERVER = (sys.executable, "-m", "rockroll.train.server")


async def test_two_ranks_over_ipc_do_what_one_does_here(
    config: TrainConfig, batch: Callable[..., TrainBatch], start_ranks: Start, tmp_path: Path
):
    here = RankTrainer(config)
    expected = [here.step(batch(step)) for step in range(2)]
    two = replace(config, ranks=2, zero_stage=2, tokens_per_microbatch=100)
    async with start_ranks(two) as ranks:
        info = await ranks.client.info()
        assert info.pids == [p.pid for p in ranks.processes] and info.ranks == 2 and info.version == 0
        longest = await ranks.client.worst_case(0)  # changes nothing, here on two ranks
        assert (longest.rows, longest.length) == (1, 128) and longest.peak_bytes > 1e6
        for step in range(2):
            report = await ranks.client.step(batch(step))
            assert report.version == expected[step].version
            for name in ("loss/policy", "loss/grad_norm", "tokens/trained", "logp_diff/mean_abs", "advantage/max"):
                assert report.metrics[name] == pytest.approx(expected[step].metrics[name], rel=1e-3, abs=1e-4), name
        ids = [4, 8, 15, 16, 23, 42]
        logprobs = await ranks.client.logprobs(ids)
        assert logprobs == pytest.approx(here.logprobs(ids), abs=1e-3)

        exported = await ranks.client.export(str(tmp_path / "out"))
        assert exported.version == 2 and (tmp_path / "out" / "model.safetensors").is_file()

        await ranks.client.save(str(tmp_path / "step_2"))
        await ranks.client.step(batch(2))
        assert await ranks.client.logprobs(ids) != logprobs
        assert await ranks.client.load(str(tmp_path / "step_2")) == 2
        assert await ranks.client.logprobs(ids) == logprobs

        with pytest.raises(TrainError, match="none of 0 samples"):  # refused by both, and both still answer
            await ranks.client.step(TrainBatch(step=3, samples=[]))
        assert (await ranks.client.info()).version == 2


async def test_a_killed_rank_ends_the_call_that_its_peer_waits_in(
    config: TrainConfig, batch: Callable[..., TrainBatch], start_ranks: Start
):
    async with start_ranks(replace(config, ranks=2)) as ranks:
        ranks.processes[1].kill()
        with pytest.raises((PeerLost, ProcessDied)):
            step = asyncio.ensure_future(ranks.client.step(batch()))
            await ranks.processes[1].wait()
            ranks.client.fail(ProcessDied("trainer-1 was killed"))
            await asyncio.wait_for(step, 20)


async def test_sigterm_ends_it_and_removes_its_socket(config: TrainConfig, start_ranks: Start):
    async with start_ranks(config) as ranks:
        socket = ranks.logs[0].parent / "t-0"
        assert socket.is_socket()
        ranks.processes[0].terminate()
        assert await asyncio.wait_for(ranks.processes[0].wait(), 10) == 0
        assert not socket.exists()
        assert "Traceback" not in ranks.log()


async def test_it_dies_with_its_parent_even_when_the_parent_is_killed(config: TrainConfig, tmp_path: Path):
    config = replace(config, address=f"ipc://{tmp_path}/t-{{rank}}")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    code = (
        "import subprocess\n"
        f"p = subprocess.Popen({[*SERVER, '--config', str(tmp_path / 'config.json'), '--rank', '0']!r},"
        " stderr=subprocess.PIPE)\n"
        "while b'ready' not in (line := p.stderr.readline()): assert line\n"
        "print(p.pid, flush=True); p.wait()"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    try:
        pid = int(await asyncio.wait_for(parent.stdout.readline(), 100))  # torch and DeepSpeed, on a busy machine
        dead = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched := os.pidfd_open(pid), dead.set)
    finally:
        parent.kill()
        await parent.wait()
    await asyncio.wait_for(dead.wait(), 10)
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)
    assert not (tmp_path / "t-0").exists()


async def ended(config: dict, folder: Path, *more: str) -> tuple[int, str]:
    (folder / "config.json").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        *SERVER, "--config", str(folder / "config.json"), *(more or ("--rank", "0")), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_what_it_cannot_start_with_is_one_line_and_exit_code_1(config: TrainConfig, tmp_path: Path):
    good = asdict(config) | {"address": f"ipc://{tmp_path}/t-{{rank}}"}
    for wrong, says in (
        ({"model": str(tmp_path / "none")}, "is not a folder; name a Hugging Face folder"),
        ({"address": ""}, "train address is empty"),
        ({"clip_low": 7}, "clip_low must be in (0, 1]"),
        ({"lr": "much"}, "Expected `float`, got `str` - at `$.lr`"),
    ):
        code, said = await ended(good | wrong, tmp_path)
        assert code == 1 and says in said and said.count("\n") == 1, said
    code, said = await ended(good, tmp_path, "--rank", "3")
    assert code == 1 and "rank must be 0 to 0" in said


async def test_sigterm_while_loading_ends_it_at_once(config: TrainConfig, tmp_path: Path):
    config = replace(config, address=f"ipc://{tmp_path}/t-{{rank}}")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    process = await asyncio.create_subprocess_exec(
        *SERVER, "--config", str(tmp_path / "config.json"), "--rank", "0", stderr=asyncio.subprocess.PIPE
    )
    await asyncio.sleep(0.5)  # some moment between its start and its being ready
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode in (0, -signal.SIGTERM)
    assert not (tmp_path / "t-0").exists()
