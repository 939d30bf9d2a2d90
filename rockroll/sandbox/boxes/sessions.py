"""The sessions of one box: those that are open, and those that come back at their next command.

In: names; the box's end, its next start, changes of its environment. Out: open sessions, each with a file that keeps
what it knows. Leaves one session to session.py, the files to saved.py, and whether the box runs to status.py.

    (none) ── first use, create ──► open ── the box stops or dies, the node ends ──► past ── next command ──► open
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rockroll.errors import SessionError
from rockroll.sandbox.boxes.hull import Hull
from rockroll.sandbox.boxes.status import Status
from rockroll.sandbox.container.cgroup import Scope
from rockroll.sandbox.exec import saved
from rockroll.sandbox.exec.environment import Changes
from rockroll.sandbox.exec.saved import Saved, SavedSession, Slot
from rockroll.sandbox.exec.session import Session
from rockroll.sandbox.wire import SessionInfo


class Sessions:
    """See the module's drawing."""

    def __init__(self, status: Status, hull: Hull, created: float) -> None:
        """created: of the box, Unix time."""
        self._status, self._hull, self._created = status, hull, created
        self.open: dict[str, Session] = {}
        self.past: dict[str, SavedSession] = {}
        self.saved = Saved(status.id)
        self._slots: dict[Scope, Slot] = {}
        self._ahead: str | None = None
        """A session that was opened before anybody asked for it, until somebody uses it."""
        self._told_late: dict[str, Changes] = {}
        """Changed variables that a past session has not been told of."""

    async def open_ahead(self, name: str) -> None:
        """Opens a session for whoever will be first to use it, by a command or by `create`."""
        await self.create(name, {}, None)
        self._ahead = name

    def get(self, name: str) -> Session:
        """For a command: the one of that name, or a new one whose shell is yet to open."""
        if name == self._ahead:
            self._ahead = None
        return self.open.get(name) or self.make(name, {}, None)

    async def create(self, name: str, env: Mapping[str, str], cwd: str | None) -> Session:
        """Opens a session. Raises SessionError where one has that name, also one that is yet to come back."""
        if name == self._ahead and name in self.open:
            self._ahead = None
            if not env and cwd is None:
                return self.open[name]
            await self.close(name)
        if name in self.open:
            raise SessionError(f"session {name!r} exists; close it first or use another name")
        past = self.past.get(name)
        if past and past != saved.fresh(name, {}, None):
            raise SessionError(
                f"session {name!r} comes back at its next command with all it knew; close it first to begin anew, or"
                " use another name"
            )
        self.past.pop(name, None)
        session = self.make(name, env, cwd)
        try:
            await session.open()
        except BaseException:
            await self.close(name)
            raise
        return session

    def make(self, name: str, env: Mapping[str, str], cwd: str | None) -> Session:
        """One whose shell opens at its first command; what a past one of this name knew goes into it."""
        self._status.need_running()
        past = self.past.pop(name, None)
        kept = past or saved.fresh(name, env, cwd)
        scope = self._hull.running_cgroup.scope(keeps=True)
        slot = self._slots[scope] = self.saved.slot(kept)
        session = self.open[name] = Session(
            self._hull,
            name,
            scope,
            env=kept.env,
            cwd=kept.cwd,
            keep=slot.keep,
            past=past.state if past else None,
        )
        if past and (late := self._told_late.pop(name, {})):
            session.change_env(late)
        return session

    async def close(self, name: str) -> None:
        """Ends a session and all it runs. Raises SessionError where there is none of that name."""
        if name not in self.open and self.past.pop(name, None):
            self.saved.forget(name)
            return
        session = self._get(name)
        await session.close()
        if self.open.get(name) is session:
            del self.open[name]
            self.saved.forget(name)
        self._let_go(session)

    def _let_go(self, session: Session) -> None:
        # Once, however many close it: a scope given back twice is two sessions', and one's timeout kills the other's.
        if slot := self._slots.pop(session.scope, None):
            slot.close()
            self._hull.give_back(session.scope)

    def _get(self, name: str) -> Session:
        try:
            return self.open[name]
        except KeyError:
            there = ", ".join(sorted(self.open)) or "none"
            raise SessionError(f"no session {name!r}; open: {there}") from None

    def infos(self) -> list[SessionInfo]:
        """Those that are open, and the past ones; not one that nobody has asked for."""
        past = [SessionInfo(session=name, pid=0, busy=False, created=self._created) for name in self.past]
        return [session.info() for name, session in self.open.items() if name != self._ahead] + past

    def state_of(self, name: str) -> tuple[bytes, dict[str, str], str | None, bool]:
        """As Session.saved, of a past one too. Raises SessionError."""
        past = self.past.get(name)
        return (past.state, past.env, past.cwd, False) if past else self._get(name).saved()

    def change_env(self, changes: Changes) -> None:
        """From each one's next command on."""
        for session in self.open.values():
            session.change_env(changes)
        for name in self.past:
            self._told_late[name] = {**self._told_late.get(name, {}), **changes}

    # -- the box's ends and starts

    async def end_all(self) -> None:
        """The box is dead, or its node ends; what is kept of them stays."""
        sessions, self.open = self.open, {}
        await asyncio.gather(*(session.close() for session in sessions.values()))
        for session in sessions.values():
            self._let_go(session)
            if session.name == self._ahead:  # it has no past that could come back
                self.saved.forget(session.name)
                continue
            self._told_late[session.name] = {**self._told_late.get(session.name, {}), **session.pending()}
        self._ahead = None

    def load(self) -> None:
        """What an earlier node has kept comes back."""
        self.past = self.saved.load()

    def come_back(self, *, whole: bool) -> None:
        """The box starts again. whole: with what they knew; else each is new, and says so."""
        past = self.saved.load() or self.past
        if not whole:
            past = {name: saved.fresh(name, {}, None) for name in past}
            self.saved.clear()
        self.past = past

    def forget_all(self) -> None:
        """As if there had never been any; none is open."""
        self.past, self._told_late, self._ahead = {}, {}, None
        self.saved.clear()
