"""Contrastive pretraining of `glyph-vit` on captioned glyphs: `studies.pretraining`."""

import argparse
import math
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mergelib.core.store import digest, file_digest, load_tensors, save_tensors, write_atomic
from mergelib.models.backbones import (
    GLYPH_VIT,
    WEIGHTS,
    card_text,
    glyph_model,
    tokenize,
    vocabulary,
)
from mergelib.tasks.glyphs import Glyph, characters, icons, mask, pixels_digest, words
from mergelib.tasks.render import COLOR_NAMES, Drawn, Style, draw

STYLE = Style(
    rotation=15,
    scale=(0.6, 1.15),
    shift=0.1,
    blur=(0.0, 1.0),
    noise=(0.0, 0.12),
    contrast=(0.45, 1.0),
    clutter=0.08,
    pixelate=0.08,
)
# Everyday characters are met six times as often as rare ones, as in written language.
COMMON = (
    *range(0x21, 0x7F),
    *range(0x370, 0x3FF),
    *range(0x410, 0x450),
    *range(0x531, 0x588),
    *range(0x5D0, 0x5EB),
    *range(0x10D0, 0x1100),
    *range(0x2190, 0x21B0),
    *range(0x2200, 0x2240),
    *range(0x2654, 0x2668),
    *range(0x2680, 0x2686),
    *range(0x2801, 0x2840),
)

# What a lesson in telling apart holds: signs of one script, or icons of one kind.
SCRIPTS = (
    tuple(range(0x41, 0x5B)),
    tuple(range(0x61, 0x7B)),
    tuple(range(0x30, 0x3A)),
    tuple(c for c in range(0x391, 0x3AA) if c != 0x3A2),
    tuple(range(0x3B1, 0x3CA)),
    tuple(range(0x410, 0x430)),
    tuple(range(0x430, 0x450)),
    tuple(range(0x531, 0x557)),
    tuple(range(0x561, 0x587)),
    tuple(range(0x10D0, 0x10F1)),
    tuple(range(0x5D0, 0x5EB)),
    tuple(range(0x2801, 0x2840)),
    tuple(range(0x2190, 0x21B0)),
    tuple(range(0x2200, 0x2228)),
    (*range(0x2680, 0x2686), *range(0x2654, 0x2668)),
)
KINDS = (
    "cat dog horse fish bird cow rabbit spider bug snake butterfly pig shark unicorn bee paw",
    "sun cloud moon snowflake umbrella lightning wind rainbow thermometer tornado fire tree waves",
    "car truck bus train airplane bicycle motorbike rocket ship tractor taxi subway boat "
    "helicopter",
    "apple pizza hamburger cake cookie coffee beer bread cheese carrot egg bottle fruit glass cup",
    "house home building store bank hospital school church castle factory warehouse garage bridge",
    "hammer wrench screwdriver scissors ruler pencil pen brush key lock magnet ladder shovel axe",
    "guitar piano music trumpet violin drum microphone headphones bell phone camera laptop printer",
    "heart star shield flag cube gear robot skull ghost eye hand face mouse keyboard monitor",
)


@dataclass(frozen=True)
class Stage:
    """A stretch of steps: how large batches are, how they are mixed, how fast they teach.

    The rate warms up linearly, then follows a cosine that would reach zero at `horizon` steps.
    `lessons` groups of one script or kind come into each batch, every sign of them once, so that
    names that differ in one word must be told apart; `attributes` is how often a caption mentions
    each of colour, typeface, background.
    """

    steps: int
    batch: int
    learning_rate: float
    horizon: int
    lessons: int
    attributes: float
    warmup: int = 100
    icon_share: float = 0.35


@dataclass(frozen=True)
class Recipe:
    """What the pretrained weights depend on, besides the pixels."""

    stages: tuple[Stage, ...] = (
        Stage(1700, 512, 1.5e-3, horizon=2600, lessons=0, attributes=0.5),
        Stage(2000, 256, 1.0e-3, horizon=2000, lessons=6, attributes=0.3),
    )
    weight_decay: float = 0.1
    bfloat16: bool = True
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage that a step belongs to, and the step's number within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ValueError(f"the recipe ends before step {step}")


@cache
def _drawable() -> tuple[tuple[Glyph, ...], np.ndarray, tuple[Glyph, ...]]:
    """Characters that draw something, their sampling weights, and the icons."""
    shown = tuple(g for g in characters() if mask(g.font, g.code).any())
    common = frozenset(COMMON)
    weights = np.array([6.0 if g.code in common else 1.0 for g in shown])
    return shown, weights / weights.sum(), tuple(g for g in icons() if mask(g.font, g.code).any())


def captions(
    glyphs: Sequence[Glyph], drawn: Drawn, rng: np.random.Generator, attributes: float
) -> list[str]:
    """One caption a picture: its name, and some of colour, degradation, typeface, background."""
    texts = []
    for i, glyph in enumerate(glyphs):
        said = rng.random(5) < attributes
        parts = ["a"] if said[0] else []
        if drawn.noise[i] > 0.08 and said[1]:
            parts.append("noisy")
        elif drawn.pixelated[i] and said[1]:
            parts.append("pixelated")
        elif drawn.blur[i] > 0.6 and said[1]:
            parts.append("blurred")
        elif drawn.contrast[i] < 0.6 and said[1]:
            parts.append("faded")
        elif drawn.blur[i] < 0.2 and drawn.noise[i] < 0.04 and said[1]:
            parts.append("sharp")
        if said[2]:
            parts.append(COLOR_NAMES[drawn.foreground[i]])
        parts.append(_said_name(glyph, rng))
        if not glyph.is_icon and said[3]:
            parts.append(f"in {glyph.typeface}")
        if said[4]:
            parts.append(f"on {COLOR_NAMES[drawn.background[i]]}")
        texts.append(" ".join(parts))
    return texts


def _said_name(glyph: Glyph, rng: np.random.Generator) -> str:
    if glyph.is_icon:
        return f"{glyph.name} icon"
    if "letter" in glyph.name and rng.random() < 0.15:  # sometimes only what kind of sign it is
        return glyph.name.split(" letter")[0] + " letter"
    return glyph.name


def _vocabulary() -> list[str]:
    """Words that occur in at least three glyph names, and the caption words."""
    shown, _, pictures = _drawable()
    names = {glyph.name for glyph in shown} | {glyph.name for glyph in pictures}
    counts = Counter(word for name in names for word in name.split())
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    said = "a an the of in on icon letter character picture image photo face pattern gray"
    said += " noisy blurred sharp pixelated faded sans serif mono bold italic"
    known = [word for word, count in counts.items() if count >= 3]
    return vocabulary([*known, *digits, *words(said).split(), *COLOR_NAMES])


class Batches(Dataset):
    """Batch number `step` of the stream, a pure function of the seed and the step."""

    def __init__(self, recipe: Recipe, index: dict[str, int]) -> None:
        self.recipe, self.index = recipe, index

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        stage, _ = self.recipe.at(step)
        rng = np.random.default_rng([self.recipe.seed, step])
        shown, weights, pictures = _drawable()
        chosen = _lessons(rng, stage.lessons)[: stage.batch]
        left = stage.batch - len(chosen)
        n_icons = int(left * stage.icon_share)
        chosen += [shown[i] for i in rng.choice(len(shown), left - n_icons, p=weights)]
        chosen += [pictures[i] for i in rng.integers(len(pictures), size=n_icons)]
        drawn = draw(chosen, rng, STYLE)
        texts = captions(chosen, drawn, rng, stage.attributes)
        return torch.from_numpy(drawn.images), tokenize(texts, self.index)


@cache
def _groups() -> tuple[tuple[tuple[Glyph, ...], ...], ...]:
    """Each lesson's signs, and for each sign the glyphs that draw it."""
    shown, _, pictures = _drawable()
    by_code: dict[int, list[Glyph]] = {}
    by_word: dict[str, list[Glyph]] = {}
    for glyph in shown:
        by_code.setdefault(glyph.code, []).append(glyph)
    for glyph in pictures:
        by_word.setdefault(glyph.name.split()[0], []).append(glyph)
    scripts = [tuple(tuple(by_code[c]) for c in codes if c in by_code) for codes in SCRIPTS]
    kinds = [tuple(tuple(by_word[w]) for w in text.split() if w in by_word) for text in KINDS]
    return (*scripts, *kinds)


def _lessons(rng: np.random.Generator, n: int) -> list[Glyph]:
    """n groups at random, each sign of a group once, in a glyph at random."""
    groups = _groups()
    chosen = rng.choice(len(groups), n, replace=False) if n else ()
    return [pool[rng.integers(len(pool))] for g in chosen for pool in groups[g]]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine, from the start in every stage."""
    stage, step = recipe.at(step)
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    share = (step - stage.warmup) / max(1, stage.horizon - stage.warmup)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of cosine similarities (Radford et al. 2021, figure 3)."""
    scores = scale * images.float() @ texts.float().T
    target = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


def pretrain(recipe: Recipe, out: Path, work: Path, device: str, save_every: int = 100) -> None:
    """Train from scratch, or go on from the last checkpoint in `work`, and write the weights."""
    tokens = _vocabulary()
    index = {token: i for i, token in enumerate(tokens)}
    torch.manual_seed(recipe.seed)
    model = glyph_model(len(tokens)).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    key = digest(asdict(recipe), asdict(STYLE), tokens, pixels_digest())[:16]
    checkpoint = work / f"pretrain-{key}.safetensors"
    start = _resume(checkpoint, model, optimizer)
    stream = torch.utils.data.Subset(Batches(recipe, index), range(start, recipe.steps))
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    clock, running = time.monotonic(), 0.0
    bar = tqdm(loader, initial=start, total=recipe.steps, desc="pretraining", mininterval=5)
    for step, (images, text) in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        pixels = images.to(device).float() / 127.5 - 1
        # The fused attention's backward is slow in bfloat16 on a CPU; the plain one is not.
        with torch.autocast(device, torch.bfloat16, recipe.bfloat16), sdpa_kernel(SDPBackend.MATH):
            seen = model.encode_image(pixels, normalize=True)
            read = model.encode_text(text.to(device), normalize=True)
            loss = contrastive_loss(seen, read, model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        running = 0.98 * running + 0.02 * loss.item()
        bar.set_postfix(loss=f"{running / (1 - 0.98 ** (step - start + 1)):.3f}")
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            _save(checkpoint, model, optimizer, step + 1)
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_tensors(out, state)
    card = {
        "vocabulary": tokens,
        "recipe": asdict(recipe),
        "style": asdict(STYLE),
        "pixels": pixels_digest(),
        "weights_sha256": file_digest(out),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, device {device}",
        "seconds_of_last_leg": round(time.monotonic() - clock),
        "steps_of_last_leg": recipe.steps - start,
        "versions": {p: version(p) for p in ("torch", "open-clip-torch", "pillow", "numpy")},
    }
    write_atomic(out.with_suffix(".json"), card_text(card).encode())


def _save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    held = {f"model/{name}": value for name, value in model.state_dict().items()}
    for i, moments in optimizer.state_dict()["state"].items():
        held |= {f"optimizer/{i}/{name}": torch.as_tensor(v) for name, v in moments.items()}
    save_tensors(path, held | {"step": torch.tensor(step)})


def _resume(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    held = load_tensors(path)
    model.load_state_dict({k[6:]: v for k, v in held.items() if k.startswith("model/")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in held.items():
        if key.startswith("optimizer/"):
            _, i, name = key.split("/")
            moments.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(held["step"])


def main() -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the steps, for a trial of the recipe"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--float32", action="store_true", help="train without bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=WEIGHTS / f"{GLYPH_VIT}.safetensors")
    parser.add_argument("--work", type=Path, default=Path("_build/pretrain"))
    args = parser.parse_args()
    stages = tuple(
        replace(s, steps=max(1, round(s.steps * args.scale)), horizon=round(s.horizon * args.scale))
        for s in Recipe.stages
    )
    recipe = Recipe(stages, seed=args.seed, bfloat16=not args.float32)
    pretrain(recipe, args.out, args.work, args.device)


if __name__ == "__main__":
    main()
