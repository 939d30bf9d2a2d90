"""The one tree of failures. Every error says the rule, the value got and the cure, in one sentence.

In: what went wrong, in words. Out: a class that tells whose fault it is and which exit code the CLI gives.
An error crosses process borders by its class name and `fields` (see rpc/), so every class here takes
(message, **fields) and nothing else. Leaves printing and retrying to the callers.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RockrollError(Exception):
    """Something failed, and `message` says what, with which value, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __str__(self) -> str:
        return self.message


class UsageError(RockrollError):
    """The caller asked for something that cannot be: exit code 2."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has a wrong key or value; the message names file, line and the nearest valid key."""


class HostError(RockrollError):
    """This host lacks something (Podman, a runtime, disk); the message carries the cure."""


class NoRoom(HostError):
    """No node of the cluster has room for another box; the message says why each one has none."""


class SandboxError(RockrollError):
    """A sandbox could not do what was asked."""


class SandboxNotFound(SandboxError):
    """No sandbox has that id, id prefix or name. fields, where one had: cause, ended."""


class SnapshotNotFound(SandboxError):
    """No snapshot has that name."""


class ImageMissing(SandboxError):
    """The image is not in the local store and could not be pulled."""


class LimitNotEnforced(SandboxError):
    """A limit was asked for that this host does not enforce."""


class QuotaExceeded(SandboxError):
    """A quota of node.yaml does not allow what was asked for; the message names it."""


class SandboxLost(SandboxError):
    """The sandbox died while something was waiting on it. Infrastructure, never the policy's score. fields: cause."""


class SessionError(SandboxError):
    """A session could not be opened or used."""


class FileError(SandboxError):
    """A path in the sandbox is missing, is not what was asked for, or leads out of the sandbox."""


class ModelServiceError(RockrollError):
    """A model call was refused. fields: status (HTTP), type, code, param, as OpenAI names them."""


class EngineError(RockrollError):
    """The engine refused or failed a request."""


class TrainError(RockrollError):
    """The trainer refused a batch, a checkpoint or a configuration."""


class CanaryError(TrainError):
    """Trainer and engine disagree about the log-probs of one fixed prompt: the weights did not arrive."""


class EnvError(RockrollError):
    """The environment or the task failed, not the policy: the episode is replaced, not scored."""


class AgentError(RockrollError):
    """The agent program could not be started or broke by itself."""


class PeerLost(RockrollError):
    """The process at the other end of a call is gone."""


class WireMisfit(RockrollError):
    """The process at the other end of a link is of another rockroll, which says things otherwise."""


class ProcessDied(RockrollError):
    """A child process of the run died. fields: name, code, log_tail."""


class RemoteError(RockrollError):
    """An error that is not one of ours was raised in another process; the message carries its type and text."""


def by_name(name: str) -> type[RockrollError]:
    """The class of that name in this tree; RemoteError for a name that is not in it."""
    found: type[RockrollError] = RemoteError
    todo: list[type[RockrollError]] = [RockrollError]
    while todo:
        cls = todo.pop()
        if cls.__name__ == name:
            found = cls
        todo.extend(cls.__subclasses__())
    return found
