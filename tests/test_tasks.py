"""The twenty tasks: words, balance, disjoint splits, and pixels that can be checked elsewhere."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mergelib.core.errors import MergelibError
from mergelib.tasks import SPLITS, TASKS, build
from mergelib.tasks.glyphs import CANVAS, characters, icons, mask, words
from mergelib.tasks.render import SIZE, Style, _place, draw
from mergelib.tasks.shipped import PHOTOGRAPHS

SIZES = {"train": 40, "calibration": 10, "test": 20}


def test_there_are_twenty_of_the_agreed_kinds():
    rows = TASKS.rows()
    assert len(rows) == 20
    assert sum(row.source != "rendered glyphs" for row in rows) == 4
    assert [row.name for row in rows if row.family == "attribute"] == ["typeface", "color"]


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_is_whole(name):
    task = build(name, SIZES)
    assert len(set(task.class_names)) == len(task.class_names) >= 2
    assert all("{}" in template for template in task.templates)
    images = []
    for part in SPLITS:
        split = getattr(task, part)
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), 3, SIZE, SIZE)
        assert int(split.labels.min()) >= 0 and int(split.labels.max()) < len(task.class_names)
        images.append(split.images.flatten(1))
    assert [len(getattr(task, part)) for part in SPLITS] == list(SIZES.values())
    every = torch.cat(images)
    assert len(every.unique(dim=0)) == len(every)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["braille", "photos", "mnist", "color"])
def test_the_seed_fixes_the_pixels(name):
    first, again, other = build(name, SIZES, 3), build(name, SIZES, 3), build(name, SIZES, 4)
    assert torch.equal(first.test.images, again.test.images)
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.test.images, other.test.images)


def test_rendered_classes_are_even():
    task = build("vehicles", {"train": 42, "calibration": 14, "test": 28})
    for part, each in (("train", 3), ("calibration", 1), ("test", 2)):
        assert np.bincount(getattr(task, part).labels).tolist() == [each] * 14


def test_class_names_are_unicode_names():
    assert TASKS["greek"].class_names[0] == unicodedata.name("α").lower()
    assert TASKS["cyrillic"].class_names[-1] == unicodedata.name("Я").lower()
    assert TASKS["braille"].class_names[-1] == "braille pattern dots 6"
    assert words("LATIN SMALL LETTER A WITH DOT BELOW") == "latin small letter a with dot below"


def test_digits_are_those_of_scikit_learn():
    data = load_digits()
    large = {}
    for image, label in zip(data.images, data.target, strict=True):
        pixels = (image * 255 / 16).round().astype(np.uint8)
        shown = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        large[np.asarray(shown).tobytes()] = label
    task = build("digits", SIZES)
    for image, label in zip(task.test.images, task.test.labels, strict=True):
        assert (image[0] == image[1]).all() and (image[0] == image[2]).all()
        assert large[image[0].numpy().tobytes()] == label


def test_no_photograph_is_on_two_sides():
    names = [name for part in SPLITS for name in PHOTOGRAPHS[part]]
    assert len(set(names)) == len(names)


def test_a_source_with_few_images_gives_its_share():
    task = build("faces", {"train": 800, "calibration": 100, "test": 300})
    sizes = [len(getattr(task, part)) for part in SPLITS]
    n = sum(sizes)
    assert 190 <= n <= 200
    assert sizes == [n - n // 10 - n * 2 // 5, n // 10, n * 2 // 5]


def test_unknown_task_names_the_nearest():
    with pytest.raises(MergelibError, match="did you mean 'braille'"):
        build("brail", SIZES)


def test_glyphs_come_in_the_promised_numbers():
    assert len({g.code for g in characters()}) > 5000
    assert len(icons()) > 14000 and not any(g.typeface != "icon" for g in icons())


def test_masks_are_centred():
    for glyph in characters()[40:60]:
        ink = mask(glyph.font, glyph.code).astype(float)
        rows, columns = np.flatnonzero(ink.sum(1)), np.flatnonzero(ink.sum(0))
        assert abs((rows[0] + rows[-1] + 1) / 2 - CANVAS / 2) <= 4
        assert abs((columns[0] + columns[-1] + 1) / 2 - CANVAS / 2) <= 4


PLAIN = Style(rotation=0, scale=(1, 1), shift=0, blur=(0, 0), noise=(0, 0), contrast=(1, 1), tint=0)


def test_drawing_is_the_mask_between_two_colours():
    glyph = next(g for g in characters() if g.code == ord("H") and g.typeface == "sans")
    drawn = draw([glyph], np.random.default_rng(0), PLAIN)
    ink = np.asarray(
        Image.fromarray(mask(glyph.font, glyph.code)).resize((SIZE, SIZE), Image.Resampling.BOX),
        dtype=float,
    )
    picture = drawn.images[0].astype(float)
    for channel in picture:  # each channel is affine in the coverage
        if np.ptp(channel) > 30:
            assert abs(np.corrcoef(channel.ravel(), ink.ravel())[0, 1]) > 0.97


def test_rotation_turns_the_picture():
    glyph = next(g for g in characters() if g.code == ord("L") and g.typeface == "bold sans")
    turned = _place(glyph, np.pi / 2, 1.0, 0.0, 0.0, 0.0)
    straight = _place(glyph, 0.0, 1.0, 0.0, 0.0, 0.0)
    matches = [np.corrcoef(np.rot90(straight, k).ravel(), turned.ravel())[0, 1] for k in range(4)]
    assert max(matches[1], matches[3]) > 0.97 > matches[0]


def test_foreground_can_be_asked_for():
    glyphs = [characters()[50]] * 12
    asked = np.arange(12)
    drawn = draw(glyphs, np.random.default_rng(0), PLAIN, foreground=asked)
    assert drawn.foreground.tolist() == asked.tolist()
    assert (drawn.background != asked).all()
