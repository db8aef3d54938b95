"""`python -m benchmarks`: all of them. `python -m benchmarks reading sealing`: some, by name.

Prints a table, and writes the same with more digits to `benchmarks.json`.
"""

import importlib
import os
import platform
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop

from benchmarks.measuring import Result, table

NAMES = (
    *("reading", "posting", "sealing", "big_group", "asking", "fanout", "growth", "logins"),
    *("large_files", "starting", "several", "dashboard"),
)
FILE = Path("benchmarks.json")


class Run(msgspec.Struct):
    at: str
    machine: str
    results: list[Result]
    failed: list[str]
    """Benchmarks that came to no result."""


def machine() -> str:
    model = "?"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}"


async def main(names: list[str]) -> Run:
    run = Run(datetime.now(UTC).isoformat(timespec="minutes"), machine(), [], [])
    print(f"{run.at}, {run.machine}", flush=True)
    for name in names:
        began = time.perf_counter()
        try:
            results = await importlib.import_module(f"benchmarks.{name}").main()
        except Exception:
            # The others are worth having all the same.
            traceback.print_exc()
            run.failed.append(name)
            continue
        run.results += results
        print(f"\n{name}, {time.perf_counter() - began:.0f} s\n{table(results)}", flush=True)
        for one in results:
            if one.cores:
                print(f"  cores, {one.name}: {', '.join(f'{kind} {used}' for kind, used in one.cores.items())}")
    if len(names) > 1:
        print(f"\n{table(run.results)}")
    return run


if __name__ == "__main__":
    run = uvloop.run(main(sys.argv[1:] or list(NAMES)))
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
    if run.failed:
        sys.exit(f"no result from {', '.join(run.failed)}")
