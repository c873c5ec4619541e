from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.batches import generator
from mlp_dist.data.evaluate import predict
from mlp_dist.training.report import MAX_SHOWN, write_predictions, write_samples


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_samples_and_predictions(image_data: Dataset, tmp_path: Path, device: str) -> None:
    model = build_model(ModelSpec((image_data.image.num_features, 24, 10)), generator=generator(0)).to(device)
    logits = predict(model, image_data.test.images.to(device), image_data.image)
    write_samples(tmp_path, image_data.train, image_data.classes)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert np.array_equal(file["images"], image_data.train.images[:20].numpy())
        assert (file["labels"].tolist(), *file["classes"]) == (
            image_data.train.labels[:20].tolist(),
            *image_data.classes,
        )
    write_predictions(tmp_path, logits, 1.5, image_data)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert np.array_equal(file["logits"], logits.cpu().numpy())
        assert (file["logits"].dtype, file["labels"].dtype, file["temperature"]) == ("float32", "int64", 1.5)
        assert file["labels"].tolist() == image_data.test.labels.tolist()
        wrong = torch.from_numpy(file["mistakes"])
        confidence = torch.softmax(logits.cpu() / 1.5, dim=1).amax(dim=1)[wrong]
        assert len(wrong) == MAX_SHOWN
        assert (logits.cpu().argmax(dim=1) != image_data.test.labels)[wrong].all()
        assert (confidence.diff() <= 1e-6).all()
        assert np.array_equal(file["mistake_images"], image_data.test.images[wrong].numpy())


def test_a_test_set_without_mistakes(image_data: Dataset, tmp_path: Path) -> None:
    data = replace(image_data, test=ImageSet(image_data.test.images[:10], torch.arange(10)))
    write_predictions(tmp_path, torch.eye(10), 1.0, data)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert file["mistake_images"].shape == (0, *image_data.test.images.shape[1:])
