from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.columns.column_types import BigInt

ID = "2026-11-22T21:10:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "the version of a group's members and their keys"


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="secureblogs", description=DESCRIPTION)
    manager.add_column(
        table_class_name="UserGroup",
        tablename="user_groups",
        column_name="recipients_version",
        db_column_name="recipients_version",
        column_class_name="BigInt",
        column_class=BigInt,
        params={
            "default": 0,
            "null": False,
            "primary_key": False,
            "unique": False,
            "index": False,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema=None,
    )
    return manager
