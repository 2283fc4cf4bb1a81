"""Measure: Fréchet distances of samples to the training images, by torch-fidelity (Table 1).

With Inception features (2015-12-05, the TTUR protocol) it is FID; with a data set's own classifier it is FD.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval.classifier import load_classifier
from eval.score import Score, write_scores
from fce.stage import Job, UserError, main
from fce.state import load

INCEPTION = "inception-v3-compat"


class Uint8Images(Dataset):
    """uint8 NHWC arrays as torch-fidelity wants them: uint8 CHW tensors; grey ones tripled for Inception."""

    def __init__(self, images: np.ndarray, rgb: bool):
        self.images, self.rgb = images, rgb

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        x = torch.from_numpy(self.images[i].transpose(2, 0, 1))
        return x.expand(3, -1, -1).contiguous() if self.rgb and len(x) == 1 else x


def run(job: Job) -> None:
    settings = job.params["fid"]
    with np.load(job.inputs["data"], allow_pickle=False) as file:
        train = np.concatenate([file["train_images"], file["validation_images"]])
        test, levels = file["test_images"], int(file["levels"])
    with np.load(job.inputs["samples"], allow_pickle=False) as file:
        samples = file["images"]
    inception = settings["features"] == "inception"
    if inception and levels != 256:
        raise UserError(f"fid.features: inception needs 256 grey levels, this data has {levels}; set it to classifier")
    extractor = (use_inception if inception else use_classifier)(job.inputs["features"])
    name, unit = ("frechet_inception_distance", "FID") if inception else ("frechet_distance", "FD")
    protocol = f"{len(samples)} floor-quantised samples, temperature 1, against all {len(train)} training images, " + (
        "Inception 2015-12-05" if inception else "features of this data set's classifier: not FID"
    )

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        return frechet(
            Uint8Images(first, inception),
            Uint8Images(second, inception),
            settings["batch"],
            job.device == "cuda",
            extractor,
        )

    scores = [
        Score(name=name, model="flow", value=distance(samples, train), unit=unit, n=len(samples), protocol=protocol)
    ]
    if job.tags.get("arm") == "mle":
        scores.append(
            Score(
                name=f"{name}_floor",
                model="data",
                value=distance(test, train),
                unit=unit,
                n=len(test),
                protocol=f"the {len(test)} real test images against the {len(train)} training images",
            )
        )
    write_scores(job, scores)


def frechet(first: Dataset, second: Dataset, batch: int, cuda: bool, extractor: dict[str, Any]) -> float:
    """The Fréchet distance between the features of two sets of images."""
    import torch_fidelity

    metrics = torch_fidelity.calculate_metrics(
        input1=first,
        input2=second,
        batch_size=batch,
        cuda=cuda,
        fid=True,
        isc=False,
        kid=False,
        prc=False,
        cache=False,
        verbose=False,
        **extractor,
    )
    return float(metrics["frechet_inception_distance"])


def use_inception(weights: Path) -> dict[str, Any]:
    return {"feature_extractor": INCEPTION, "feature_extractor_weights_path": str(weights)}


def use_classifier(checkpoint: Path) -> dict[str, Any]:
    """Register the data set's classifier as a feature extractor of torch-fidelity."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    model = load_classifier(load(checkpoint))

    class ClassifierFeatures(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: Any):
            super().__init__(name, features_list)
            self.model = model

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (self.model.features(images),)

    name = f"classifier-{id(model)}"  # a name can be registered once per process
    register_feature_extractor(name, ClassifierFeatures)
    return {"feature_extractor": name, "feature_layer_fid": "features"}


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data", "samples", "features"]))
