"""The client's verbs, by the names under which the `secureblogs` command finds them."""

from client.account_commands import login, logout, sign_up, whoami
from client.completion import completion
from client.demo import demo
from client.group_commands import group
from client.key_commands import key
from client.post_commands import post
from client.request_commands import ask, requests
from client.tail import tail

__all__ = [
    "ask",
    "completion",
    "demo",
    "group",
    "key",
    "login",
    "logout",
    "post",
    "requests",
    "sign_up",
    "tail",
    "whoami",
]
