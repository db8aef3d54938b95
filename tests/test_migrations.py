"""The migrations make the very tables that the code has, on an empty database, once, however many run them."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from piccolo.apps.migrations.commands.new import AutoMigrationManager
from piccolo.columns import Text
from piccolo.conf.apps import AppConfig

from server import piccolo_app, tables
from server.settings import Settings

# Columns that may be null though they are foreign keys, and what happens to them when the other row goes.
OPTIONAL = {
    ("user_keys", "endorsed_by"),
    ("user_groups", "created_by"),
    ("posts", "signing_key"),
    ("post_keys", "granted_by"),
    ("read_post_request", "decided_by"),
    ("download_links", "attachment"),
}
# Not there from the beginning, and what it leads to takes it along.
LATER = {("attachments", "post")}


@pytest.fixture(scope="module")
async def empty(settings: Settings) -> AsyncIterator[str]:
    """The address of a database with nothing in it."""
    name = f"empty_{secrets.token_hex(8)}"
    admin = await asyncpg.connect(settings.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(str(settings.database_url))._replace(path=f"/{name}"))
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="module")
async def fresh(empty: str, settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that two processes have migrated at once."""
    assert set(await asyncio.gather(migrate(empty, settings), migrate(empty, settings))) == {0}
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


async def migrate(database_url: str, settings: Settings) -> int:
    """As an administrator does."""
    environ = os.environ | {"DATABASE_URL": database_url, "REDIS_URL": str(settings.redis_url)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "migrate"), env=environ, stdout=asyncio.subprocess.DEVNULL
    )
    return await asyncio.wait_for(process.wait(), 60)


async def drift(*table_classes: Any) -> list[str]:
    config = AppConfig(
        app_name="secureblogs",
        migrations_folder_path=str(piccolo_app.MIGRATIONS),
        table_classes=list(table_classes),
        commands=[],
    )
    statements = await AutoMigrationManager(auto_input="n").get_alter_statements(config)
    return [line for statement in statements for line in statement.statements]


async def test_tables_are_as_the_migrations_leave_them() -> None:
    assert len(piccolo_app.APP_CONFIG.table_classes) >= 10
    assert await drift(*piccolo_app.APP_CONFIG.table_classes) == []


async def test_drift_would_be_seen() -> None:
    class User(tables.User, tablename="users"):
        nickname = Text()

    others = [table for table in piccolo_app.APP_CONFIG.table_classes if table is not tables.User]
    assert "nickname" in " ".join(await drift(User, *others))
    assert "users" in " ".join(await drift(*others))


async def test_each_migration_ran_once(fresh: asyncpg.Connection) -> None:
    rows = await fresh.fetch("SELECT name FROM migration WHERE app_name = 'secureblogs' ORDER BY id")
    assert [row["name"] for row in rows] == piccolo_app.migration_ids()


async def test_migrating_again_changes_nothing(fresh: asyncpg.Connection, empty: str, settings: Settings) -> None:
    await fresh.execute("INSERT INTO user_groups (name, request_mac) VALUES ('kept', '')")
    before = await schema(fresh)
    assert await migrate(empty, settings) == 0
    assert await schema(fresh) == before
    assert await fresh.fetchval("SELECT count(*) FROM user_groups WHERE name = 'kept'") == 1


async def schema(connection: asyncpg.Connection) -> dict[str, list[Any]]:
    columns = await connection.fetch(
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    found: dict[str, list[Any]] = {}
    for table, *column in columns:
        found.setdefault(table, []).append(tuple(column))
    return found


async def test_database_has_the_columns_of_the_tables_and_no_others(fresh: asyncpg.Connection) -> None:
    found = await schema(fresh)
    del found["migration"]
    expected = {
        table._meta.tablename: sorted(
            (column._meta.db_column_name, "YES" if column._meta.null else "NO") for column in table._meta.columns
        )
        for table in piccolo_app.APP_CONFIG.table_classes
    }
    assert {name: [(column[0], column[2]) for column in columns] for name, columns in found.items()} == expected
    for name, columns in found.items():
        for column, kind, _, default in columns:
            if column == "id":
                assert (kind, default) == ("uuid", "uuidv7()"), name
            if column == "created_at":
                assert (kind, default) == ("timestamp with time zone", "CURRENT_TIMESTAMP"), name


async def test_every_foreign_key_has_a_rule_and_an_index(fresh: asyncpg.Connection) -> None:
    keys = await fresh.fetch(
        """
        SELECT c.conrelid::regclass::text AS "table", a.attname AS "column", a.attnotnull AS needed,
            c.confdeltype::text AS on_delete,
            EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = a.attnum
                AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname))
            ) AS has_index
        FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE c.contype = 'f'
        """
    )
    assert len(keys) >= 17
    for key in keys:
        optional = (key["table"], key["column"]) in OPTIONAL
        later = (key["table"], key["column"]) in LATER
        assert key["needed"] == (not optional and not later), tuple(key)
        assert key["on_delete"] == ("n" if optional else "c"), tuple(key)
        assert key["has_index"], tuple(key)


async def test_no_user_is_half_local_and_half_external(fresh: asyncpg.Connection) -> None:
    local = {"name": "x", "email": "x", "email_key": "x", "password": "x"}
    external = {"name": "x", "issuer": "x", "subject": "x"}
    for bad in ({"name": "x"}, local | external, local | {"issuer": "x"}, external | {"email": "x", "email_key": "y"}):
        with pytest.raises(asyncpg.CheckViolationError):
            await insert(fresh, "users", bad)
    for good in (local, external):
        await insert(fresh, "users", good)
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(fresh, "users", good)


async def insert(connection: asyncpg.Connection, table: str, row: dict[str, Any]) -> None:
    places = ", ".join(f"${n + 1}" for n in range(len(row)))
    await connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())


async def test_deleted_ids_are_remembered(fresh: asyncpg.Connection) -> None:
    group_id = await fresh.fetchval("INSERT INTO user_groups (name, request_mac) VALUES ('x', '') RETURNING id")
    await fresh.execute("DELETE FROM user_groups WHERE id = $1", group_id)
    assert await fresh.fetchval("SELECT count(*) FROM deleted_ids WHERE id = $1", group_id) == 1
