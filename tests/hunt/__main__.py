"""`python -m tests.hunt`: 0 if nothing was found but what was leaked on purpose, and that everywhere."""

import argparse
import asyncio
import os
import sys
import time

from tests.hunt.hunting import hunt, lines

POSTS = 100

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.hunt", description=__doc__)
    parser.add_argument("--posts", type=int, default=POSTS, help="written of each kind (default: %(default)s)")
    given = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {given.posts} posts of each kind", flush=True)
    found = asyncio.run(hunt(given.posts))
    print("\n".join(lines(found)))
    sys.exit(0 if found.is_clean and not found.is_void else 1)
