#!/bin/bash
cat > /app/stats.py <<'PYTHON'
def median(numbers):
    """The median of a list of numbers, which stays as it is. Raises ValueError for an empty one."""
    if not numbers:
        raise ValueError("an empty list has no median")
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
PYTHON
