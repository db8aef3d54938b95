"""What Piccolo can't say of attachments: indexes, and that whatever goes takes its object along."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from server.database import execute

ID = "2026-11-22T15:51:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "indexes of attachments, and the triggers that have their objects deleted"

STATEMENTS = [
    "CREATE INDEX attachments_owner ON attachments (owner)",
    "CREATE INDEX attachments_post ON attachments (post) WHERE post IS NOT NULL",
    "CREATE INDEX attachments_unattached ON attachments (created_at) WHERE post IS NULL",
    "CREATE INDEX download_links_attachment ON download_links (attachment, created_at DESC, id DESC)"
    " WHERE attachment IS NOT NULL",
    "CREATE INDEX download_links_created_by ON download_links (created_by)",
    "CREATE INDEX download_links_expires ON download_links (expires)",
    "CREATE INDEX object_deletions_due ON object_deletions (due_at)",
    """
    CREATE FUNCTION delete_object() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO object_deletions (object_key, due_at) VALUES (OLD.object_key, now())
            ON CONFLICT (object_key) DO UPDATE SET due_at = now();
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER attachments_take_objects AFTER DELETE ON attachments FOR EACH ROW EXECUTE FUNCTION delete_object()",
    "CREATE TRIGGER attachments_deleted AFTER DELETE ON attachments"
    " FOR EACH ROW EXECUTE FUNCTION remember_deleted_id()",
]


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="secureblogs", description=DESCRIPTION)

    async def run() -> None:
        for statement in STATEMENTS:
            await execute(statement)

    manager.add_raw(run)
    return manager
