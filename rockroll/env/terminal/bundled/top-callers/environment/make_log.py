"""A log in which the three most frequent callers are others once refused requests are left out."""

import random

draw = random.Random(20)
lines = []
for last, (served, refused) in {11: (40, 2), 12: (31, 5), 13: (27, 0), 14: (9, 60), 15: (18, 30), 16: (25, 1)}.items():
    for status, count in ((200, served), (403, refused)):
        lines += [f"10.0.0.{last} /page/{draw.randrange(50)} {status}"] * count
draw.shuffle(lines)
print(*lines, sep="\n")
