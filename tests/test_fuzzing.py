"""A short run of what `make fuzz` does for longer: three seeds, several users, all of Schemathesis' checks."""

from pathlib import Path

import pytest

from tests.fuzzing.running import run
from tests.people import person

# Of each seed: phases, examples of each operation or scenario, and how many cases that makes at least.
RUNS = {1: ("examples,coverage", 1, 1000), 2: ("fuzzing", 1, 60), 3: ("stateful", 8, 20)}


@pytest.mark.thorough
@pytest.mark.parametrize("seed", RUNS)
async def test_answers_are_what_the_document_says(
    server: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with person(server) as alice, person(server) as bob:
        group_id = await alice.found_group(bob)
        await alice.publish(group_id)
        phases, examples, least = RUNS[seed]
        options = ("--phases", phases, "--max-examples", str(examples), "--no-shrink")
        found = await run(server, [alice, bob], seed, *options, folder=tmp_path)
    assert found.status == 0, found.said
    assert found.cases >= least, found.said
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
