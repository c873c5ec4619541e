import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_dist.core.errors import DataError
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.data import order, streaming
from mlp_dist.data.batches import split_validation
from mlp_dist.data.evaluate import loss_and_correct, predict
from mlp_dist.data.image_set import ImageSet
from mlp_dist.data.stored import Runs, StoredArray, StoredSet
from mlp_dist.data.streaming import fetched, order_of

NUMBER = 30_000


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,560 images of 16 bytes are read at once, and mixed."""
    for module in (order, streaming):
        monkeypatch.setattr(module, "BLOCK_BYTES", 160)


@pytest.fixture(scope="module")
def held() -> ImageSet:
    """More images of 4x4 pixels than are read at once; each tells its own number."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUMBER, 1, 4, 4), dtype=torch.uint8, generator=draw)
    for place in range(3):
        images[:, 0, 0, place] = torch.arange(NUMBER) // 256**place % 256
    return ImageSet(images, torch.randint(0, 10, (NUMBER,), generator=draw))


@pytest.fixture
def stored(held: ImageSet, tmp_path: Path) -> StoredSet:
    np.save(tmp_path / "images.npy", held.images.numpy())
    np.save(tmp_path / "labels.npy", held.labels.numpy().astype(np.uint8))
    return StoredSet(StoredArray(tmp_path / "images.npy"), StoredArray(tmp_path / "labels.npy"))


def assert_equal(found: ImageSet, expected: ImageSet) -> None:
    assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("gap", [0, 3, 10**6])
def test_runs_cover_the_rows_asked_for(gap: int) -> None:
    rows = np.array([9, 3, 4, 4, 20, 0])
    runs = Runs(rows, gap=gap)
    read = np.concatenate(
        [np.arange(first, first + number) for first, number in zip(runs.firsts, runs.numbers, strict=True)]
    )
    assert np.array_equal(read[runs.places], rows)
    assert runs.total == len(read) == {0: 5, 3: 7, 10**6: 21}[gap]
    assert Runs(rows[:0], gap=gap).total == 0


def test_it_gives_what_an_image_set_in_memory_gives(stored: StoredSet, held: ImageSet) -> None:
    assert len(stored) == len(held)
    for index in (torch.tensor([5, 0, 29_999, 5]), torch.arange(3000), torch.empty(0, dtype=torch.int64)):
        assert_equal(stored[index], held[index])
    for index in (slice(20), slice(7, 29_000, 3), slice(10, 10), slice(-5, None)):
        part = stored[index]
        assert isinstance(part, StoredSet)
        assert len(part) == len(held[index])
        assert_equal(ImageSet(part.images, part.labels), held[index])
    again = stored[3:20_000:2][10:50][torch.tensor([4, 2])]
    assert_equal(again, held[3:20_000:2][10:50][torch.tensor([4, 2])])


def test_the_same_images_are_held_out_as_in_memory(stored: StoredSet, held: ImageSet) -> None:
    for val_size in (0, 1, 2500, NUMBER - 1):
        for found, expected in zip(
            split_validation(stored, val_size), split_validation(held, val_size), strict=True
        ):
            assert isinstance(found, StoredSet)
            assert len(found) == len(expected)
            # A uint8 image's first bytes are its number, so sorted rows tell which there are.
            rows, wanted = (each.images.flatten(1).numpy() for each in (found, expected))
            assert sorted(map(bytes, rows)) == sorted(map(bytes, wanted))


def test_a_part_held_out_of_a_part_is_found(stored: StoredSet, held: ImageSet) -> None:
    rest, _ = split_validation(stored[100:20_000], 1000)
    rest, val = split_validation(rest, 500)
    numbers = {bytes(image) for image in held[100:20_000].images.flatten(1).numpy()}
    found = {bytes(image) for part in (rest, val) for image in part.images.flatten(1).numpy()}
    assert found < numbers
    assert len(found) == 18_900


@pytest.mark.parametrize("size", [1000, 7777, 30_000])
def test_an_epoch_is_fetched_in_its_order(stored: StoredSet, held: ImageSet, size: int) -> None:
    drawn = order_of(stored, seed=1, epoch=0)
    assert not isinstance(drawn, torch.Tensor)
    chunks = (drawn[start : start + size] for start in range(0, len(stored), size))
    whole = drawn[:]
    for number, found in enumerate(fetched(stored, chunks)):
        assert_equal(found, held[whole[number * size : (number + 1) * size]])
    assert number == -(-NUMBER // size) - 1
    assert readers() == []


def test_images_in_memory_need_no_thread(held: ImageSet) -> None:
    chunks = torch.arange(100).split(30)
    for found, chunk in zip(fetched(held, chunks), chunks, strict=True):
        assert_equal(found, held[chunk])
        assert readers() == []
    assert isinstance(order_of(held, seed=0, epoch=0), torch.Tensor)


def test_nothing_is_fetched_of_nothing(stored: StoredSet) -> None:
    assert list(fetched(stored, [])) == []


def test_it_reads_ahead_and_no_further_than_that(stored: StoredSet) -> None:
    asked: list[int] = []

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, NUMBER, 10):
            asked.append(start)
            yield torch.arange(start, start + 10)

    fetching = fetched(stored[:], chunks())
    next(fetching)
    ahead = len(asked)
    assert 256 <= ahead <= 2 * 256
    fetching.close()
    assert readers() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_thread_ends_with_its_consumer(stored: StoredSet, error: type[BaseException]) -> None:
    def consume() -> None:
        for _ in fetched(stored, torch.arange(NUMBER).split(100)):
            assert len(readers()) == 1
            raise error

    with pytest.raises(error):
        consume()
    assert readers() == []


def test_a_file_that_becomes_shorter_is_told_to_the_consumer(stored: StoredSet, tmp_path: Path) -> None:
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(DataError, match=f"^{tmp_path}/images.npy has become shorter since it was opened"):
        list(fetched(stored, torch.arange(NUMBER).split(1000)))
    assert readers() == []


def test_an_error_in_the_chunks_is_told_to_the_consumer(stored: StoredSet) -> None:
    def chunks() -> Iterator[torch.Tensor]:
        yield torch.arange(3)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(fetched(stored, chunks()))


def test_it_is_evaluated_as_images_in_memory_are(stored: StoredSet, held: ImageSet) -> None:
    spec = ImageSpec(height=4, width=4, channels=1, mean=(0.5,), std=(0.5,))
    model = build_model(ModelSpec((16, 10)), generator=torch.Generator().manual_seed(0))
    logits = predict(model, held.images, spec)
    assert torch.equal(predict(model, stored, spec), logits)
    assert torch.equal(predict(model, held, spec), logits)
    expected = torch.nn.functional.cross_entropy(logits.double(), held.labels, reduction="sum").item()
    correct = (logits.argmax(dim=1) == held.labels).sum().item()
    for part in (stored, held):
        assert loss_and_correct(model, part, spec).tolist() == [pytest.approx(expected, rel=1e-6), correct]
    assert loss_and_correct(model, held[:0], spec).tolist() == [0, 0]


@pytest.mark.gpu
def test_stored_images_are_brought_to_the_gpu(stored: StoredSet, held: ImageSet) -> None:
    [found] = fetched(stored.to("cuda"), [torch.arange(50)])
    assert found.images.is_cuda
    assert_equal(found.to("cpu"), held[:50])
