"""Schemathesis against the API: what the OpenAPI document promises is held against what is answered.

`python -m tests.fuzzing` runs an installation of its own and goes on for as long as it is told. All checks are on;
`schemathesis.toml` says what they have to know of this API, and `hooks` makes each call somebody else's.
"""
