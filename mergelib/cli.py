"""The command line: `mergelib VERB …`, each verb a file of `mergelib.commands`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from mergelib.core.errors import MergelibError

VERBS = {
    "run": "fine-tune, measure and merge; write the tables",
    "metrics": "weight metrics of checkpoints",
    "merge": "merge checkpoints into one",
    "extract": "a fine-tuned model as a LoRA adapter of its base",
    "fit": "predict how well pairs merge from their metrics",
    "agreement": "top-5 overlap and sign agreement of fits",
    "published": "the released tables in this project's schemas",
    "book": "run the chapters and build the HTML",
}


def parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The argument parser of `mergelib`, with the arguments of the verb that is asked for.

    Other verbs are only named: torch and friends cost seconds, and an installation without the
    book lacks what the book's verb imports.
    """
    top = argparse.ArgumentParser(
        prog="mergelib",
        allow_abbrev=False,
        description="Can two fine-tuned models be merged? Measure, merge, forecast.",
    )
    top.add_argument("--version", action="version", version=f"mergelib {version('mergelib')}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, about in VERBS.items():
        verb = verbs.add_parser(name, help=about, allow_abbrev=False)
        if name == asked:
            module = import_module(f"mergelib.commands.{name}")
            verb.epilog = getattr(module, "EPILOG", None)
            module.add_arguments(verb)
            verb.set_defaults(call=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 for a user's mistake, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in words if not word.startswith("-")), None)
    try:
        args = parser(asked).parse_args(words)
        args.call(args)
    except MergelibError as error:
        print(f"mergelib: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mergelib: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, say) has gone; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
