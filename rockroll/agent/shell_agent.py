"""The agent of `rockroll:shell`: asks a model for one Bash command at a time and shows it what came out.

In: the goal in $ROCKROLL_INSTRUCTION, an OpenAI-style endpoint at $OPENAI_BASE_URL, a folder to work in (the current
one). Out: whatever the commands did there; exit code 0, or 1 with one sentence on stderr where the model could not be
asked. Leaves grading to the task, and sampling (temperature, length) to the endpoint's own defaults.

It runs inside the sandbox, thousands of times in a training run, so it is made to start fast: Python's standard
library only, `python3 -I -S shell_agent.py`, and no import that costs more than the work. `json` and `socket` would
be 10 ms of an episode's 15, nearly all of it for `re` and `enum`; the C modules under them do what is needed here.
"""

import _json
import _socket
import os
import select
import sys
import time

TURNS = 4
"""Commands at most; the model ends earlier by answering `done`, or nothing."""
COMMAND_SECONDS = 10
"""A command that runs longer is killed, with all that it started in its process group."""
SHOWN_CHARACTERS = 200
"""Of a command's output; what is longer is cut."""
READ_BYTES = 65536
"""A command that writes more is killed: nobody will see it."""

SYSTEM = "You work in a Linux shell. Answer with one Bash command, or done."
EXAMPLES = (
    ("Create the file kol with the words red blue.", "echo red blue > kol"),
    ("ok", "done"),
    ("Copy fen and call the copy mip.", "cp fen mip"),
    ("ok", "done"),
    ("Add the word green to the end of tus.", "echo green >> tus"),
    ("ok", "done"),
    ("Write the last word of gad to wob.", "cat gad"),
    ("ok: one two", "echo two > wob"),
    ("ok", "done"),
    ("Delete the file that hin names.", "cat hin"),
    ("ok: ruv", "rm ruv"),
    ("ok", "done"),
)
"""With --examples, what the conversation begins with: a model that was never taught this work sees it done. Each
file has a name of its own: the smallest models answer with the name they saw most, not with the one asked for."""


class Unanswered(Exception):
    """The model could not be asked."""


class _JsonRules:
    """What `json.JSONDecoder` tells its C scanner."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


class Model:
    """One conversation with a chat-completions endpoint, over one kept-alive connection."""

    def __init__(self, base_url: str, key: str) -> None:
        scheme, _, rest = base_url.partition("://")
        address, _, path = rest.partition("/")
        self.host, _, port = address.partition(":")
        if scheme != "http" or not self.host:
            raise Unanswered(f"OPENAI_BASE_URL is http://HOST:PORT/PATH; got {base_url!r}")
        self.port = int(port or 80)
        self.head = (
            f"POST /{path.rstrip('/')}/chat/completions HTTP/1.1\r\nHost: {address}\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: "
        )
        self.messages: list[str] = []
        self.connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self.connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        try:
            self.connection.connect((self.host, self.port))
        except OSError as error:
            raise Unanswered(f"no model answers at {base_url}: {error}") from None

    def show(self, system: str, examples: tuple[tuple[str, str], ...]) -> None:
        """Begin the conversation with these messages."""
        self._add("system", system)
        for said, answer in examples:
            self._add("user", said)
            self._add("assistant", answer)

    def ask(self, said: str) -> str:
        """Send one more user message; the assistant's answer, which stays in the conversation as it came."""
        self._add("user", said)
        body = f'{{"model":"default","messages":[{",".join(self.messages)}]}}'.encode()
        status, reply = self._post(body)
        if status != 200:
            raise Unanswered(f"the model's endpoint answered {status}: {reply[:300]}")
        scan = _json.make_scanner(_JsonRules)  # pyright: ignore[reportArgumentType]
        answer, _ = scan(reply, len(reply) - len(reply.lstrip()))
        content = answer["choices"][0]["message"]["content"] or ""
        self._add("assistant", content)
        return content

    def _add(self, role: str, content: str) -> None:
        self.messages.append(f'{{"role":"{role}","content":{_json.encode_basestring_ascii(content)}}}')

    def _post(self, body: bytes) -> tuple[int, str]:
        try:
            self.connection.sendall(f"{self.head}{len(body)}\r\n\r\n".encode() + body)
            received = b""
            while b"\r\n\r\n" not in received:
                received += self._receive()
            head, _, reply = received.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), None)
            if length is None:
                raise Unanswered("the model's endpoint sent a reply without Content-Length")
            while len(reply) < length:
                reply += self._receive()
        except OSError as error:
            raise Unanswered(f"the connection to the model broke: {error}") from None
        return int(lines[0].split(" ")[1]), reply.decode()

    def _receive(self) -> bytes:
        data = self.connection.recv(65536)
        if not data:
            raise Unanswered("the model's endpoint hung up")
        return data


def run(command: str, seconds: float = COMMAND_SECONDS) -> tuple[bytes, int]:
    """What a command printed (stdout and stderr as one) and its exit code; 124 where it was killed at a limit.

    It is over when the shell is: what it left in the background may still hold its output, and is not waited for.
    """
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawn(
            "/bin/bash",
            ["bash", "-c", command.encode("utf-8", "replace").replace(b"\0", b"")],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
            setpgroup=0,
        )
    except OSError as error:  # longer than an argument may be
        os.close(reader)
        return str(error).encode(), 126
    finally:
        os.close(writer)
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(ended, select.POLLIN)
    deadline = time.monotonic() + seconds
    output, data, killed = b"", b"", False
    while True:
        ready = [fd for fd, _ in poll.poll(None if killed else max(0, deadline - time.monotonic()) * 1000)]
        if reader in ready:
            data = os.read(reader, READ_BYTES)
            output = (output + data)[:READ_BYTES]
            if not data:
                poll.unregister(reader)
        more = reader in ready and data != b"" and len(output) < READ_BYTES
        if ended in ready and not more:
            break
        if not killed and (not ready or len(output) == READ_BYTES):
            killed = True
            os.killpg(pid, 9)
    status = os.waitpid(pid, 0)[1]
    os.close(reader)
    os.close(ended)
    code = os.waitstatus_to_exitcode(status)
    return output, 124 if killed else code if code >= 0 else 128 - code


def show(output: bytes, code: int) -> str:
    """What the model is told of a command."""
    text = output.decode("utf-8", "replace").strip()
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + " ..."
    verdict = "ok" if code == 0 else f"error {code}"
    return f"{verdict}: {text}" if text else verdict


def proposed(answer: str) -> str:
    """The command in a model's answer; "" where it proposes none."""
    command = answer.strip()
    return "" if command.lower().rstrip(".!") == "done" else command


def main() -> None:
    environ = os.environ
    model = Model(environ.get("OPENAI_BASE_URL", ""), environ.get("OPENAI_API_KEY", ""))
    if "--examples" in sys.argv[1:]:
        model.show(SYSTEM, EXAMPLES)
    said = environ.get("ROCKROLL_INSTRUCTION", "")
    for _ in range(TURNS):
        command = proposed(model.ask(said))
        if not command:
            return
        said = show(*run(command))


if __name__ == "__main__":
    try:
        main()
    except Unanswered as failure:
        sys.exit(f"shell_agent: {failure}")
