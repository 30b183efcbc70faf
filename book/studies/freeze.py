"""What chapters 6, 7 and 10 read of a checkout of the published work, as small tables.

    python -m studies.freeze --from ../../demystifying-mergeability --to tables/published

Run in the folder book. Beside each setting's tables come `l1_fits.csv`, the headline fits' weights
(chapter 6), and for one setting the re-trained models' accuracies and their merges' (chapter 7),
and the data-driven metrics with other numbers of calibration images (chapter 10).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mergelib.core.errors import MergelibError
from mergelib.core.store import write_table
from studies import calibration_tables as sizes
from studies.inputs import PUBLISHED
from studies.l1_stability import FITS, checked_out_fits
from studies.retrainings import SETTING, checked_out, write_retrainings

FITTED = ("ViT-B-16_AdamW", "ViT-B-32_AdamW")  # settings that chapter 6 offers


def freeze(checkout: Path, target: Path) -> None:
    """Write the tables; nothing is written if a file of the checkout cannot be read."""
    fits = {setting: checked_out_fits(setting, checkout) for setting in FITTED}
    retrained = checked_out(checkout)
    measured = sizes.checked_out_sizes(checkout)
    for setting, table in fits.items():
        write_table(target / setting / FITS, table)
    write_retrainings(retrained, target / SETTING)
    sizes.write_sizes(measured, target / sizes.SETTING / sizes.FILE)


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, write the tables; 1 with one line if a file cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--to", dest="target", type=Path, default=PUBLISHED, metavar="DIR")
    args = parser.parse_args(words)
    try:
        freeze(args.source, args.target)
    except MergelibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
