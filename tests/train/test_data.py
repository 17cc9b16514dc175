"""Data: every source gives what it should, in a seeded order that resumes anywhere, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.batches import Batches
from meanflow_ref.train.checkpoint import dump_tensors
from meanflow_ref.train.config import Config
from meanflow_ref.train.data import AbstractSource, Arrays, open_source
from meanflow_ref.train.distributed import Ranks
from meanflow_ref.train.presets import preset


def source(**changes: Any) -> AbstractSource:
    return open_source(preset("toy", **({"batch": 4} | changes)))


def parts(config: Config, world: int = 1, steps: int = 3) -> list[torch.Tensor]:
    """x of each step, the ranks' shares and accumulated parts in order."""
    found = []
    for step in range(1, steps + 1):
        shares = [
            Batches(open_source(config), config, Ranks(rank, world, torch.device("cpu"))) for rank in range(world)
        ]
        found.append(torch.cat([share.draw(step, k).x for share in shares for k in range(config.accumulate)]))
    return found


def test_each_epoch_has_every_sample_once_and_another_order() -> None:
    arrays = Arrays(torch.arange(10.0)[:, None], None, seed=1)
    rows = arrays.order(0, 30).reshape(3, 10)
    for epoch in rows:
        assert sorted(epoch.tolist()) == list(range(10))
    assert rows[0].tolist() != rows[1].tolist()
    assert torch.equal(arrays.order(7, 9), arrays.order(0, 30)[7:16]), "any place can be asked for"
    assert not torch.equal(Arrays(torch.arange(10.0)[:, None], None, seed=2).order(0, 10), rows[0])


@pytest.mark.parametrize("data", ["ring", "digits"])
def test_ranks_and_accumulated_parts_see_the_same_batch(data: str) -> None:
    two_ranks = parts(preset("toy", data=data, batch=8), world=2)
    two_parts = parts(preset("toy", data=data, batch=8, accumulate=2))
    for a, b in zip(two_ranks, two_parts, strict=True):
        assert torch.equal(a, b)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    config = preset("toy", data="digits", batch=8, label_dropout=0.5)
    ranks = Ranks(0, 1, torch.device("cpu"))
    a, b = Batches(open_source(config), config, ranks), Batches(open_source(config), config, ranks)
    a.draw(1, 0), a.draw(2, 0)
    first, again = a.draw(3, 0), b.draw(3, 0)
    for x, y in zip(first, again, strict=True):
        assert x is not None
        assert y is not None
        assert torch.equal(x, y)
    assert not torch.equal(first.eps, a.draw(4, 0).eps)


def test_labels_are_dropped_independently_of_r_equal_t() -> None:
    config = preset("toy", data="digits", batch=1000, label_dropout=0.3, equal=0.5)
    drawn = Batches(open_source(config), config, Ranks(0, 1, torch.device("cpu"))).draw(1, 0)
    assert drawn.label is not None
    dropped, equal = (drawn.label == 10).double(), (drawn.r == drawn.t).double()
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.08)
    # A correlation of 1000 independent rows is beyond 5/sqrt(1000) once in a million seeds; this seed is fixed.
    assert abs(float(torch.corrcoef(torch.stack([dropped, equal]))[0, 1])) < 0.16


def test_digits() -> None:
    digits = source(data="digits")
    x, y = digits.reference(1797, 0)
    assert (digits.shape, digits.classes, digits.size) == ((64,), 10, 1797)
    assert y is not None
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert sorted(set(y.tolist())) == list(range(10))


@pytest.mark.parametrize("name", ["ring", "checkerboard", "line", "gaussian", "shell"])
def test_exact_fields_are_fresh(name: str) -> None:
    field = source(data=name)
    a, _ = field.take(0, 5, torch.Generator().manual_seed(0))
    b, _ = field.take(0, 5, torch.Generator().manual_seed(1))
    assert field.size is None
    assert a.shape == (5, *field.shape)
    assert a.dtype == torch.float32
    assert not torch.equal(a, b)


def test_a_field_of_ones_own() -> None:
    assert source(data="meanflow_ref.train.data.fields:checkerboard").shape == (2,)
    with pytest.raises(ParameterError, match="is str"):
        source(data="meanflow_ref:__version__")
    with pytest.raises(ParameterError, match="no_such_module"):
        source(data="no_such_module:field")
    with pytest.raises(ParameterError, match="--data checkerboard"):
        source(data="chekerboard")


def image(path: Path, size: tuple[int, int] = (4, 6), mode: str = "RGB", value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/a.png"):
        image(tmp_path / name)
    images = source(data="images", data_path=tmp_path, batch=3)
    x, y = images.reference(3, 0)
    assert (images.shape, images.classes, images.size) == ((3, 6, 4), 2, 3)
    assert set(x[:, 0].flatten().tolist()) == {1.0}
    assert set(x[:, 1].flatten().tolist()) == {-1.0}
    assert y is not None
    assert sorted(y.tolist()) == [0, 0, 1]


def test_grey_images_without_classes_and_mirrored(tmp_path: Path) -> None:
    for i in range(4):
        pixels = np.zeros((2, 3), "u1")
        pixels[:, 0] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    config = preset("toy", data="images", data_path=tmp_path, batch=4, flip=True, model="unet")
    images = open_source(config)
    assert (images.shape, images.classes) == ((1, 2, 3), None)
    ranks = Ranks(0, 1, torch.device("cpu"))
    x = torch.cat([Batches(images, config, ranks).draw(step, 0).x for step in range(1, 20)])
    left, right = (x[:, 0, 0, 0] == 1), (x[:, 0, 0, 2] == 1)
    assert bool((left ^ right).all())
    # 76 coins: fewer than 15 or more than 61 heads once in 1e7 seeds.
    assert 15 <= int(left.sum()) <= 61


def test_images_that_do_not_fit_together(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.png", size=(5, 6))
    with pytest.raises(ParameterError, match=r"mixed sizes: a.png is \(3, 6, 4\), b.png is \(3, 6, 5\)"):
        source(data="images", data_path=tmp_path, batch=1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    with pytest.raises(ParameterError, match=r"b.png cannot be read"):
        source(data="images", data_path=tmp_path, batch=1)
    (tmp_path / "b.png").unlink()
    image(tmp_path / "cat" / "a.png")
    with pytest.raises(ParameterError, match="beside sub-folders"):
        source(data="images", data_path=tmp_path, batch=1)
    with pytest.raises(ParameterError, match="a folder of images"):
        source(data="images", data_path=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match="no images"):
        source(data="images", data_path=tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_arrays_of_each_kind(suffix: str, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(9, 4, 2, 2)).astype("f4")
    label = np.arange(9) % 3
    path = tmp_path / f"latents{suffix}"
    if suffix == ".npz":
        np.savez(path, latents=latents, labels=label)
    elif suffix == ".npy":
        np.save(path, latents)
    else:
        path.write_bytes(dump_tensors({"latents": torch.from_numpy(latents), "labels": torch.from_numpy(label)}))
    arrays = source(data="array", data_path=path, data_scale=0.5)
    x, y = arrays.reference(9, 0)
    order = [int(np.abs(0.5 * latents - row.numpy()).reshape(9, -1).max(1).argmin()) for row in x]
    assert sorted(order) == list(range(9))
    assert np.allclose(x.numpy(), 0.5 * latents[order])
    assert (arrays.shape, arrays.classes) == ((4, 2, 2), None if suffix == ".npy" else 3)
    if y is not None:
        assert y.tolist() == label[order].tolist()


def test_bytes_are_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.full((5, 4, 4, 3), 255, "u1"))
    x, _ = source(data="array", data_path=tmp_path / "x.npz").reference(5, 0)
    assert x.shape == (5, 3, 4, 4)
    assert set(x.flatten().tolist()) == {1.0}


def test_arrays_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", z=np.zeros((5, 2), "f4"))
    np.savez(tmp_path / "y.npz", x=np.zeros((5, 2), "f4"), label=np.array([0, 1, 2, -1, 0]))
    np.savez(tmp_path / "n.npz", x=np.zeros((5, 2), "f4"), label=np.zeros(4, "i8"))
    np.save(tmp_path / "o.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "half.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:50])
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "x.pkl").write_bytes(b"")
    cases = {"x.npz": "holds z", "y.npz": r"range over \[-1, 2\]", "n.npz": "5 samples", "o.npy": "cannot be read"}
    cases |= {"half.npz": "cannot be read", "half.safetensors": "cannot be read", "x.pkl": "ending", "no.npz": "is"}
    for name, message in cases.items():
        with pytest.raises(ParameterError, match=message):
            source(data="array", data_path=tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits", "batch": 2000}, "--batch is 2000, the data have 1797"),
        ({"data": "digits", "velocity": "marginal"}, "--velocity marginal"),
        ({"kappa": 0.5}, "data without classes"),
        ({"label_dropout": 0.1}, "data without classes"),
        ({"data": "digits", "kappa": 0.5}, "--label-dropout 0"),
        ({"flip": True}, "--flip"),
    ],
)
def test_options_that_do_not_fit_the_data(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        source(**changes)
