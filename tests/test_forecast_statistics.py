"""The probe's statistics, against the formulas written out image by image and class by class."""

import math

import numpy as np
import pytest
import torch
from bounds import bound
from scipy.special import softmax
from scipy.stats import entropy

from mergelib.core.errors import MergelibError
from mergelib.forecasting.statistics import Outputs, per_image, probe, statistics

pytestmark = pytest.mark.numeric

N, D, C = 37, 24, 7


def outputs(seed: int) -> tuple[Outputs, Outputs, Outputs]:
    """Three encoders' outputs, float32, of the same images; scores as sharp as a CLIP head's."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(N, D, generator=rng)
    expert = base + 0.7 * torch.randn(N, D, generator=rng)
    merged = (base + expert) / 2 + 0.3 * torch.randn(N, D, generator=rng)
    head = 8 * torch.randn(C, D, generator=rng)
    return tuple(
        Outputs(x, x / x.norm(dim=1, keepdim=True) @ head.T) for x in (merged, expert, base)
    )


def slow(merged: Outputs, expert: Outputs, base: Outputs) -> dict[str, float]:
    soft, agree, kl, conf, doc, ent, base_soft = ([] for _ in range(7))
    left, moved, along = [], [], []
    for i in range(N):
        p_m, p_e, p_0 = (softmax(x.logits[i].double().numpy()) for x in (merged, expert, base))
        soft.append(sum(min(a, b) for a, b in zip(p_m, p_e, strict=True)))
        agree.append(float(int(p_m.argmax()) == int(p_e.argmax())))
        kl.append(entropy(p_e, p_m))
        conf.append(max(p_m))
        doc.append(max(p_e) - max(p_m))
        ent.append(entropy(p_m))
        base_soft.append(sum(min(a, b) for a, b in zip(p_0, p_e, strict=True)))
        z_m, z_e, z_0 = (x.features[i].double().numpy() for x in (merged, expert, base))
        z_m, z_e, z_0 = (z / math.sqrt(sum(v * v for v in z)) for z in (z_m, z_e, z_0))
        left.append(sum((a - b) ** 2 for a, b in zip(z_m, z_e, strict=True)))
        moved.append(sum((a - b) ** 2 for a, b in zip(z_e, z_0, strict=True)))
        along.append(sum((a - c) * (b - c) for a, b, c in zip(z_m, z_e, z_0, strict=True)))
    names = ("soft", "agree", "kl", "conf", "doc", "ent", "base_soft")
    scores = (soft, agree, kl, conf, doc, ent, base_soft)
    means = {name: sum(v) / N for name, v in zip(names, scores, strict=True)}
    return means | {"drift": sum(left) / sum(moved), "recovered": sum(along) / sum(moved)}


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_the_formulas_written_out(seed):
    given = outputs(seed)
    found, wanted = statistics(*given).unlabelled, slow(*given)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # logits reach 30 in size, which is what a logarithm of p loses
        assert found[name] == pytest.approx(value, abs=bound(torch.float64, N * D, 30)), name


def test_counts_of_labels_are_those_of_the_answers():
    merged, expert, base = outputs(5)
    labels = torch.arange(N) % C
    found = statistics(merged, expert, base, labels)
    m = merged.logits.numpy().argmax(axis=1) == labels.numpy()
    e = expert.logits.numpy().argmax(axis=1) == labels.numpy()
    b = base.logits.numpy().argmax(axis=1) == labels.numpy()
    assert (found.n, found.expert_right, found.base_right) == (N, e.sum(), b.sum())
    assert found.expert_only == np.sum(e & ~m) > 0
    assert found.merged_only == np.sum(m & ~e) > 0


def test_the_expert_itself_and_the_base_are_the_ends_of_the_scale():
    _, expert, base = outputs(1)
    same = statistics(expert, expert, base).unlabelled
    assert [same[k] for k in ("agree", "kl", "doc", "drift")] == [1, 0, 0, 0]
    assert same["soft"] == pytest.approx(1, abs=bound(torch.float64, C))
    assert same["recovered"] == pytest.approx(1, abs=bound(torch.float64, N * D))
    none = statistics(base, expert, base).unlabelled
    assert (none["drift"], none["recovered"]) == (1, 0)


def test_the_length_of_features_is_nothing():
    merged, expert, base = outputs(2)
    longer = Outputs(4 * merged.features, merged.logits)  # a power of two: the same bits
    assert statistics(longer, expert, base) == statistics(merged, expert, base)


def test_without_a_head_features_alone():
    bare = [Outputs(x.features) for x in outputs(3)]
    assert set(statistics(*bare).unlabelled) == {"drift", "recovered"}
    with pytest.raises(MergelibError, match="ask for a head"):
        statistics(*bare, labels=torch.zeros(N, dtype=torch.long))


def test_statistics_of_a_part_come_from_what_its_images_add():
    given, part = outputs(4), torch.tensor([3, 30, 11, 8])
    terms = {name: value[part] for name, value in per_image(*given).items()}
    cut = [Outputs(x.features[part], x.logits[part]) for x in given]
    assert probe(terms) == statistics(*cut)


def test_what_is_wrong_is_said():
    merged, expert, base = outputs(6)
    with pytest.raises(MergelibError, match="the same images"):
        statistics(Outputs(merged.features[:5]), expert, base)
    with pytest.raises(MergelibError, match="at least one"):
        statistics(*[Outputs(x.features[:0]) for x in (merged, expert, base)])
    with pytest.raises(MergelibError, match="one head"):
        statistics(Outputs(merged.features, merged.logits[:, :3]), expert, base)
    with pytest.raises(MergelibError, match="not finite"):
        statistics(Outputs(merged.features * torch.nan, merged.logits), expert, base)
    with pytest.raises(MergelibError, match="no fine-tuned model"):
        statistics(merged, base, base)
