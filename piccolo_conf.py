"""Where Piccolo's own commands find the engine and the tables."""

import os

from piccolo.conf.apps import AppRegistry

from server.database import ENGINE, configure

if not ENGINE.config:
    configure(os.environ.get("DATABASE_URL", ""))

DB = ENGINE
APP_REGISTRY = AppRegistry(apps=["server.piccolo_app"])
