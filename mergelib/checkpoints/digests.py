"""What checkpoints hold, as digests that name files made from them, whatever path or format."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from mergelib.checkpoints.reading import Source, View, opened
from mergelib.core.store import digest, read_json, write_json


def content_digest(source: Source) -> str:
    """Digest of a checkpoint's tensors by name."""
    with opened(source, whole=True) as weights:
        return digest([(name, tensor_digest(weights.get(name))) for name in sorted(weights.shapes)])


def tensor_digest(tensor: Tensor) -> str:
    """128 bits that tell tensors apart; unlike SHA-256, in the time that reading them takes."""
    tensor = tensor.detach().cpu().contiguous()
    state = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def content_digests(folder: Path, sources: Sequence[Source]) -> list[str]:
    """Digests of what checkpoints hold; those of single files are remembered in `folder`.

    By path, size and time of change, as reading twenty models only to learn that they are the same
    takes longer than the metrics of one more.
    """
    return [_remembered(Path(folder), source) for source in sources]


def _remembered(folder: Path, source: Source) -> str:
    origin = source.origin if isinstance(source, View) else source
    adapter = isinstance(source, View) and source.base is not None  # of which this is a part
    if adapter or isinstance(origin, Mapping) or not Path(origin).is_file():
        return content_digest(source)
    path = Path(origin).resolve()
    stat = path.stat()
    stamp = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    if isinstance(source, View):
        stamp.append(repr(sorted(source.layout.items())))
    note = folder / "contents" / f"{digest(stamp)[:24]}.json"
    if not note.is_file():
        write_json(note, {"content": content_digest(source)})
    return read_json(note)["content"]
