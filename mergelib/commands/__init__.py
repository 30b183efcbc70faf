"""The verbs of the command line, one file each: `add_arguments(parser)` and `run(args)`.

Imports of torch and friends cost seconds, so a command imports what it computes with when it runs.
"""

EPILOG = (
    "Checkpoints: safetensors, .pt, .pth, .bin or .ckpt state dicts, or model folders, in any "
    "mixture of the layouts of one model (CLIP: open_clip, Hugging Face, timm)."
)
