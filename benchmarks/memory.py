"""Peak memory of merges at the size of a language model: `python benchmarks/memory.py [--json]`.

Writes a base and two models in bfloat16, of Llama's shapes (`--billions 1` is the 1B, with an
lm_head of its own: 1.5 billion numbers, 9 GB of files), and merges them by each method, in a
process of its own: once as `engine.merge` does, which holds the merged model, and once tensor by
tensor, each thrown away, as a writer of files would. The peak is all that is resident, Python and
mapped pages too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from merging import seconds, status

from mergelib.core.store import save_tensors
from mergelib.merging.blocks import merged_tensor
from mergelib.merging.engine import merge, sweep
from mergelib.merging.layer import Layer
from mergelib.merging.registry import METHODS

ELEMENTWISE = ["weight_avg", "arithmetic", "ties", "dare"]
WIDTH, NARROW, HIDDEN = 2048, 512, 8192  # of the model, its keys and values, its MLPs
VOCABULARY, BLOCKS = 128256, 16


def llama_shapes(billions: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Llama 3.2 1B; a smaller one has fewer tokens and fewer blocks."""
    block = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (NARROW, WIDTH),
        "self_attn.v_proj": (NARROW, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    tokens = round(billions * VOCABULARY)
    return {
        "model.embed_tokens.weight": (tokens, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (tokens, WIDTH),
        **{
            f"model.layers.{number}.{name}.weight": shape
            for number in range(max(1, round(billions * BLOCKS)))
            for name, shape in block.items()
        },
    }


def write(path: Path, billions: float, moved: int | None) -> None:
    """Write the base, or the model numbered `moved`: entries around 0.02, moves around 2e-4."""
    tensors = {}
    for place, (name, shape) in enumerate(llama_shapes(billions).items()):
        tensor = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(place))
        if moved is not None:
            own = torch.Generator().manual_seed(1000 * (moved + 1) + place)
            tensor += 2e-4 * torch.randn(shape, generator=own)
        tensors[name] = tensor.bfloat16()
    save_tensors(path, tensors)


def child(method: str, thrown_away: bool, paths: Sequence[Path]) -> None:
    """Merge files; print the seconds and the peak, in bytes."""
    base, *tuned = paths
    row = METHODS[method]
    params = row.check({}) | ({"seed": 0} if row.random else {})

    def one(layer: Layer) -> torch.Tensor:
        return merged_tensor(row, layer, params, dtype=torch.bfloat16)

    def through() -> None:
        for _ in sweep(base, tuned, one):
            pass

    took, _ = seconds(through if thrown_away else lambda: merge(base, tuned, method))
    # not getrusage's ru_maxrss, which starts from the peak of the process that started this one
    print(json.dumps({"seconds": took, "bytes": status("VmHWM")}))


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Seconds and peaks by method, kept and thrown away."""
    paths = [folder / f"{name}.safetensors" for name in ("base", "model0", "model1")]
    for path, moved in zip(paths, (None, 0, 1), strict=True):
        write(path, args.billions, moved)
    found: dict = {"file_gib": paths[0].stat().st_size / 2**30, "threads": args.threads}
    for how in ("merge", "thrown_away"):
        for method in args.methods:
            words = ["--child", method, "--how", how, "--threads", str(args.threads)]
            run = [sys.executable, __file__, *words, *(str(path) for path in paths)]
            ended = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True)
            found[f"{how}_{method}"] = json.loads(ended.stdout)
    return found


def show(found: dict, methods: Sequence[str]) -> None:
    """Print the table."""
    print(f"base and two models of {found['file_gib']:.2f} GiB, {found['threads']} threads; GiB")
    print(f"{'':<12}{'merge, in float32':>24}{'tensors thrown away':>24}")
    print(f"{'':<12}" + 2 * f"{'seconds':>12}{'peak':>12}")
    for method in methods:
        cells = [found[f"{how}_{method}"] for how in ("merge", "thrown_away")]
        line = "".join(f"{c['seconds']:>12.1f}{c['bytes'] / 2**30:>12.2f}" for c in cells)
        print(f"{method:<12}{line}")


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--billions", type=float, default=0.1)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=ELEMENTWISE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    parser.add_argument("paths", type=Path, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.how == "thrown_away", args.paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    print(json.dumps(found)) if args.json else show(found, args.methods)


if __name__ == "__main__":
    main()
