"""The stream of a sealed file as a server sends it, read on through broken connections."""

import re
from collections.abc import AsyncGenerator

import httpx

from client.errors import BadAnswer, NetworkError, Refused
from client.transport import Transport, is_passing

# A connection that brought this much was worth it: how often it was tried is counted anew after it.
WORTHWHILE_BYTES = 64 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class SealedStream:
    """`size`, in bytes, is known once the first of them are there, and only if the server tells it.

    What a server sends is not believed: `client.downloads` finds out whether it is the file.
    """

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self._path = path
        self._tag: str | None = None
        self._is_resumable = False
        self.size: int | None = None

    async def beginning(self, length: int) -> bytes | None:
        """The first bytes; None if the server does not give parts."""
        headers = {"Range": f"bytes=0-{length - 1}", "Accept-Encoding": "identity"}
        tried = 0
        while True:
            tried += 1
            try:
                async with self._transport.open_stream(self._path, headers) as response:
                    self._begin(response, 0)
                    return await _read_all(response, length) if response.status_code == 206 else None
            except (NetworkError, Refused) as failure:
                await self._transport.wait_or_raise(tried, failure, may_try=_may_pass(failure))

    async def read(self, start: int = 0) -> AsyncGenerator[bytes, None]:
        """All bytes from `start` on. Where the connection breaks, it is made anew and goes on, for a few times.

        Raises NetworkError, Refused, BadAnswer.
        """
        position, tried, worthwhile_from = start, 0, start
        while True:
            tried += 1
            try:
                async with self._transport.open_stream(self._path, self._headers(position)) as response:
                    known = self._begin(response, position)
                    async for piece in response.aiter_raw():
                        fresh = piece[known:]
                        known = max(0, known - len(piece))
                        if fresh:
                            position += len(fresh)
                            yield fresh
                return
            except (NetworkError, Refused) as failure:
                # Where nothing came yet, nothing was lost; a link that counts downloads does not go on in the middle.
                may_try = _may_pass(failure) and (position == start or self._is_resumable)
                if position - worthwhile_from >= WORTHWHILE_BYTES:
                    tried, worthwhile_from = 1, position
                await self._transport.wait_or_raise(tried, failure, may_try=may_try)

    def _headers(self, position: int) -> dict[str, str]:
        # What is sealed does not get smaller by compression.
        headers = {"Accept-Encoding": "identity"}
        if position > 0:
            headers["Range"] = f"bytes={position}-"
            if self._tag is not None:
                headers["If-Range"] = self._tag
        return headers

    def _begin(self, response: httpx.Response, position: int) -> int:
        """How many bytes at the beginning of this answer are known already."""
        headers = response.headers
        self._is_resumable = headers.get("accept-ranges") == "bytes"
        tag = headers.get("etag")
        # A weak one does not promise the same bytes.
        self._tag = tag if tag is not None and tag.startswith('"') else None
        if response.status_code == 206:
            told = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if told is None or int(told[1]) != position:
                raise BadAnswer("the server sent another part of the file than was asked for")
            self.size = int(told[3])
            return 0
        length = headers.get("content-length", "")
        self.size = int(length) if length.isascii() and length.isdigit() else None
        return position


async def _read_all(response: httpx.Response, length: int) -> bytes:
    whole = bytearray()
    async for piece in response.aiter_raw():
        whole += piece
        if len(whole) > length:
            break
    if len(whole) != length:
        raise BadAnswer("the server sent another part of the file than was asked for")
    return bytes(whole)


def _may_pass(failure: NetworkError | Refused) -> bool:
    return isinstance(failure, NetworkError) or is_passing(failure)
