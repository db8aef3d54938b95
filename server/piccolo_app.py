"""Registers the tables and their migrations with Piccolo."""

from pathlib import Path

from piccolo.apps.migrations.commands.base import BaseMigrationManager
from piccolo.conf.apps import AppConfig, table_finder

MIGRATIONS = Path(__file__).parent.parent / "piccolo_migrations"

APP_CONFIG = AppConfig(
    app_name="secureblogs",
    migrations_folder_path=str(MIGRATIONS),
    table_classes=table_finder(modules=["server.tables"]),
    migration_dependencies=[],
    commands=[],
)


def migration_ids() -> list[str]:
    """The `ID` of every migration, in order."""
    manager = BaseMigrationManager()
    return manager.get_migration_ids(manager.get_migration_modules(str(MIGRATIONS)))
