import pytest

from mlp_dist.training.state import chunks
from mlp_dist.training.trainer import Pace


@pytest.mark.parametrize(
    ("steps", "size", "every", "expected"),
    [
        (range(3, 10), 4, [], [range(3, 7), range(7, 10)]),
        (range(10), 100, [(0, 0)], [range(10)]),
        # Three steps of the interval were taken before.
        (range(5, 12), 100, [(4, 3)], [range(5, 6), range(6, 10), range(10, 12)]),
        (range(12), 5, [(4, 0), (6, 0)], [range(4), range(4, 6), range(6, 8), range(8, 12)]),
        (range(4, 4), 3, [(2, 0)], []),
    ],
)
def test_chunks_end_with_intervals(
    steps: range, size: int, every: list[tuple[int, int]], expected: list[range]
) -> None:
    assert chunks(steps, size, every) == expected


def test_processes_synchronize_after_the_agreed_number_of_steps() -> None:
    pace = Pace()
    assert pace.due(1)
    pace.restart(pace.SECONDS / 10)
    assert [pace.due(4) for _ in range(3)] == [False, False, True]
    pace.restart(pace.SECONDS)
    assert pace.due(32)
