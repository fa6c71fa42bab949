import pytest
from click.testing import CliRunner

import scheduler_time


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_every_step_of_decodes_is_timed(max_in_flight: int) -> None:
    times = scheduler_time.step_seconds(scheduler_time.make_scheduler(5, 20, 9), 5, max_in_flight)
    assert len(times) == 8  # each first token comes with a prompt
    assert all(seconds > 0 for seconds in times)


def test_it_prints_a_line_for_each_way() -> None:
    result = CliRunner().invoke(scheduler_time.main, ["--requests", "3", "--context", "5", "--output", "4"])
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.output.splitlines()] == [
        "3 decodes, 1 in flight",
        "3 decodes, 2 in flight",
    ]
