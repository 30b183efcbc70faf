"""Time many-merge evaluation: `python benchmarks/evaluation.py [--backbone ViT-B-16] [--json]`.

One encoder on the device is written over by merge after merge and evaluated on uint8 test images
that stay there. Beside its rate stands that of the encoder's bare forward passes over normalized
images, in the same run: in float32 and in bfloat16 autocast, as it is and by torch.compile. The
share of a setting is its evaluation's rate over its own bare forward rate. `glyph-vit` comes with
its weights, so its twenty tasks also tell how much accuracy a setting moves; other backbones have
random weights, which take the same time.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor, nn

from mergelib.core.devices import find_device
from mergelib.merging.engine import merge
from mergelib.models.accuracy import BATCH, accuracy
from mergelib.models.backbones import GLYPH_VIT, load
from mergelib.models.heads import zero_shot_head
from mergelib.tasks import TASKS, build

METHOD = "weight_avg"
CLASSES = 100


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Median wall-clock seconds of a call, after one warm-up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def encoder(name: str, device: str) -> tuple[nn.Module, int, int]:
    """An image encoder in eval mode, the size of its images, and that of its features."""
    model = load().model if name == GLYPH_VIT else open_clip.create_model(name)
    visual = model.visual.to(device).eval()
    return visual, visual.image_size[0], visual.output_dim


def scaled(images: Tensor) -> Tensor:
    """uint8 images to float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def rates(args: argparse.Namespace, device: str) -> dict[str, float]:
    """Images a second of bare forward passes and of evaluation, by setting."""
    visual, size, width = encoder(args.backbone, device)
    generator = torch.Generator().manual_seed(0)
    shape = (args.images, 3, size, size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    head = torch.randn(CLASSES, width, generator=generator).to(device)
    labels = torch.randint(CLASSES, (args.images,), generator=generator).to(device)
    base = {name: value.clone() for name, value in visual.state_dict().items()}
    tuned = [
        {n: v + 1e-3 * v.abs().mean() * torch.randn_like(v) for n, v in base.items()}
        for _ in range(2)
    ]
    ready = scaled(images[: BATCH[device]])
    found: dict[str, float] = {}
    found["merge_seconds"] = seconds(
        lambda: merge(base, tuned, METHOD, into=visual.state_dict()), args.rounds, device
    )
    fast = {"": visual} | ({"compiled_": torch.compile(visual)} if args.compile else {})
    for (kind, module), bfloat16 in itertools.product(fast.items(), (False, True)):
        name = f"{kind}{'bfloat16' if bfloat16 else 'float32'}"

        def forward(module: nn.Module = module, bfloat16: bool = bfloat16) -> None:
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, bfloat16):
                for _ in range(-(-args.images // len(ready))):
                    module(ready)

        def evaluate(module: nn.Module = module, bfloat16: bool = bfloat16) -> None:
            merge(base, tuned, METHOD, into=visual.state_dict())
            accuracy(module, images, labels, head, bfloat16=bfloat16, normalize=scaled)

        passes = -(-args.images // len(ready)) * len(ready)
        found[f"forward_{name}"] = passes / seconds(forward, args.rounds, device)
        found[f"evaluate_{name}"] = args.images / seconds(evaluate, args.rounds, device)
        found[f"share_{name}"] = found[f"evaluate_{name}"] / found[f"forward_{name}"]
    return found


def differences(device: str) -> dict[str, float]:
    """How far bfloat16 moves the zero-shot accuracy of the twenty glyph tasks, in points."""
    backbone = load()
    backbone.model.to(device)
    moved = []
    for task in TASKS:
        data = build(task, {"train": 1, "calibration": 1, "test": 300}).test
        head = zero_shot_head(backbone, TASKS[task].class_names, TASKS[task].templates)
        images, labels = data.images.to(device), data.labels.to(device)
        both = [
            accuracy(backbone.model.visual, images, labels, head, 0, half, backbone.normalize)
            for half in (False, True)
        ]
        moved.append(100 * (both[1] - both[0]))
    return {
        "bfloat16_points_mean": statistics.mean(moved),
        "bfloat16_points_largest": max(map(abs, moved)),
        "tasks": len(moved),
    }


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=GLYPH_VIT, help="glyph-vit or a name of open_clip's")
    parser.add_argument("--images", type=int, default=600, help="test images of a merge's tasks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = find_device(args.device)
    found = rates(args, device) | (differences(device) if args.backbone == GLYPH_VIT else {})
    found = {name: float(f"{value:.4g}") for name, value in found.items()}
    if args.json:
        print(json.dumps({"backbone": args.backbone, "device": device} | found))
        return
    print(f"{args.backbone} on {device}, {args.threads} threads; {METHOD} merges", end="")
    print(f" of {found['merge_seconds']:.3f} s and {args.images} images")
    print(f"\n{'images a second':<20}{'forward':>10}{'evaluation':>12}{'share':>8}")
    for name in [key.removeprefix("share_") for key in found if key.startswith("share_")]:
        forward, whole, share = (
            found[f"{kind}_{name}"] for kind in ("forward", "evaluate", "share")
        )
        print(f"{name:<20}{forward:>10.1f}{whole:>12.1f}{share:>8.2f}")
    if "tasks" in found:
        mean, largest = found["bfloat16_points_mean"], found["bfloat16_points_largest"]
        print(
            f"\nbfloat16 moves the accuracy of {found['tasks']:.0f} tasks by {mean:+.2f} points",
            end="",
        )
        print(f" in the mean, {largest:.2f} at most")


if __name__ == "__main__":
    main()
