"""HTTP load from a process of its own: `wrk` where there is one, else the plain client of this module.

Many connections, each with one request on its way at a time, all the same request.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

# Percentiles in microseconds; wrk counts answers from 400 up as errors.
SCRIPT = """
wrk.method, wrk.headers, wrk.body = os.getenv("LOAD_METHOD"), {}, nil
for line in os.getenv("LOAD_HEADERS"):gmatch("[^\\n]+") do
    local name, value = line:match("^(.-): (.*)$")
    wrk.headers[name] = value
end
if os.getenv("LOAD_BODY") ~= "" then wrk.body = os.getenv("LOAD_BODY") end
function done(summary, latency, requests)
    local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
        + summary.errors.timeout
    io.stderr:write(string.format('{"answers":%d,"errors":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f}', summary.requests,
        errors, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


class Load(msgspec.Struct):
    """What came of it."""

    answers: int
    errors: int
    """Answers that were no success, and connections that failed."""
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


async def load(
    url: str,
    connections: int,
    seconds: float,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: str = "",
) -> Load:
    """Raises RuntimeError where an answer is an error: its rate would say nothing."""
    environ = os.environ | {
        "LOAD_METHOD": method,
        "LOAD_HEADERS": "\n".join(f"{name}: {value}" for name, value in (headers or {}).items()),
        "LOAD_BODY": body,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        duration = f"{max(1, round(seconds))}s"
        wrk = shutil.which("wrk")
        command = (
            [wrk, "-t1", "--timeout", "60s", f"-c{connections}", f"-d{duration}", "-s", script.name, url] if wrk else []
        )
        plain = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
        process = await asyncio.create_subprocess_exec(
            *(command or plain),
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        _, told = await process.communicate()
    found = msgspec.json.decode(told[told.index(b"{") :], type=Load)
    if found.errors or not found.answers:
        raise RuntimeError(f"{method} {url}: {found.errors} errors among {found.answers} answers")
    return found


# ------------------------------------------------------------------------------------------- where there is no wrk


async def main(url: str, connections: int, seconds: float) -> None:
    address = urlsplit(url)
    target = f"{address.path}?{address.query}" if address.query else address.path
    body = os.environ["LOAD_BODY"].encode()
    headers = [f"Host: {address.netloc}", f"Content-Length: {len(body)}", *os.environ["LOAD_HEADERS"].splitlines()]
    head = "\r\n".join([f"{os.environ['LOAD_METHOD']} {target} HTTP/1.1", *headers])
    request = f"{head}\r\n\r\n".encode() + body
    latencies: list[float] = []
    began = time.perf_counter()
    loops = (
        one_connection(address.hostname or "", address.port or 80, request, began + seconds, latencies)
        for _ in range(connections)
    )
    errors = sum(await asyncio.gather(*loops))
    taken = time.perf_counter() - began
    latencies.sort()
    p50, p99 = (latencies[int((len(latencies) - 1) * part)] * 1000 for part in (0.5, 0.99))
    found = Load(len(latencies), errors, taken, p50, p99)
    sys.stderr.buffer.write(msgspec.json.encode(found))


async def one_connection(host: str, port: int, request: bytes, until: float, latencies: list[float]) -> int:
    """How many of the answers were errors."""
    reader, writer = await asyncio.open_connection(host, port)
    errors = 0
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - began)
        errors += not head.startswith(b"HTTP/1.1 2")
    writer.close()
    return errors


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
