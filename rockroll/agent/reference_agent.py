"""A whole coding agent in sixty lines: it asks for one Bash command at a time, runs it, and shows what came out.

In: the goal in $ROCKROLL_INSTRUCTION, an OpenAI-style endpoint at $OPENAI_BASE_URL, the current folder. Out: what the
commands did there; exit code 1 with a sentence where the model could not be asked. Python's standard library only.
"""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request

SYSTEM = (
    "You work in a Linux shell, alone: nobody answers questions. Say in a few words what you will do, then give one "
    "Bash command in a ```bash block. You are shown its output, and give the next one. When the task is done, check "
    "it, and answer DONE without a block."
)
SECONDS = float(os.environ.get("AGENT_COMMAND_SECONDS", "60"))  # for one command
SHOWN = int(os.environ.get("AGENT_SHOWN", "4000"))  # characters of its output, the beginning and the end
TURNS = int(os.environ.get("AGENT_TURNS", "50"))
BLOCK = re.compile(r"```(?:bash|sh|shell)?[ \t]*\n(.*?)```", re.DOTALL)


def ask(messages):
    body = json.dumps({"model": os.environ.get("OPENAI_MODEL", "default"), "messages": messages}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"] or ""


def run(command):
    try:
        # Its own session and no terminal: a command that waits for a key ends at its limit, not never.
        done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=SECONDS, start_new_session=True)  # fmt: skip
        output, how = done.stdout, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, how = late.stdout or b"", f"ended after {SECONDS:g} s"
    text = output.decode(errors="replace")
    cut = (
        text
        if len(text) <= SHOWN
        else f"{text[: SHOWN // 2]}\n[… {len(text) - SHOWN} characters …]\n{text[-SHOWN // 2 :]}"
    )
    return f"{how}\n{cut}"


def main():
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": os.environ["ROCKROLL_INSTRUCTION"]}]
    for _ in range(TURNS):
        answer = ask(messages)
        print(answer, flush=True)
        blocks = BLOCK.findall(answer)
        if not blocks and "DONE" in answer:
            return
        said = run(blocks[0]) if blocks else "Give one Bash command in a ```bash block, or answer DONE."
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": said}]


if __name__ == "__main__":
    try:
        main()
    except urllib.error.HTTPError as error:
        sys.exit(f"reference_agent: the model answered {error.code}: {error.read(300).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"reference_agent: the model could not be asked: {error}")
