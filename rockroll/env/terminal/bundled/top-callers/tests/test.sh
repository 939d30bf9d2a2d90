#!/bin/bash
# The reward is the share of the three lines that are right, in their places.
python3 - <<'PYTHON' > /logs/verifier/reward.txt
expected = ["10.0.0.11 40", "10.0.0.12 31", "10.0.0.13 27"]
try:
    with open("/app/top.txt") as file:
        lines = file.read().split("\n")
except OSError:
    lines = []
lines = [line.strip() for line in lines if line.strip()]
right = sum(line == wanted for line, wanted in zip(lines, expected))
print(right / 3 if len(lines) <= 3 else 0)
PYTHON
