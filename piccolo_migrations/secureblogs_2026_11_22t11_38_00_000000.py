"""What Piccolo's columns can't say: indexes over several columns or a part of the rows, and a trigger."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from server.database import execute

ID = "2026-11-22T11:38:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "indexes, and the memory of deleted ids"

INDEXES = {
    # Foreign keys that no other index begins with.
    "user_tokens_user": 'ON user_tokens ("user", created_at DESC, id DESC)',
    "user_keys_endorsed_by": "ON user_keys (endorsed_by) WHERE endorsed_by IS NOT NULL",
    "user_groups_created_by": "ON user_groups (created_by)",
    "user_group_association_group": 'ON user_group_association ("group", created_at DESC, id DESC)',
    # Asking and deciding look for a group's few owners among its many members.
    "user_group_association_owners": 'ON user_group_association ("group", "user") WHERE role = \'owner\'',
    "posts_author": "ON posts (author)",
    "posts_signing_key": "ON posts (signing_key) WHERE signing_key IS NOT NULL",
    "post_keys_post": "ON post_keys (post, public_key)",
    "post_keys_granted_by": "ON post_keys (granted_by) WHERE granted_by IS NOT NULL",
    "read_post_request_post": 'ON read_post_request (post, "user", created_at DESC)',
    "read_post_request_public_key": "ON read_post_request (public_key)",
    "read_post_request_decided_by": "ON read_post_request (decided_by) WHERE decided_by IS NOT NULL",
    # Lists, newest first.
    "posts_group_newest": 'ON posts ("group", created_at DESC, id DESC)',
    "read_post_request_group_newest": 'ON read_post_request ("group", created_at DESC, id DESC)',
    "read_post_request_user_newest": 'ON read_post_request ("user", created_at DESC, id DESC)',
    # What the sweep looks for.
    "posts_pending": "ON posts (created_at) WHERE status = 'pending'",
    "outbox_oldest": "ON outbox (created_at)",
    "user_tokens_expires": "ON user_tokens (expires) WHERE expires IS NOT NULL",
    "read_post_request_pending": "ON read_post_request (\"group\", created_at DESC, id DESC) WHERE status = 'pending'",
}

STATEMENTS = [
    *(f"CREATE INDEX {name} {what}" for name, what in INDEXES.items()),
    "CREATE UNIQUE INDEX read_post_request_one_pending ON read_post_request (post, \"user\") WHERE status = 'pending'",
    """
    CREATE FUNCTION remember_deleted_id() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO deleted_ids (id) VALUES (OLD.id) ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER posts_deleted AFTER DELETE ON posts FOR EACH ROW EXECUTE FUNCTION remember_deleted_id()",
    "CREATE TRIGGER user_groups_deleted AFTER DELETE ON user_groups"
    " FOR EACH ROW EXECUTE FUNCTION remember_deleted_id()",
]


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="secureblogs", description=DESCRIPTION)

    async def run() -> None:
        for statement in STATEMENTS:
            await execute(statement)

    manager.add_raw(run)
    return manager
