"""How many heads a layer of attention has: its weights do not say, so it is known or it is not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergelib.checkpoints.folders import config_of
from mergelib.checkpoints.reading import Source, View
from mergelib.core.errors import MergelibError
from mergelib.lineage.symmetries import Part

KEYS = ("num_attention_heads", "heads")
OF_TOWER = {True: ("text_config", "text_cfg"), False: ("vision_config", "vision_cfg")}
# Of a CLIP without config: heads are 64 wide, but for these widths of image towers, which have 16
# (open_clip's ViT-H, -g, -bigG and -e), and for glyph-vit's 128, whose four are 32 wide.
WIDE, WIDTH = (1280, 1408, 1664, 1792), 64
OF_GLYPH_VIT = 128
OF_CLIP = ("transformer.resblocks.", "text.transformer.resblocks.")


def known_heads(source: Source, part: Part, width: int) -> int | None:
    """The number of heads of an attention part, `width` = heads · head width; None: not known.

    From the config.json of a model folder, by a CLIP's width, or not at all. Raises MergelibError,
    naming the file, if a config contradicts the width.
    """
    origin = source.origin if isinstance(source, View) else source
    text = part.name.startswith("text.")
    if not isinstance(origin, Mapping) and Path(origin).is_dir():
        config = config_of(Path(origin))
        inner = [config[key] for key in OF_TOWER[text] if isinstance(config.get(key), Mapping)]
        for held in (*inner, config):
            for key in KEYS:
                if isinstance(held.get(key), int) and held[key] > 0:
                    return _fitting(held[key], width, f"{origin}/config.json ({key})")
    if not part.name.startswith(OF_CLIP):
        return None
    if width == OF_GLYPH_VIT:
        return 4
    if width in WIDE and not text:
        return 16
    return width // WIDTH if width % WIDTH == 0 else None


def find_heads(
    sources: Sequence[Source], part: Part, width: int, given: int | None = None
) -> int | None:
    """The number of heads that is given, or that one of these checkpoints is known to have.

    Raises MergelibError if it does not divide the width.
    """
    if given is not None:
        return _fitting(given, width, "heads")
    return next((n for each in sources if (n := known_heads(each, part, width))), None)


def heads_of(sources: Sequence[Source], part: Part, width: int, given: int | None = None) -> int:
    """As `find_heads`. Raises MergelibError if the number is not known, too."""
    found = find_heads(sources, part, width, given)
    if found is None:
        raise MergelibError(
            f"how many heads {part.name} has is not known, as no config.json says it: give the "
            "model folder, or heads= of mergelib.lineage.canonical.canonicalize"
        )
    return found


def _fitting(heads: int, width: int, where: str) -> int:
    if heads < 1 or width % heads:
        raise MergelibError(
            f"{where}: {heads} heads do not divide the width {width}: give what the model has"
        )
    return heads
