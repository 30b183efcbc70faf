"""The verbs of the command line, one file each: `add_arguments(parser)` and `run(args)`.

Imports of torch and friends cost seconds, so a command imports what it computes with when it runs.
"""

EPILOG = (
    "Checkpoints: safetensors, .pt, .pth or .bin state dicts, or Hugging Face CLIP directories, in "
    "any mixture; of a whole CLIP the image tower counts, under open_clip's names."
)
