"""Whenever a job is killed, and wherever in a save, going on ends in the bits of the unbroken run.

./launch.sh test tests/test_kills.py; `python -m tests.kills` runs two hundred trials
"""

from pathlib import Path

from tests.kills import Campaign


def test_jobs_killed_at_random_instants_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=1, epochs=1)
    for number, world_size in enumerate((2, 2, 3, 3, 2)):
        campaign.trial(number, world_size)
    assert campaign.inside + campaign.outside == 5
