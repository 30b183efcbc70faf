"""`mergelib extract`: a fine-tuned model as a LoRA adapter of its base."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mergelib.core.outputs import check_output

if TYPE_CHECKING:
    from mergelib.checkpoints.output.extracting import Extracted

EPILOG = (
    "The adapter loads with PEFT on the base. Patterns are of tensor names, such as '*.mlp.*'. "
    "What has moved and is no matrix is saved whole where PEFT can (biases of the layers, norms); "
    "what PEFT cannot hold stops the command until it is taken out by name (--exclude) or with all "
    "that is no matrix (--matrices-only). All that is left out is named."
)
DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mergelib extract`."""
    add = parser.add_argument
    add("--base", type=Path, required=True, help="pretrained weights")
    add("--model", type=Path, required=True, help="fine-tuned weights")
    add("--rank", type=int, required=True, help="of every matrix, at most")
    add("--alpha", type=float, help="lora_alpha (default: the rank, so that the scale is 1)")
    add("--only", action="append", metavar="PATTERN", help="tensors to take; may be repeated")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="tensors to leave out")
    add("--matrices-only", action="store_true", help="leave out all that is no matrix")
    add("--embeddings", action="append", metavar="PATTERN", help="modules that are embeddings")
    add("--fan-in-fan-out", action="store_true", help="matrices lie transposed, as GPT-2's")
    add("--dtype", choices=DTYPES, default=DTYPES[0])
    add("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the adapter's folder, and say what it keeps and what it does not."""
    import torch

    from mergelib.checkpoints.output.adapter_folder import check_free, write_adapter
    from mergelib.checkpoints.output.extracting import EMBEDDINGS, Wanted, extract
    from mergelib.checkpoints.reading import raw

    check_free(args.out)
    check_output(args.out, [args.base, args.model], folder=True)
    wanted = Wanted(
        args.rank,
        args.alpha,
        args.only or ("*",),
        args.exclude,
        args.matrices_only,
        args.embeddings or EMBEDDINGS,
        args.fan_in_fan_out,
        getattr(torch, args.dtype),
    )
    with ExitStack() as stack:
        base, model = (raw(path, "", stack) for path in (args.base, args.model))
        found = extract(base, model, wanted)
    write_adapter(args.out, found.tensors, found.config)
    print("\n".join(_lines(args.out, found)))


def _lines(out: Path, found: "Extracted") -> list[str]:
    layers = [name for name in found.kept if name not in found.saved]
    worst = min(layers, key=lambda name: found.kept[name] / found.squares[name])
    lines = [
        f"{out}: {len(layers)} matrices of rank {found.config['r']} or less, {len(found.saved)} "
        "other tensors saved whole",
        f"kept: {found.kept_share:.4%} of ‖τ‖²; the least of {worst!r}, "
        f"{found.kept[worst] / found.squares[worst]:.4%}",
    ]
    if found.embeddings:
        lines.append(f"written as embeddings: {', '.join(found.embeddings)}")
    if found.left_out:
        share = found.share(found.left_out)
        lines.append(f"left out: {len(found.left_out)} tensors that hold {share:.4%} of ‖τ‖²")
        largest = sorted(found.left_out, key=lambda name: -found.squares[name])
        lines += [f"  {name}: {found.share([name]):.4%}" for name in largest]
    return lines
