"""Indexes for what is read of one user, in the order in which it is read, and of one action."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from server.database import execute

ID = "2026-11-22T15:40:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "indexes for the export of one's own data and for the audit log by action"

STATEMENTS = [
    # These serve the foreign keys as well.
    "DROP INDEX posts_author",
    "CREATE INDEX posts_author ON posts (author, id)",
    "DROP INDEX post_keys_granted_by",
    "CREATE INDEX post_keys_granted_by ON post_keys (granted_by, id) WHERE granted_by IS NOT NULL",
    "DROP INDEX read_post_request_decided_by",
    "CREATE INDEX read_post_request_decided_by ON read_post_request (decided_by, id) WHERE decided_by IS NOT NULL",
    "CREATE INDEX audit_log_action ON audit_log (action, id)",
]


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="secureblogs", description=DESCRIPTION)

    async def run() -> None:
        for statement in STATEMENTS:
            await execute(statement)

    manager.add_raw(run)
    return manager
