"""Sources of images: every form made here in its own format, and read as what was written."""

import io
import socket
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import FakeData

from mergelib.core.errors import MergelibError
from mergelib.tasks.given import dealt, opened, read_given, under, words
from mergelib.tasks.sources import FORMS

NAMES = ("ant", "bee", "cow")
SIZES = {"train": 20, "calibration": 3, "test": 12}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (36, 12, 10, 3), dtype=np.uint8)


def encoded(array):
    held = io.BytesIO()
    Image.fromarray(array).save(held, "PNG")
    return held.getvalue()


def given(**raw):
    return read_given({"name": "mine", **raw}, "file.yaml")


def same(images, pictures, labels):
    assert images.count == len(pictures) == len(labels)
    found = [np.asarray(images.read(i)) for i in range(images.count)]
    assert all(np.array_equal(x, y) for x, y in zip(found, pictures, strict=True))
    assert images.labels.tolist() == list(labels)


def test_the_forms():
    assert list(FORMS) == ["folder", "npz", "hf", "torchvision", "webdataset"]


def shard(path, pictures, labels, suffix="cls"):
    with tarfile.open(path, "w") as held:
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            for end, data in ((suffix, str(label).encode()), ("png", encoded(picture))):
                info = tarfile.TarInfo(f"part/{i:04}.{end}")
                info.size = len(data)
                held.addfile(info, io.BytesIO(data))


def test_shards(pictures, tmp_path):
    labels = [i % 3 for i in range(36)]
    for k in range(2):
        part = slice(18 * k, 18 * k + 18)
        shard(tmp_path / f"a-{k}.tar", pictures[part], labels[part])
    for at in (tmp_path, tmp_path / "a-*.tar"):
        train, test = opened(given(webdataset=str(at)))
        same(train, pictures, labels)
        assert test is None and words(given(webdataset=str(at))).names == ("0", "1", "2")
    assert len(dealt(given(webdataset=str(tmp_path)), SIZES, 0)["test"][1]) == 12
    (tmp_path / "named").mkdir()
    shard(tmp_path / "named" / "b.tar", pictures[:6], [NAMES[i % 3] for i in range(6)], "txt")
    named = opened(given(webdataset=str(tmp_path / "named" / "b.tar")))[0]
    same(named, pictures[:6], labels[:6])
    assert named.classes == NAMES and named.raw(2) == encoded(pictures[2])


def test_shards_that_cannot_be_read_are_named(pictures, tmp_path):
    with pytest.raises(MergelibError, match="no tar file and holds none"):
        opened(given(webdataset=str(tmp_path)))
    shard(tmp_path / "a.tar", pictures[:2], [0, ""])
    with pytest.raises(MergelibError, match=r"a.tar: image part/0001 has no label"):
        opened(given(webdataset=str(tmp_path / "a.tar")))
    (tmp_path / "b.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(MergelibError, match=r"b.tar is no readable tar file"):
        opened(given(webdataset=str(tmp_path / "b.tar")))


@pytest.fixture(scope="module")
def hugging_face(pictures):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))}
    )

    def of(part):
        cells = [{"bytes": encoded(p), "path": None} for p in pictures[part]]
        kinds = [i % 3 for i in range(len(cells))]
        return datasets.Dataset.from_dict({"picture": cells, "kind": kinds}, features=features)

    return datasets.DatasetDict(train=of(slice(0, 24)), validation=of(slice(24, 36)))


def test_a_data_set_of_hugging_face(hugging_face, pictures, tmp_path):
    hugging_face.save_to_disk(tmp_path / "saved")
    train, test = opened(given(hf=str(tmp_path / "saved"), test="validation"))
    same(train, pictures[:24], [i % 3 for i in range(24)])
    same(test, pictures[24:], [i % 3 for i in range(12)])
    assert train.classes == NAMES and train.raw(1) == encoded(pictures[1])
    assert opened(given(hf=str(tmp_path / "saved")))[1] is None  # it has no split `test`
    hugging_face["train"].save_to_disk(tmp_path / "one")
    same(opened(given(hf=str(tmp_path / "one")))[0], pictures[:24], [i % 3 for i in range(24)])
    for raw, said in (
        ({"train": "tain"}, "splits train, validation, no tain"),
        ({"image": "pixels"}, "columns picture, kind"),
    ):
        with pytest.raises(MergelibError, match=said):
            opened(given(hf=str(tmp_path / "saved"), **raw))


def test_a_folder_of_parquet(hugging_face, pictures, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "kept")
    (tmp_path / "set").mkdir()
    for split in hugging_face:
        hugging_face[split].to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    task = given(hf="set", test="validation")
    train, test = opened(under(task, tmp_path))
    same(train, pictures[:24], [i % 3 for i in range(24)])
    assert test.count == 12 and words(under(task, tmp_path)).names == NAMES

    looked_up = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: looked_up.append(given))
    with pytest.raises(MergelibError, match="hf no/set cannot be opened .* give `download: true`"):
        opened(under(given(hf="no/set"), tmp_path))
    assert not looked_up
    assert not datasets.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE  # as it was


def test_data_sets_of_torchvision(pictures, tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "eurosat" / "2750"
    for i, picture in enumerate(pictures):
        (folder / NAMES[i % 3]).mkdir(parents=True, exist_ok=True)
        (folder / NAMES[i % 3] / f"{i:02}.png").write_bytes(encoded(picture))
    task = under(given(torchvision="EuroSAT", arguments={"root": "."}), tmp_path)
    train, test = opened(task)
    order = [i for c in range(3) for i in range(c, 36, 3)]
    same(train, pictures[order], [i % 3 for i in order])
    assert test is None and train.classes == NAMES and train.raw(0) == encoded(pictures[0])

    class Own(FakeData):
        """Neither files nor a list of labels: what PCAM is like."""

        def __init__(self, root, split="train", download=False):
            super().__init__(12 if split == "train" else 8, (3, 8, 8), 3)
            assert not download and split in ("train", "test")

    monkeypatch.setattr(datasets, "Own", Own, raising=False)
    train, test = opened(under(given(torchvision="Own"), tmp_path))
    assert (train.count, test.count) == (12, 8)
    assert train.labels.tolist() == [int(Own("")[i][1]) for i in range(12)]
    assert train.content(3) == Own("")[3][0].tobytes()


def test_a_data_set_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(MergelibError, match="MNIST cannot be opened .* `download: true`"):
        opened(under(given(torchvision="MNIST"), tmp_path))
    with pytest.raises(MergelibError, match="no data set 'MNISTT'"):
        opened(under(given(torchvision="MNISTT"), tmp_path))
