"""Exit code 0 where every case is right. Each case runs in a process of its own, whose answer is compared here:
what the module under test does to its process changes no verdict."""

import json
import random
import statistics
import subprocess
import sys

CALL = """
import json, sys
sys.path.insert(0, "/app")
from stats import median
numbers = json.load(sys.stdin)
try:
    answer = median(numbers)
except ValueError:
    answer = "ValueError"
print(json.dumps([answer, numbers]))
"""


def called(numbers):
    run = subprocess.run([sys.executable, "-I", "-c", CALL], input=json.dumps(numbers), capture_output=True, text=True)
    try:
        return json.loads(run.stdout)
    except ValueError:
        return run.stderr[-300:]


draw = random.Random(5)
cases = [[draw.choice([-1, 1]) * draw.randrange(1000) / 4 for _ in range(size)] for size in (1, 2, 3, 4, 9, 10, 51)]
expected = [[statistics.median(numbers), numbers] for numbers in cases]
wrong = sum(called(numbers) != right for numbers, right in zip(cases, expected, strict=True))
wrong += called([]) != ["ValueError", []]
print(f"{wrong} cases are wrong")
sys.exit(wrong > 0)
