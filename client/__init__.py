"""An async, typed client of secureblogs, and the verbs of its command line."""

from client.api import Client
from client.errors import ClientError
from client.follow import Follower
from client.transport import Retries

__all__ = ["Client", "ClientError", "Follower", "Retries"]
