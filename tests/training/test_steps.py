import pytest

from mlp_dist.training.steps import Pace, chunks


@pytest.mark.parametrize(
    ("steps", "size", "every", "expected"),
    [
        (range(10), 4, [], [range(4), range(4, 8), range(8, 10)]),
        (range(3, 10), 4, [], [range(3, 7), range(7, 10)]),
        (range(10), 100, [(0, 0)], [range(10)]),
        (range(10), 100, [(4, 0)], [range(4), range(4, 8), range(8, 10)]),
        # Three steps of the interval are over when the first of these comes.
        (range(5, 12), 100, [(4, 3)], [range(5, 6), range(6, 10), range(10, 12)]),
        (range(12), 5, [(4, 0), (6, 0)], [range(4), range(4, 6), range(6, 8), range(8, 12)]),
        (range(4, 4), 3, [(2, 0)], []),
    ],
)
def test_a_portion_ends_where_an_interval_does(
    steps: range, size: int, every: list[tuple[int, int]], expected: list[range]
) -> None:
    assert chunks(steps, size, every) == expected


def test_processes_ask_each_other_after_as_many_steps_as_they_have_agreed_on() -> None:
    pace = Pace()
    assert pace.due(1)
    pace.asked(pace.SECONDS / 10)
    assert [pace.due(4) for _ in range(3)] == [False, False, True]
    pace.asked(pace.SECONDS)
    assert pace.due(32)
