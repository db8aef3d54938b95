"""A hunt for what the server must not keep: words and secrets are planted, and then searched wherever bytes may stay.

`python -m tests.hunt` runs an installation of its own, loopback only, every process at its most talkative, drives all
routes and many of their errors, and prints a table of places. First of all each place gets a leak on purpose: a place
where that is not found makes the run void.
"""
