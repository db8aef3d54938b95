"""Each call is made with one of several credentials, all of which TOKENS has; Schemathesis itself knows the first."""

import os
import random
from typing import Any

import schemathesis

TOKENS = os.environ["TOKENS"].split()
CHANCE = random.Random(int(os.environ["SEED"]))


@schemathesis.hook
def before_call(_context: Any, _case: Any, kwargs: dict[str, Any]) -> None:
    headers = kwargs.get("headers") or {}
    # A call without a credential, or with a wrong one, is a check of its own.
    for name in [name for name in headers if name.lower() == "authorization"]:
        if headers[name] == f"Bearer {TOKENS[0]}":
            headers[name] = f"Bearer {CHANCE.choice(TOKENS)}"
