"""An MCP server of the tests: a few lines of Python's standard library, over stdin and stdout. It counts its calls."""

import json
import os
import sys
from pathlib import Path

SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
TOOLS = [{"name": name, "description": f"to {name}", "inputSchema": SCHEMA} for name in ("look", "die", "refuse")]
count = 0


def answer(method, params):
    global count
    if method == "initialize":
        info = {"name": "words", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "tools/call":
        count += 1
        if params["name"] == "die":
            os._exit(3)
        said = f"{params['arguments']['word']} {count} {Path('/work/mine').exists()}"
        return {"content": [{"type": "text", "text": said}], "isError": params["name"] == "refuse"}
    return None


for line in sys.stdin:
    said = json.loads(line)
    if "id" in said:
        result = answer(said["method"], said.get("params"))
        reply = {"result": result} if result is not None else {"error": {"code": -32601, "message": "no such method"}}
        print(json.dumps({"jsonrpc": "2.0", "id": said["id"], **reply}), flush=True)
