"""`python -m benchmarks [members]`: run them all and print the table."""

import asyncio
import sys

from benchmarks import big_group

if __name__ == "__main__":
    asyncio.run(big_group.main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
