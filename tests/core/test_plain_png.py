"""The shortcut for data set PNGs gives the same results as the general decoder."""

import random
import zlib

import pytest
import torch

from mlp_dist.core import image as images
from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import Reading, decode_image, decode_plain, encode_png
from mlp_dist.core.plain_png import read_plain
from mlp_dist.core.spec import ImageSpec

GRAY = ImageSpec(28, 28, 1, (0.1,), (0.3,))
COLOR = ImageSpec(28, 28, 3, (0.1,) * 3, (0.3,) * 3)


def drawn(channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (channels, 28, 28), generator=generator, dtype=torch.uint8)
    return image // (1 + 60 * (seed % 2))


def outcome(data: bytes, spec: ImageSpec) -> torch.Tensor | str:
    try:
        return decode_image(data, spec)
    except ImageError as error:
        return str(error)


def general_outcome(data: bytes, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor | str:
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_plain", lambda data, spec: None)
        return outcome(data, spec)


@pytest.mark.parametrize("spec", [GRAY, COLOR])
def test_plain_files_are_read_exactly(spec: ImageSpec) -> None:
    for seed in range(3):
        pixels = drawn(spec.channels, seed)
        data = encode_png(pixels)
        assert read_plain(data, spec) is not None
        assert torch.equal(decode_image(data, spec), pixels)
        assert decode_image(data, spec).is_contiguous()


@pytest.mark.parametrize("preprocess", ["exact", "auto"])
@pytest.mark.parametrize("spec", [GRAY, COLOR])
def test_many_files_are_decoded_like_single_ones(spec: ImageSpec, preprocess: str) -> None:
    upright = torch.zeros(1, 28, 28, dtype=torch.uint8)
    upright[:, 4:24, 12:16] = 255
    page = torch.full((1, 60, 80), 220, dtype=torch.uint8)
    page[:, 10:40, 30:34] = 30
    files = [encode_png(each) for each in (upright, upright.roll(3, 1), page, drawn(3, 0), 0 * page)]
    files += [files[0][:-20], b"", b"none", files[0], files[2]]
    for chosen in (files, [files[0]] * 3, files[5:6], []):
        indices, pixels = decode_plain(chosen, spec, Reading(preprocess))
        assert pixels.shape == (len(indices), spec.channels, 28, 28)
        for index, image in zip(indices, pixels, strict=True):
            assert torch.equal(image, decode_image(chosen[index], spec, Reading(preprocess)))
        assert {index for index, data in enumerate(chosen) if data == files[0] and spec == GRAY} <= {*indices}


@pytest.mark.parametrize("spec", [GRAY, COLOR])
def test_damaged_files_have_the_same_outcome(spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for seed in range(100):
        data = bytearray(encode_png(drawn(spec.channels, seed)))
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if seed % 2:
            data[-16:-12] = zlib.crc32(data[37:-16]).to_bytes(4)
        found, expected = outcome(bytes(data), spec), general_outcome(bytes(data), spec, monkeypatch)
        assert torch.is_tensor(found) == torch.is_tensor(expected), (found, expected)
        assert torch.equal(found, expected) if torch.is_tensor(expected) else found == expected
