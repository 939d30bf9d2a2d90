"""`rockroll sandbox …`: sandboxes by hand.

In: the command line. Out: tables for people, JSON with --json, the raw bytes of what a command printed. Leaves each
command to the file of its topic, in the order of this list; what those import at their top is what `--help` needs and
no more.
"""

from __future__ import annotations

import typer

from rockroll.cli import boxes, commands, files, model, network, pool, processes, snapshots
from rockroll.cli.server_option import server_option

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Sealed sandboxes: start them, run commands in them, copy files, look at them, remove them.\n\n"
    "A sandbox has no network, no capabilities and none of your files. Example:\n\n"
    "  rockroll sandbox up --name demo\n\n"
    "  rockroll sandbox exec demo -- bash -c 'id; uname -a'\n\n"
    "  rockroll sandbox down demo",
)

app.callback()(server_option)
app.command()(boxes.up)
app.command()(boxes.ls)
app.command()(files.cp)
app.command()(files.watch)
app.command()(processes.logs)
app.command()(processes.ps)
app.command()(processes.kill)
app.command()(processes.env)
app.command()(processes.stats)
app.command()(snapshots.snapshot)
app.command()(snapshots.snapshots)
app.command()(snapshots.fork)
app.command()(boxes.stop)
app.command()(boxes.start)
app.command()(boxes.restore)
app.command()(boxes.restart)
app.command()(boxes.down)
app.command("exec", context_settings={"ignore_unknown_options": False})(commands.exec_)
app.command()(commands.follow)
app.command()(commands.commands)
app.command()(network.network)
app.command()(network.forward)
app.command()(model.model)
app.add_typer(pool.app, name="pool")
