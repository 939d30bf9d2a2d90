"""How each kind of goal of `rockroll:shell` is done right, and how it is done wrong out of habit.

In: a Goal. Out: the commands of either way. Pure. Leaves whole conversations to data/shell.py, how often which way is
shown to tiny/warmup.py.
"""

from __future__ import annotations

from collections.abc import Callable

from rockroll.env.shell import Goal

HABITS: dict[str, Callable[[Goal], list[str]]] = {
    "create": lambda g: [f"echo {g.words[0]} {g.words[1]}"],
    "append": lambda g: [f"echo {g.words[1]} > {g.file}"],
    "copy": lambda g: [f"mv {g.file} {g.other}"],
    "follow": lambda g: [f"rm {g.file}"],
    "extract": lambda g: [f"cat {g.file} > {g.other}"],
}
"""The wrong way of each kind: says it but does not write it; overwrites; moves instead of copying; deletes without
looking; copies all without looking. No two are mirrored, so that unlearning one does not teach another; and right and
wrong part at one token. Where they do not, as in `cp other file` or in the first word for the last, they are learnt as
two words that have nothing to do with each other, and the right way is hardly ever sampled or found (0.3 after 3,840
episodes)."""

SOLUTIONS: dict[str, Callable[[Goal], list[str]]] = {
    "create": lambda g: [f"echo {g.words[0]} {g.words[1]} > {g.file}"],
    "append": lambda g: [f"echo {g.words[1]} >> {g.file}"],
    "copy": lambda g: [f"cp {g.file} {g.other}"],
    "follow": lambda g: [f"cat {g.file}", f"rm {g.other}"],
    "extract": lambda g: [f"cat {g.file}", f"echo {g.words[1]} > {g.other}"],
}
"""The commands that do what each kind of goal asks."""
