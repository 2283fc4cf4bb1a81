"""Toy densities are exact, images survive dequantisation, and every bad file is refused with its name."""

import hashlib
import io
import logging
import math
import os
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fce.data import pixels, toy
from fce.data.batches import Images
from fce.stages import images
from pipeline import fetch
from pipeline.errors import UserError
from pipeline.params import load
from pipeline.schema.data import Folder, Npz, Official

PARTS = ("train", "validation", "test")
ARCHIVES = [("svhn", "train_32x32.mat"), ("cifar10", "cifar-10-python.tar.gz")]


@pytest.fixture(scope="module", params=["ring", "pinwheel", "spiral", "checkerboard", "moons", "rings"])
def quadrature(request):
    """A shipped toy density, the midpoints of a fine grid, their log-densities, and a cell's area."""
    experiment = load("params.yaml").experiments["full"][request.param]
    density = toy.density(experiment.data.source, **experiment.data.shape())
    axis = (torch.arange(260, dtype=torch.float64) + 0.5) / 260 * 13 - 6.5
    points = torch.cartesian_prod(axis, axis)
    return density, points, density.log_prob(points), (13 / 260) ** 2


def test_a_toy_density_integrates_to_one(quadrature):
    _, _, log_p, cell = quadrature
    assert (log_p.exp().sum() * cell).item() == pytest.approx(1.0, abs=1e-5)


def test_a_toys_samples_have_its_entropy(quadrature):
    density, _, log_p, cell = quadrature
    mean = (log_p.exp() * log_p).nansum() * cell
    drawn = density.log_prob(density.sample(20_000, torch.Generator().manual_seed(1)))
    assert abs(drawn.mean() - mean) < 4 * drawn.std() / math.sqrt(len(drawn)) + 1e-9  # a uniform density has no spread


def test_a_toys_samples_fall_where_it_has_mass(quadrature):
    density, points, log_p, cell = quadrature

    def histogram(x, weights):
        square = ((x + 6.5) / 0.65).long().clamp(0, 19)  # 20 x 20 squares, each of 13 x 13 cells
        return torch.zeros(400, dtype=torch.float64).index_add_(0, square[:, 0] * 20 + square[:, 1], weights)

    n = 200_000
    mass = histogram(points, log_p.exp() * cell)
    drawn = histogram(density.sample(n, torch.Generator().manual_seed(2)), torch.ones(n).double()) / n
    often = mass > 1e-4
    assert mass[often].sum() > 0.99
    assert ((drawn - mass)[often].abs() < 5 * (mass[often] / n).sqrt()).all()
    bins = int(often.sum())  # of 20 expected points or more: Pearson's statistic has chi-squared's mean and deviation
    statistic = (n * (drawn - mass)[often].square() / mass[often]).sum().item()
    assert statistic == pytest.approx(bins, abs=4 * math.sqrt(2 * bins))


def test_ring_is_the_mixture_it_says_it_is():
    angle = 2 * math.pi * torch.arange(8) / 8
    parts = torch.distributions.MultivariateNormal(
        2.0 * torch.stack([angle.cos(), angle.sin()], 1).double(), 0.2**2 * torch.eye(2).double()
    )
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(8)), parts)
    x = 2 * torch.randn(200, 2, dtype=torch.float64)
    assert torch.allclose(toy.ring(8, 2.0, 0.2).log_prob(x), mixture.log_prob(x), atol=1e-5)


def test_a_swirl_is_undone_exactly():
    density, x = toy.pinwheel(5, 0.3, 0.1, 0.25, 2.0), torch.randn(50, 2, dtype=torch.float64)
    assert torch.allclose(density.rotate(density.rotate(x, +1), -1), x, atol=1e-12)
    assert not torch.allclose(density.rotate(x, +1), x, atol=0.1)


@pytest.mark.parametrize("noise", [0.0, 2.0**-24, 1e-6, 0.5, 1 - 2.0**-24])  # what float32's rand can give
@pytest.mark.parametrize("levels", [17, 256])
def test_quantize_undoes_dequantize_whatever_the_noise(levels, noise, monkeypatch):
    x = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, levels)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, noise))
    dequantized = pixels.dequantize(x, levels)
    assert dequantized.abs().max() < 0.5
    assert torch.equal(pixels.quantize(dequantized, levels), x)


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantize_spreads_each_level_evenly_over_its_bin(levels):
    x = torch.randint(0, levels, (20_000,), dtype=torch.uint8)
    noise = (pixels.dequantize(x, levels).double() + 0.5) * levels - x
    assert noise.min() > -1e-3 and noise.max() < 1 + 1e-3
    assert noise.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 20_000))
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_a_generator_fixes_the_noise_and_without_one_it_is_fresh():
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    seeded = [pixels.dequantize(x, 256, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*seeded)
    assert not torch.equal(pixels.dequantize(x, 256), pixels.dequantize(x, 256))


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (17, math.log2(17)), (2, 1.0)])
def test_the_uniform_density_costs_log2_levels_bits_per_dim(levels, bits):
    zero = torch.zeros((), dtype=torch.float64)
    assert pixels.bits_per_dim(zero, levels, 3072).item() == bits
    assert pixels.bits_per_dim(zero + 3072 * math.log(2), levels, 3072).item() == pytest.approx(bits - 1)


@pytest.mark.parametrize(("side", "channels", "seen"), [(8, 1, 8), (28, 1, 32), (32, 3, 32), (30, 3, 32)])
def test_to_images_undoes_to_tensor(side, channels, seen):
    given = np.random.default_rng(0).integers(1, 256, (3, side, side, channels), dtype=np.uint8)
    x = pixels.to_tensor(given)
    assert x.shape == (3, channels, seen, seen) and x.dtype == torch.uint8
    assert np.array_equal(pixels.to_images(x, side), given)
    assert int((x == 0).sum()) == 3 * channels * (seen**2 - side**2)  # the frame is level 0, and evenly wide
    assert x[:, :, (seen - side) // 2, (seen - side) // 2].gt(0).all()


def test_bits_per_dim_of_padded_images_charge_nothing_for_a_padding_that_is_known():
    """Of 32^2 pixels 28^2 are the image's; to know just the frame, density 256 per pixel, costs 8 bits."""
    part = np.zeros((4, 28, 28, 1), np.uint8)
    data = Images({f"{name}_images": part for name in PARTS} | {"levels": np.array(256)}, "cpu")
    assert data.shape == (1, 32, 32) and data.dims == 784
    assert data.loss((32**2 - 28**2) * math.log(256)) == pytest.approx(8.0, abs=1e-9)


def test_digits_split_is_stratified_disjoint_and_fixed():
    section = load("params.yaml").experiments["quick"]["digits"].data
    arrays = images.load(section)
    assert [len(arrays[f"{part}_images"]) for part in PARTS] == [1257, 140, 400]
    everything, labels = load_digits(return_X_y=True)
    expected = np.bincount(labels) * 400 / 1797
    assert np.abs(np.bincount(arrays["test_labels"]) - expected).max() < 1  # of each class its share
    parts = np.concatenate([arrays[f"{part}_images"].reshape(-1, 64) for part in PARTS])
    assert np.array_equal(everything[np.lexsort(everything.T)], parts[np.lexsort(parts.T)])  # each image once
    again = images.load(section)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert arrays["levels"] == 17 and arrays["train_images"].max() == 16


GOOD = {
    f"{part}_{what}": value
    for part, n in (("train", 8), ("test", 4))
    for what, value in (
        ("images", np.arange(n * 192, dtype=np.uint32).reshape(n, 8, 8, 3).astype(np.uint8)),
        ("labels", np.arange(n) % 10),
    )
}
SECTION = Npz(source="npz", file="own.npz", levels=256, validation=2, split_seed=0)


def load_own(tmp_path, monkeypatch, arrays=GOOD, damage=lambda content: content, **section):
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    np.savez(tmp_path / "own.npz", **arrays)
    content = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(damage(content))
    return images.load(SECTION.model_copy(update=section))


def test_a_good_npz_is_cut_into_three_parts(tmp_path, monkeypatch):
    arrays = load_own(tmp_path, monkeypatch)
    assert [len(arrays[f"{part}_images"]) for part in PARTS] == [6, 2, 4]
    assert np.array_equal(arrays["test_images"], GOOD["test_images"])
    together = np.concatenate([arrays["train_images"], arrays["validation_images"]])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in GOOD["train_images"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_images": GOOD["train_images"] / 255}, r"dtype float64.*0\.\.1: save \(images \* 255\)\.round"),
        ({"train_images": GOOD["train_images"] / 127.5 - 1}, r"-1\.\.1: save \(\(images \+ 1\) \* 127\.5\)\.round"),
        ({"train_images": GOOD["train_images"] * np.uint16(257)}, r"0\.\.65535: save \(images / 65535 \* 255\)\.round"),
        ({"train_images": GOOD["train_images"] * np.int64(16)}, r"0\.\.4080: save \(images / 4095 \* 255\)\.round"),
        ({"train_images": GOOD["train_images"].astype(int)}, r"0\.\.255: save images\.astype\('uint8'\)"),
        ({"train_images": GOOD["train_images"] * np.nan}, "not finite"),
        ({"test_images": GOOD["test_images"][..., 0]}, "test_images: shape"),
        ({"train_images": GOOD["train_images"][:, :, :7]}, "train_images: shape"),
        ({"train_images": GOOD["train_images"].transpose(0, 3, 1, 2)}, r"train_images: shape.*transpose\(0, 2, 3, 1\)"),
        ({"train_images": GOOD["train_images"][..., [0, 1, 2, 2]]}, r"train_images: shape.*\[\.\.\., :3\]"),
        ({"test_images": np.zeros((4, 16, 16, 3), np.uint8)}, "test_images"),  # not the training images' shape
        ({"train_labels": np.arange(8) + 10_000}, "train_labels.*numpy.unique"),
        ({"train_labels": GOOD["train_labels"][:, None]}, r"train_labels.*labels\.ravel\(\)"),
        ({"test_labels": np.arange(4) - 1}, "test_labels"),
        ({"test_labels": np.arange(4) / 2}, "test_labels"),
        ({"test_labels": np.arange(3)}, "4 images and 3 labels"),
        ({"train_labels": np.eye(8, 10, dtype=int)}, r"train_labels.*labels\.argmax\(1\)"),
        ({"test_labels": np.array(3)}, "test_labels"),
        ({f"test_{what}": GOOD[f"test_{what}"][:0] for what in ("images", "labels")}, "test_images: 0 images"),
        ({"train_labels": np.array([{}] * 8, dtype=object)}, "own.npz"),
        ({"train_images": np.zeros((8, 4, 4, 3), np.uint8)}, "train_images: side 4"),
    ],
)
def test_a_bad_array_is_refused_by_name(tmp_path, monkeypatch, change, says):
    with pytest.raises(UserError, match=says):
        load_own(tmp_path, monkeypatch, GOOD | change)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"levels": 17}, "grey level 255, but data.levels is 17"),
        ({"validation": 8}, "data.validation: 8 of only 8"),
        ({"file": "absent.npz"}, "absent.npz does not exist"),
    ],
)
def test_a_bad_section_is_refused_by_name(tmp_path, monkeypatch, section, says):
    with pytest.raises(UserError, match=says):
        load_own(tmp_path, monkeypatch, **section)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:2],
        lambda content: content[:-1],
        lambda content: b"text",
        lambda content: content[:400] + bytes(400) + content[800:],
    ],
    ids=["empty", "two bytes", "truncated", "text", "overwritten"],
)
def test_a_damaged_npz_is_refused_by_name(tmp_path, monkeypatch, damage):
    with pytest.raises(UserError, match=r"own\.npz"):
        load_own(tmp_path, monkeypatch, damage=damage)


def test_a_missing_array_and_a_bare_array_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"own\.npz: no array 'test_labels'"):
        load_own(tmp_path, monkeypatch, {key: value for key, value in GOOD.items() if key != "test_labels"})
    np.save(tmp_path / "bare.npy", GOOD["train_images"])
    with pytest.raises(UserError, match=r"bare\.npy"):
        images.load(SECTION.model_copy(update={"file": "bare.npy"}))


def test_a_constant_channel_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="channel 2 is 7 in every pixel"):
        flat = np.where(np.arange(3) == 2, np.uint8(7), GOOD["train_images"])
        load_own(tmp_path, monkeypatch, GOOD | {"train_images": flat})


@pytest.mark.parametrize(
    ("images_", "says"),
    [
        (GOOD["train_images"][:1].repeat(8, 0), "all are equal"),
        (GOOD["train_images"] // 128, r"only the levels \[0, 1\]"),
        (GOOD["train_images"] // 16, "no level above 15"),
        (GOOD["train_images"][..., :1].repeat(3, 3), "three channels are alike"),
        (GOOD["train_images"], None),
    ],
)
def test_images_that_were_hardly_meant_are_warned_of(tmp_path, monkeypatch, caplog, images_, says):
    monkeypatch.setattr(logging.getLogger("fce"), "propagate", True)
    load_own(tmp_path, monkeypatch, GOOD | {"train_images": images_})
    # pytest hears a record twice where an earlier test has run a stage
    said = list({id(record): record.getMessage() for record in caplog.records}.values())
    assert len(said) == (says is not None) and all(re.search(says, each) for each in said)


def no_network(*_, **__):
    raise URLError("no route to host")


@pytest.mark.parametrize(("source", "file"), ARCHIVES)
def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch, source, file):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FCE_DATA", raising=False)
    monkeypatch.setattr("pipeline.fetch.urlopen", no_network)
    with pytest.raises(UserError) as caught:
        images.load(Official(source=source, validation=5000, split_seed=0))
    for part in (file, *fetch.OFFICIAL[source][file], "FCE_DATA", "no route to host"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("source", "file"), ARCHIVES)
def test_a_file_with_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path, monkeypatch, source, file):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    monkeypatch.setattr("pipeline.fetch.urlopen", no_network)
    (tmp_path / file).write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{file} has a wrong checksum"):
        images.load(Official(source=source, validation=5000, split_seed=0))
    assert [path for path in (tmp_path / "build").rglob("*") if path.is_file()] == []


def test_a_broken_download_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def download(address, target):
        target.write_bytes(b"half of it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FCE_DATA", raising=False)
    monkeypatch.setattr("pipeline.fetch.download", download)
    with pytest.raises(UserError, match=r"gz has a wrong checksum; get it from https"):
        images.load(Official(source="cifar10", validation=5000, split_seed=0))
    assert [path for path in (tmp_path / "build").rglob("*") if path.is_file()] == []


class Response(io.BytesIO):
    """What a server that breaks off sends: a part of `content`, from where it was asked to begin."""

    url = "https://nowhere"

    def __init__(self, content, request, sends):
        start = int((request.get_header("Range") or "bytes=0-")[6:-1])
        super().__init__(content[start : start + sends])
        self.status, self.length = (206 if start else 200), max(0, len(content) - start - sends)


def test_a_download_that_breaks_off_goes_on_and_ends_after_three_tries(tmp_path, monkeypatch):
    content, asked = bytes(range(100)), []

    def answer(request, timeout):
        asked.append(request.get_header("Range"))
        return Response(content, request, sends)

    monkeypatch.setattr("pipeline.fetch.urlopen", answer)
    sends = 40
    fetch.download("https://nowhere", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content and asked == [None, "bytes=40-", "bytes=80-"]
    sends = 20
    with pytest.raises(OSError, match="40 bytes are missing"):
        fetch.download("https://nowhere", tmp_path / "other")


def test_a_folder_of_ones_own_is_found_or_its_name_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FCE_DATA", "~/data")
    with pytest.raises(UserError, match=r"FCE_DATA names .*data, which is no folder"):
        fetch.own_folder()
    (tmp_path / "data" / "deeper").mkdir(parents=True)
    assert fetch.own_folder() == tmp_path / "data"
    (tmp_path / "data" / "deeper" / "file").write_bytes(b"right")
    fetch.obtain("file", "https://nowhere", tmp_path / "got", "")
    assert (tmp_path / "got").read_bytes() == b"right"


def test_unpacked_files_that_are_not_cifar10s_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    (tmp_path / fetch.UNPACKED).mkdir()
    (tmp_path / fetch.UNPACKED / "data_batch_1").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"cifar-10-batches-py.*unpack the archive again"):
        images.load(Official(source="cifar10", validation=5000, split_seed=0))


def test_a_right_file_in_the_users_folder_is_taken_without_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    monkeypatch.setattr("pipeline.fetch.urlopen", no_network)
    (tmp_path / "file").write_bytes(b"right")
    (tmp_path / "root").mkdir()
    images.fetch("file", "https://nowhere", hashlib.sha256(b"right").hexdigest(), tmp_path / "root")
    assert (tmp_path / "root" / "file").read_bytes() == b"right"


def test_every_image_comes_once_per_pass():
    part = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    data, generator = Images({"train_images": part, "levels": np.array(256)}, "cpu"), torch.Generator().manual_seed(0)
    for _ in range(2):
        seen = torch.cat([pixels.quantize(data.batch(4, generator), 256)[:, 0, 0, 0] for _ in range(3)])
        assert sorted(seen.tolist()) == list(range(12))
    with pytest.raises(ValueError, match="only 12"):
        data.batch(13, generator)


def test_images_without_labels_have_none(tmp_path, monkeypatch):
    bare = {name: array for name, array in GOOD.items() if name.endswith("_images")}
    arrays = load_own(tmp_path, monkeypatch, bare, labels=False)
    assert set(arrays) == {*(f"{part}_images" for part in PARTS), "levels"}
    assert load_own(tmp_path, monkeypatch, GOOD, labels=False).keys() == arrays.keys()
    with pytest.raises(UserError, match="train_labels"):
        load_own(tmp_path, monkeypatch, bare)


MIDDLE = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
FOLDER = Folder(source="folder", file="faces", side=8, channels=3, validation=1, split_seed=0)


def save_picture(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A folder of pictures: four 16x8 with MIDDLE in the middle, two of class `b`; in test/ MIDDLE alone."""
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = MIDDLE
    for i in range(4):
        save_picture(tmp_path / "faces/train" / "ab"[i % 2] / f"{i}.png", wide)
    save_picture(tmp_path / "faces/test/b/0.png", MIDDLE)
    (tmp_path / "faces/train/a/notes.txt").write_text("no picture")
    return tmp_path / "faces"


def test_a_folder_of_pictures_is_cut_scaled_and_labelled(faces):
    arrays = images.load(FOLDER)
    assert arrays["train_images"].shape == (3, 8, 8, 3) and (arrays["train_images"] == MIDDLE).all()
    assert (arrays["test_images"] == MIDDLE).all() and arrays["test_labels"].tolist() == [1]
    assert sorted([*arrays["train_labels"], *arrays["validation_labels"]]) == [0, 0, 1, 1] and arrays["levels"] == 256
    grey = images.load(FOLDER.model_copy(update={"channels": 1, "labels": False, "side": 10}))
    assert grey["train_images"].shape == (3, 10, 10, 1) and "train_labels" not in grey


@pytest.mark.parametrize(("damage", "says"), [
    (lambda faces: (faces / "train/a/0.png").write_bytes(b"something else"), r"train/a/0\.png is no whole image"),
    (lambda faces: save_picture(faces / "train/a/0.png", np.full((8, 8), 40_000, np.uint16)), "more than 8 bits"),
    (lambda faces: save_picture(faces / "test/c/0.png", np.zeros((8, 8, 3), np.uint8)), "that train/ has not: c"),
    (lambda faces: shutil.rmtree(faces / "test"), "faces/test.*folder for each class, or data.labels: false"),
    (lambda faces: shutil.rmtree(faces), r"faces does not exist; data\.file is looked for"),
])
def test_a_folder_that_is_not_as_it_should_is_refused_with_its_place(faces, damage, says):
    damage(faces)
    with pytest.raises(UserError, match=says):
        images.load(FOLDER)


def test_an_own_input_has_a_hash_that_its_content_decides(faces, tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **GOOD)
    path = fetch.own_input("data", SECTION)
    assert path == tmp_path / "own.npz" and fetch.own_input("pretrain", SECTION) is None
    before, pictures = fetch.fingerprint(path), fetch.fingerprint(faces)
    os.utime(path, (0, 0))
    assert fetch.fingerprint(path) == before
    np.savez(path, **GOOD | {"train_labels": GOOD["train_labels"][::-1]})
    assert fetch.fingerprint(path) != before
    (faces / "train/a/0.png").unlink()
    assert fetch.fingerprint(faces) != pictures and fetch.own_input("data", FOLDER) == faces
    assert fetch.own_input("inception") is None
    (tmp_path / fetch.WEIGHTS).touch()
    assert fetch.own_input("inception") == tmp_path / fetch.WEIGHTS
    monkeypatch.delenv("FCE_DATA")
    monkeypatch.chdir(tmp_path)
    assert fetch.own_input("data", SECTION) is None and fetch.own_folder() == Path("data")
