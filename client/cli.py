"""The client's verbs, by the names under which the `secureblogs` command finds them."""

from client.account_commands import login, logout, sign_up, whoami
from client.completion import completion
from client.credential_commands import api_key, session, ticket
from client.demo import demo
from client.file_commands import file
from client.group_commands import group
from client.key_commands import key
from client.own_account_commands import account
from client.post_commands import post
from client.request_commands import ask, requests
from client.tail import tail
from client.usage_commands import usage

__all__ = [
    "account",
    "api_key",
    "ask",
    "completion",
    "demo",
    "file",
    "group",
    "key",
    "login",
    "logout",
    "post",
    "requests",
    "session",
    "sign_up",
    "tail",
    "ticket",
    "usage",
    "whoami",
]
