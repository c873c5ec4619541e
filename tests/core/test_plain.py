"""The short way to the pixels of a data set's PNG, against the way that all files take."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core import image as images
from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import Reading, decode_image, decode_images, encode_png
from mlp_dist.core.plain_png import read_plain
from mlp_dist.core.spec import ImageSpec

GRAY = ImageSpec(28, 28, 1, (0.1,), (0.3,))
COLOUR = ImageSpec(28, 28, 3, (0.1,) * 3, (0.3,) * 3)


def drawn(channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (channels, 28, 28), generator=generator, dtype=torch.uint8)
    return image // (1 + 60 * (seed % 2))


def by_the_long_way(data: bytes, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor | str:
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_plain", lambda data, spec: None)
        return answered(data, spec)


def answered(data: bytes, spec: ImageSpec) -> torch.Tensor | str:
    try:
        return decode_image(data, spec)
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("spec", [GRAY, COLOUR])
def test_a_data_sets_image_goes_the_short_way_and_is_the_same(spec: ImageSpec) -> None:
    for seed in range(10):
        pixels = drawn(spec.channels, seed)
        data = encode_png(pixels)
        assert read_plain(data, spec) is not None
        assert torch.equal(decode_image(data, spec), pixels)
        assert decode_image(data, spec).is_contiguous()


@pytest.mark.parametrize("preprocess", ["exact", "auto"])
@pytest.mark.parametrize("spec", [GRAY, COLOUR])
def test_many_files_are_read_as_each_by_itself(spec: ImageSpec, preprocess: str) -> None:
    upright = torch.zeros(1, 28, 28, dtype=torch.uint8)
    upright[:, 4:24, 12:16] = 255
    page = torch.full((1, 60, 80), 220, dtype=torch.uint8)
    page[:, 10:40, 30:34] = 30
    files = [encode_png(each) for each in (upright, upright.roll(3, 1), page, drawn(3, 0), 0 * page)]
    files += [files[0][:-20], b"", b"none", files[0], files[2]]
    for chosen in (files, files[:1], [files[0]] * 3, files[5:6], []):
        pixels, errors = decode_images(chosen, spec, Reading(preprocess))
        assert pixels.shape == (len(chosen), spec.channels, 28, 28)
        for place, data in enumerate(chosen):
            if place in errors:
                with pytest.raises(type(errors[place])) as raised:
                    decode_image(data, spec, Reading(preprocess))
                assert str(raised.value) == str(errors[place])
                assert not pixels[place].any()
            else:
                assert torch.equal(pixels[place], decode_image(data, spec, Reading(preprocess)))


def others() -> Iterator[tuple[str, bytes]]:
    array = drawn(1, 1)[0].numpy()
    image = Image.fromarray(array)
    for name, changed, options in (
        ("another size", image.resize((29, 28)), {}),
        ("another colour", image.convert("RGB"), {}),
        ("a palette", image.convert("P"), {}),
        ("one bit", image.convert("1"), {}),
        ("transparency", image, {"transparency": 0}),
        ("16 bits", Image.fromarray(array.astype(np.uint16) * 257), {}),
        (
            "turned",
            image,
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
        ),
    ):
        file = io.BytesIO()
        changed.save(file, format="PNG", **options)
        yield name, file.getvalue()
    whole = encode_png(drawn(1, 1))
    yield "nothing", whole[:33] + whole[-12:]
    yield "cut", whole[:-1]


def test_all_else_goes_the_long_way() -> None:
    assert {name: read_plain(data, GRAY) for name, data in others()} == {name: None for name, _ in others()}


@pytest.mark.parametrize("rows", [1, 20, 27, 29])
def test_a_file_of_other_rows_than_it_says(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, packed = encode_png(drawn(1, 1)), zlib.compress(bytes([0, *[200] * 28]) * rows)
    data = whole[:33] + struct.pack("!I", len(packed)) + b"IDAT" + packed + bytes(4) + whole[-12:]
    found, expected = answered(data, GRAY), by_the_long_way(data, GRAY, monkeypatch)
    assert torch.is_tensor(found)
    assert torch.is_tensor(expected)
    assert torch.equal(found, expected)


def test_preprocessing_is_done_on_the_short_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    black = encode_png(torch.zeros(1, 28, 28, dtype=torch.uint8))
    assert read_plain(black, GRAY) is not None
    with pytest.raises(ImageError, match="the page is empty"):
        decode_image(black, GRAY, Reading("auto"))


@pytest.mark.parametrize("spec", [GRAY, COLOUR])
def test_damaged_files_are_answered_as_on_the_long_way(
    spec: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, short = random.Random(0), 0
    for seed in range(400):
        data = bytearray(encode_png(drawn(spec.channels, seed)))
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        short += read_plain(bytes(data), spec) is not None
        found, expected = answered(bytes(data), spec), by_the_long_way(bytes(data), spec, monkeypatch)
        assert torch.is_tensor(found) == torch.is_tensor(expected), (found, expected)
        assert torch.equal(found, expected) if torch.is_tensor(expected) else found == expected
    assert short > 0
