"""What Piccolo can't say: indexes, and that the audit log is only ever added to."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from server.database import execute

ID = "2026-11-22T15:11:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "indexes, and the trigger that keeps the audit log as it is"

STATEMENTS = [
    "CREATE INDEX posts_failed ON posts (created_at) WHERE status = 'failed'",
    'CREATE INDEX audit_log_group ON audit_log ("group", id) WHERE "group" IS NOT NULL',
    "CREATE INDEX audit_log_actor ON audit_log (actor, id) WHERE actor IS NOT NULL",
    'CREATE INDEX audit_log_user ON audit_log ("user", id) WHERE "user" IS NOT NULL',
    "CREATE INDEX audit_log_without_place ON audit_log (id) WHERE position IS NULL",
    # An entry gets its place in the chain once. Nothing else of it ever changes, and none goes.
    """
    CREATE FUNCTION keep_audit_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND OLD.position IS NULL AND NEW.position IS NOT NULL
            AND (NEW.id, NEW.at, NEW.actor, NEW.action, NEW."group", NEW."user", NEW.ids)
                IS NOT DISTINCT FROM (OLD.id, OLD.at, OLD.actor, OLD.action, OLD."group", OLD."user", OLD.ids) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'the audit log is only ever added to' USING ERRCODE = 'restrict_violation';
    END $$
    """,
    "CREATE TRIGGER audit_log_keeps BEFORE UPDATE OR DELETE ON audit_log"
    " FOR EACH ROW EXECUTE FUNCTION keep_audit_entry()",
    "CREATE TRIGGER audit_log_keeps_all BEFORE TRUNCATE ON audit_log"
    " FOR EACH STATEMENT EXECUTE FUNCTION keep_audit_entry()",
]


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="secureblogs", description=DESCRIPTION)

    async def run() -> None:
        for statement in STATEMENTS:
            await execute(statement)

    manager.add_raw(run)
    return manager
