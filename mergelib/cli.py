"""The command line: `mergelib VERB …`, each verb a file of `mergelib.commands`."""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from mergelib import __version__
from mergelib.core.errors import MergelibError, MergelibNote
from mergelib.core.interrupts import STATUS, Signals

VERBS = {
    "run": "fine-tune, measure and merge; write the tables",
    "finetune": "fine-tune on one task",
    "metrics": "weight metrics of checkpoints",
    "merge": "merge checkpoints into one",
    "forecast": "will models merge, by which method, and how sure is that",
    "extract": "a fine-tuned model as a LoRA adapter of its base",
    "fit": "predict how well pairs merge from their metrics",
    "agreement": "top-5 overlap and sign agreement of fits",
    "published": "the released tables in this project's schemas",
    "book": "run the chapters and build the HTML",
}
NO_MEMORY = ("allocate memory", "out of memory")
LINE = 2000  # characters of a message, which may quote what a file holds


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
    top.add_argument("--version", action="version", version=f"mergelib {__version__}")
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
    """Run the command line; 0 on success, 2 for what went wrong, 130 or 143 when interrupted.

    Without words it is the command line of the process, whose signals it takes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in words if not word.startswith("-")), None)
    interrupted = "mergelib: interrupted" + (
        "; the same command goes on from here" * (asked in ("run", "finetune"))
    )
    signals = Signals(interrupted) if argv is None else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", MergelibNote)
            warnings.showwarning = _note
            return _run(asked, words)
    except (Exception, KeyboardInterrupt) as error:
        if signals:
            signals.leave()
        if (signals and signals.status) or isinstance(error, KeyboardInterrupt):
            # An interrupt may have become another error on its way up.
            _say(interrupted)
            return signals.status if signals else STATUS + 2
        if sys.flags.dev_mode and not isinstance(error, MergelibError):
            raise
        _say(f"mergelib: error: {told(error)}")
        return 2
    finally:
        if signals:
            signals.leave()


def _run(asked: str | None, words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # what it cannot spell is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            args = parser(asked).parse_args(words)
            args.call(args)
        finally:
            _flush()
    except BrokenPipeError:
        return 141  # the reader of our output (head, say) has gone
    return 0


def told(error: Exception) -> str:
    """What an exception means for who gave the command, in one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, MergelibError):
        return text if len(text) < LINE else f"{text[:LINE]} …"
    # torch has RuntimeErrors of its own
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return f"the memory is not enough ({text or kind}): give less at a time"
    if isinstance(error, RecursionError):
        return f"an input is nested too deeply ({text}): write it flatter"
    if isinstance(error, OSError):
        names = ", ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
        reason = error.strerror or text or kind
        return f"{names or 'input or output'}: {reason}: check the path, its rights and the space"
    if isinstance(error, UnicodeError):
        return f"an input is no UTF-8 text ({text}): save it as UTF-8"
    return f"{kind}: {text}; not foreseen: `python -X dev -m mergelib.cli …` shows where, report it"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # there may be nobody to tell
        print(line, file=sys.stderr, flush=True)


def _note(message: Warning | str, *rest: object, **more: object) -> None:
    """Tell a warning in one line."""
    _say(f"mergelib: note: {' '.join(str(message).split())}")


def _flush() -> None:
    """Print what is held back; where that fails it goes nowhere, not to fail again at the end."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    sys.exit(main())
