"""Images, heads, known accuracies and words that users bring to a forecast."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mergelib.core.errors import MergelibError
from mergelib.core.store import save_tensors
from mergelib.forecasting.heads import Head, of_file
from mergelib.forecasting.known import of_mapping, read_known
from mergelib.forecasting.preprocessing import of_processor
from mergelib.forecasting.words import by_name, models_of
from mergelib.tasks.images import draw, find_images, pixels
from mergelib.tasks.words import read_classes


def picture(seed: int, size=(9, 7)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Three classes of 6, 3 and 1 images."""
    for k, (name, count) in enumerate({"b": 6, "a": 3, "c": 1}.items()):
        for i in range(count):
            file = tmp_path / "images" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * k + i).save(file)
    return tmp_path / "images"


def flat(folder, count):
    folder.mkdir()
    for i in range(count):
        picture(i).save(folder / f"{i}.png")
    return folder


# --- images ---------------------------------------------------------------------------------------


def test_folders_name_classes_and_pixels_are_those_of_the_files(folder):
    images = find_images(folder)
    assert images.classes == ("a", "b", "c") and images.count == 10
    assert np.bincount(images.labels).tolist() == [3, 6, 1]
    first = np.asarray(Image.open(folder / "a" / "0.png"))
    assert np.array_equal(np.asarray(images.read(0)), first)


@pytest.mark.parametrize(("n", "most"), [(3, [1, 1, 1]), (7, [3, 3, 1]), (10, [3, 6, 1])])
def test_draws_are_balanced_by_seed_and_without_repetition(folder, n, most):
    images = find_images(folder)
    drawn = [draw(images, n, seed) for seed in range(5)]
    for chosen in drawn:
        assert len(set(chosen.tolist())) == n
        assert np.bincount(images.labels[chosen], minlength=3).tolist() == most
    assert np.array_equal(drawn[0], draw(images, n, 0))
    if n < 10:
        assert len({tuple(sorted(chosen)) for chosen in drawn}) > 1


def test_every_image_is_drawn_alike(tmp_path):
    images = find_images(flat(tmp_path / "flat", 8))
    counts = np.bincount(np.concatenate([draw(images, 2, seed) for seed in range(400)]))
    # 100 each, binomial: within four standard deviations
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_a_table_labels_a_flat_folder(tmp_path):
    folder = flat(tmp_path / "flat", 4)
    table = tmp_path / "labels.csv"

    def labelled(rows):
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *rows])
        return find_images(folder, table)

    with pytest.warns(UserWarning, match="1 images are not in labels.csv"):
        images = labelled([("0.png", "dog"), ("2.png", "cat"), ("3.png", "dog")])
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [1, 0, 1]
    rows = labelled([(f"{i}.png", 7 - i) for i in range(4)])
    assert rows.classes == () and rows.labels.tolist() == [7, 6, 5, 4]
    for wrong, said in (
        ([("9.png", 1)], "which is missing"),
        ([("0.png", 1), ("0.png", 2)], "comes twice"),
        ([], "lists no file"),
    ):
        with pytest.raises(MergelibError, match=said):
            labelled(wrong)
    table.write_text("name,label\n0.png,1\n")
    with pytest.raises(MergelibError, match="no column 'file', it has name, label"):
        find_images(folder, table)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["last", "first"])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_hold_images_and_labels(tmp_path, order, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    held = {"images": np.ascontiguousarray(pixels.transpose(order)), "labels": np.arange(5) % 2}
    path = tmp_path / f"data.{suffix}"
    if suffix == "npz":
        np.savez(path, **held)
    else:
        save_tensors(path, {f"calibration/{k}": torch.from_numpy(v) for k, v in held.items()})
    images = find_images(path)
    assert images.labels.tolist() == [0, 1, 0, 1, 0]
    assert all(np.array_equal(np.asarray(images.read(i)), pixels[i]) for i in range(5))


ARRAYS = {
    "no `images`": {"pictures": np.zeros((2, 3, 4, 4), np.uint8)},
    "images are float64": {"images": np.zeros((2, 3, 4, 4))},
    "of shape (2, 4, 4)": {"images": np.zeros((2, 4, 4), np.uint8)},
    "holds no image": {"images": np.zeros((0, 3, 4, 4), np.uint8)},
    "one whole number an image": {
        "images": np.zeros((2, 3, 4, 4), np.uint8),
        "labels": np.zeros(3, int),
    },
    "count classes from 0": {
        "images": np.zeros((2, 3, 4, 4), np.uint8),
        "labels": np.array([0, -1]),
    },
}


@pytest.mark.parametrize("said", ARRAYS)
def test_arrays_of_another_form_are_refused(tmp_path, said):
    np.savez(tmp_path / "data.npz", **ARRAYS[said])
    with pytest.raises(MergelibError) as error:
        find_images(tmp_path / "data.npz")
    assert said in str(error.value) and "data.npz" in str(error.value)


def test_pickled_arrays_are_not_loaded(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.array([{}], dtype=object))
    with pytest.raises(MergelibError, match="cannot be read"):
        find_images(tmp_path / "data.npz")


def test_what_is_no_folder_of_images_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MergelibError, match="empty holds no image"):
        find_images(tmp_path / "empty")
    with pytest.raises(MergelibError, match="is no folder of images"):
        find_images(tmp_path / "nowhere")
    picture(0).save(folder / "beside.png")
    with pytest.raises(MergelibError, match="beside.png, …. beside folders of images .a, …."):
        find_images(folder)
    with pytest.raises(MergelibError, match="holds 3 images, asked for are 4: give more, or --n 3"):
        draw(find_images(folder / "a"), 4)
    with pytest.raises(MergelibError, match="--n 1 or more"):
        draw(find_images(folder / "a"), 0)


def test_an_unreadable_image_is_named_when_it_is_drawn(folder):
    (folder / "c" / "0.png").write_bytes(b"no picture")
    images = find_images(folder)
    transform = of_processor({"size": 4, "do_normalize": False}, folder)
    assert pixels(images, [0, 1], transform).shape[:2] == (2, 3)
    with pytest.raises(MergelibError, match="c/0.png cannot be read"):
        pixels(images, [9], transform)


def test_labels_count_the_classes_of_the_head(folder):
    images = find_images(folder).under(("c", "other", "b", "a"))
    assert images.labels.tolist() == [3] * 3 + [2] * 6 + [0]
    with pytest.raises(MergelibError, match="class 'c' is none of the head's 2 classes"):
        find_images(folder).under(("a", "b"))


# --- preprocessing --------------------------------------------------------------------------------

PROCESSORS = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": 8}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 8, "width": 8},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True,
        "do_normalize": True, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27],
    },
    "vit": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(23, 17), (6, 11), (8, 8)])
def test_processors_prepare_as_transformers_does(tmp_path, name, size):
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(PROCESSORS[name]))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = picture(3, size)
    wanted = theirs(image, return_tensors="pt")["pixel_values"][0]
    found = of_processor(PROCESSORS[name], file)(image)
    # both round resized pixels to whole numbers; a last bit of scaling and normalizing may differ
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 16 * torch.finfo(torch.float32).eps * 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": {"longest_edge": 8}}, "size .* is of a form"),
        ({"size": 4, "rescale_factor": 1.0}, "scaled other than by 1/255"),
        ({"size": 4, "image_mean": None, "image_std": None}, "no usable image_mean"),
    ],
)
def test_processors_of_other_forms_are_refused(tmp_path, changed, said):
    with pytest.raises(MergelibError, match=said):
        of_processor(PROCESSORS["vit"] | changed, tmp_path / "preprocessor_config.json")


# --- heads ----------------------------------------------------------------------------------------


def test_scores_of_heads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    z = torch.randn(5, 6, generator=generator)
    save_tensors(tmp_path / "zero_shot.safetensors", {"head": weight})
    save_tensors(tmp_path / "classifier.safetensors", {"weight": weight, "bias": bias})
    unit = z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True)
    bound = 10 * torch.finfo(torch.float32).eps * 6 * float(weight.abs().max())
    found = of_file(tmp_path / "zero_shot.safetensors").scores(z).numpy()
    assert np.abs(found - unit @ weight.double().numpy().T).max() < bound
    found = of_file(tmp_path / "classifier.safetensors").scores(z).numpy()
    wanted = z.double().numpy() @ weight.double().numpy().T + bias.double().numpy()
    assert np.abs(found - wanted).max() < bound * float(z.abs().max())
    with pytest.raises(MergelibError, match=r"head has shape \(4, 6\) but features have 5"):
        Head(weight).scores(z[:, :5])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, "a head is one matrix"),
        ({"a": torch.ones(2, 3), "scale": torch.ones(())}, "a head is one matrix"),
        ({"a": torch.ones(2, 3), "bias": torch.ones(3)}, "a bias a class"),
        ({"a": torch.ones(1, 3)}, "two classes or more"),
        ({"a": torch.full((2, 3), torch.nan)}, "NaN"),
    ],
)
def test_heads_of_other_forms_are_refused(tmp_path, tensors, said):
    save_tensors(tmp_path / "head.safetensors", tensors)
    with pytest.raises(MergelibError, match=said):
        of_file(tmp_path / "head.safetensors")


def test_class_names(tmp_path):
    (tmp_path / "names.txt").write_text("red fox\n\nhare\n")
    assert read_classes(tmp_path / "names.txt").names == ("red fox", "hare")
    held = {"classes": ["a", "b"], "templates": ["an {}"]}
    (tmp_path / "names.json").write_text(json.dumps(held))
    assert read_classes(tmp_path / "names.json").templates == ("an {}",)
    for text, said in (
        ("fox\nfox\n", "each once"),
        ("fox\n", "names 1 classes"),
    ):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(MergelibError, match=said):
            read_classes(tmp_path / "names.txt")
    (tmp_path / "names.json").write_text(json.dumps(held | {"templates": ["a"]}))
    with pytest.raises(MergelibError, match="template 'a' has no {}"):
        read_classes(tmp_path / "names.json")
    (tmp_path / "names.json").write_text(json.dumps({"classes": "ab"}))
    with pytest.raises(MergelibError, match="must be a list"):
        read_classes(tmp_path / "names.json")


# --- known accuracies -----------------------------------------------------------------------------


def test_known_accuracies(tmp_path):
    file = tmp_path / "tasks.csv"
    file.write_text("task,zero_shot,fine_tuned\nb,0.5,0.75\na,0.25,1\nother,0,0\n")
    known = read_known(file, ["a", "b"])
    assert (known["a"].zero_shot, known["b"].fine_tuned) == (0.25, 0.75)
    assert of_mapping({"a": (0.25, 1.0), "b": (0.5, 0.75)}, ["a", "b"]) == known
    for text, said in (
        ("task,zero_shot\na,0\n", "no column 'fine_tuned'"),
        ("zero_shot,fine_tuned\n0,1\n", "no column 'task or model'"),
        ("task,zero_shot,fine_tuned\na,0.5,0.75\n", "no row of 'b'"),
        ("task,zero_shot,fine_tuned\na,50,75\nb,50,75\n", "look like percent"),
        ("task,zero_shot,fine_tuned\na,0.5,0\nb,0.5,0.5\n", "no accuracies"),
        ("task,zero_shot,fine_tuned\na,x,1\nb,0.5,0.5\n", "no accuracies"),
        ("task,zero_shot,fine_tuned\na,0.5,1\na,0.5,0.5\n", "has 'a' 2 times"),
    ):
        file.write_text(text)
        with pytest.raises(MergelibError, match=said):
            read_known(file, ["a", "b"])
    with pytest.raises(MergelibError, match="lack 'b'"):
        of_mapping({"a": (0.1, 0.2)}, ["a", "b"])


# --- words ----------------------------------------------------------------------------------------


def test_words_go_by_name_or_by_order(tmp_path):
    models = models_of([f"{tmp_path}/x.pt", f"cars={tmp_path}/y.pt"])
    assert list(models) == ["x", "cars"]
    assert by_name(["p", "q"], models, "images") == {"x": "p", "cars": "q"}
    assert by_name(["cars=p", "x=q"], models, "images") == {"cars": "p", "x": "q"}
    assert by_name([], models, "classes") == {"x": "folders", "cars": "folders"}
    assert by_name(None, models, "classes") is None
    (tmp_path / "a=b").mkdir()
    assert by_name([f"{tmp_path}/a=b", "q"], models, "images")["x"] == f"{tmp_path}/a=b"
    for words, said in (
        (["p"], "2 models and 1 of --images"),
        (["p", "cars=q"], "all with a name"),
        (["cars=p", "cars=q"], "'cars' is given twice"),
        (["=p", "q"], "is no NAME=PATH"),
    ):
        with pytest.raises(MergelibError, match=said):
            by_name(words, models, "images")
    with pytest.raises(MergelibError, match="two models are named 'x'"):
        models_of(["x=1.pt", "x=2.pt"])
