"""`python -m benchmarks`: all of them. `python -m benchmarks big_group 10000`, or `files 1024`: one, of this size."""

import asyncio
import sys

from benchmarks import big_group, files

BENCHMARKS = {"big_group": (big_group.main, 10_000), "files": (files.main, 1024)}


async def main(names: list[str], size: int | None) -> None:
    for name in names:
        run, usual_size = BENCHMARKS[name]
        await run(size or usual_size)


if __name__ == "__main__":
    name, size = (*sys.argv[1:], None, None)[:2]
    asyncio.run(main([name] if name else list(BENCHMARKS), int(size) if size else None))
