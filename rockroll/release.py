"""Which rockroll this is.

In: nothing. Out: its version. Leaves what each version can do to the documentation.
"""

VERSION = "0.1.0"
