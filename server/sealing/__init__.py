"""The wire format, version 1: bytes in, bytes out, and no other room of the project.

`keys` (key pairs, proofs, endorsements, fingerprints), `posts` (sealing and opening), `drafts` (what waits for a
worker), `files` (attachment streams), `identity` (a private key at rest), `passwords`, `digests`, and the
readers of JSON: `strict_json` and `texts`. Whatever the bytes, nothing is raised but `errors.SealingError` and its kin.
"""
