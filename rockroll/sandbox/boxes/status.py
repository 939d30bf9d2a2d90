"""What is true of one box now, in a few words, and the errors that follow from it.

In: what the box's life and its recycling say. Out: whether it takes commands, or the sentence why not. Acts on nothing:
who may write what is said at each field; the table of states is lifecycle.py.
"""

from __future__ import annotations

from rockroll.errors import SandboxError, SandboxLost, SandboxNotFound
from rockroll.sandbox.boxes.lifecycle import Event, after, story
from rockroll.sandbox.wire import Cause, Outcome, State


class Status:
    """Written by life.py, but for `busy`. What needs a running box raises SandboxLost or SandboxError without one."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.state: State = "starting"
        self.cause: Cause | None = None
        """How it ended; None while it runs, and where somebody stopped it."""
        self.ended: float | None = None
        self.leaving: Outcome | None = None
        """What a stop or a removal under way will have been to the calls that it ends."""
        self.asked: Cause | None = None
        """Of a removal under way, or done."""
        self.removed = False
        self.busy = ""
        """What is being done to it that bears no command meanwhile; written by whoever does that."""

    def move(self, event: Event) -> None:
        self.state = after(self.state, event)

    def has_init(self) -> bool:
        return self.state in ("running", "paused")

    def need_running(self) -> None:
        if self.state != "running" or self.leaving or self.busy:
            raise self.not_running()

    def need_rest(self) -> None:
        """SandboxError while something is done to the box that bears nothing beside it."""
        if self.busy:
            raise self.not_running()

    def need_container(self) -> None:
        if self.removed:
            raise SandboxNotFound(f"sandbox {self.id} is gone; {story(self.cause, self.ended)}", cause=self.cause)

    def not_running(self) -> Exception:
        """Why it takes no command."""
        if self.asked or self.state == "gone":
            cause = self.cause or self.asked
            return SandboxLost(f"sandbox {self.id} is gone; {story(cause, self.ended)}", cause=cause)
        if self.state == "exited":
            said = f"sandbox {self.id} is exited; {story(self.cause, self.ended)}"
            return SandboxLost(f"{said}; `restore` brings its files and sessions back", cause=self.cause)
        if self.state == "stopped":
            return SandboxLost(f"sandbox {self.id} is stopped; start it again, or `restore` it with its sessions")
        leaving = "being stopped" if self.leaving == "killed" else "being deleted"
        doing = self.busy or (leaving if self.leaving and self.state == "running" else self.state)
        return SandboxError(f"sandbox {self.id} is {doing}: it takes commands only while it runs")
