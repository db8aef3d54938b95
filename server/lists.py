"""Pages of lists: newest first, by (created_at, id), with an opaque cursor."""

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from server.errors import Invalid

MAX_LIMIT = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = struct.Struct(">q16s")

Row = TypeVar("Row", bound=Mapping[str, Any])


class Page(NamedTuple):
    """`limit` rows that come after (created_at, id) in the order of the list."""

    limit: int = 50
    # Later than any row: one statement, and so one plan, serves the first page and the others.
    created_before: datetime = datetime(9999, 1, 1, tzinfo=UTC)
    id_before: UUID = UUID(int=2**128 - 1)


def read_page(limit: str | None, cursor: str | None) -> Page:
    """Raises Invalid unless `limit` is 1 to 100 and `cursor` is one that this server made."""
    page = Page()
    if limit is not None:
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_LIMIT):
            raise Invalid(("?limit", f"must be a number from 1 to {MAX_LIMIT}"))
        page = page._replace(limit=int(limit))
    if cursor is not None:
        try:
            micros, raw_id = _CURSOR.unpack(base64.b64decode(cursor, altchars=b"-_", validate=True))
            page = page._replace(created_before=EPOCH + timedelta(microseconds=micros), id_before=UUID(bytes=raw_id))
        except (binascii.Error, struct.error, ValueError, OverflowError):
            raise Invalid(("?cursor", "is not a cursor of this server")) from None
    return page


def write_cursor(created_at: datetime, row_id: UUID) -> str:
    micros = (created_at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_CURSOR.pack(micros, row_id.bytes)).decode()


def cut(rows: Sequence[Row], page: Page) -> tuple[list[Row], str | None]:
    """The rows of the page and the cursor of the next one; `rows` were read with LIMIT `limit + 1`."""
    kept = list(rows[: page.limit])
    more = len(rows) > page.limit
    return kept, write_cursor(kept[-1]["created_at"], kept[-1]["id"]) if more else None
