"""A rank for the test of `benchmarks.launching`: it says which one it is and what it was given; it imports no torch."""

import json
import os
import sys

from benchmarks.launching import say

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given["fails"] == os.environ["RANK"]:
        sys.exit(3)
    say([int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), given["text"]])
