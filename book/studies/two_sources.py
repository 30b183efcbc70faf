"""Both sources of a chapter side by side: the glyph benchmark and a setting of the released work.

One page, one table with two groups of columns, one figure with two panels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergelib.core.errors import MergelibError
from mergelib.core.registry import unknown
from mergelib.pairs.tables import BENCHMARK, Pairs, Tables
from studies import describe
from studies.display import Format, Head, Shown, count, label, listed, number, show
from studies.inputs import pairs_of, read_source


@dataclass(frozen=True)
class Source:
    """One of the two: how a sentence on it begins, a short name over columns, tables and pairs."""

    start: str
    short: str
    tables: Tables
    pairs: Pairs

    @property
    def methods(self) -> tuple[str, ...]:
        """The merging methods whose outcomes are fitted."""
        return self.pairs.methods


def both_sources(tables: str, setting: str, method: str | None = None) -> tuple[Source, Source]:
    """The benchmark's tables in the folder `tables`, and a setting of the released work.

    Raises MergelibError as `read_source` does, and for a method that one of the two lacks.
    """
    held = [read_source(name, tables) for name in (BENCHMARK, setting)]
    backbone, _, optimizer = setting.rpartition("_")
    model = backbone.replace("-B-", "-B/")
    names = [
        ("On the glyph benchmark", "glyph benchmark"),
        (f"In the released tables ({model}, {optimizer})", f"released, {model}"),
    ]
    sources = tuple(
        Source(*name, each, pairs_of(each)) for name, each in zip(names, held, strict=True)
    )
    common = [m for m in sources[0].methods if m in sources[1].methods]
    if method is not None and method not in common:
        raise MergelibError(f"{unknown('method', method, common)} (the methods of both sources)")
    return sources  # type: ignore[return-value]


def origins(sources: Sequence[Source]) -> str:
    """Where the tables of both come from, with the number of pairs, for a first caption."""
    return "; ".join(describe.origin(s.tables.meta, pairs=len(s.pairs)) for s in sources)


def sizes(sources: Sequence[Source]) -> str:
    """Pairs and methods of both, for a caption."""
    return "; ".join(f"{s.short}: {len(s.pairs)} pairs, {len(s.methods)} methods" for s in sources)


def show_both(
    frames: Mapping[str, pd.DataFrame],
    caption: str,
    columns: Mapping[str, Head],
    formats: Mapping[str, Format] | None = None,
    rows: Mapping[str, Head] | None = None,
) -> Shown:
    """One table with a group of columns for each source.

    `frames` maps a source's short name to its frame, rows by a named index; `columns` and
    `formats` are those of `show`, for each group; `rows` are the heads of the index. A row that
    one source lacks has dashes there.
    """
    parts, heads, how = [], {}, {}
    for short, frame in frames.items():
        for name, head in columns.items():
            key = f"{short}: {name}"
            parts.append(frame[name].rename(key))
            heads[key] = (short, head)
            if name in (formats or {}):
                how[key] = formats[name]
    order = list(dict.fromkeys(row for frame in frames.values() for row in frame.index))
    wide = pd.concat(parts, axis=1).reindex(order)
    wide.index = wide.index.set_names(next(iter(frames.values())).index.names)
    first = rows or {str(name): label(name) for name in wide.index.names}
    return show(wide, caption, {**first, **heads}, how)


def panels(
    sources: Sequence[Source], height: float, share: str = "both"
) -> tuple[Figure, Iterator[tuple[Source, Axes]]]:
    """A figure with one panel a source beside the other, titled by it.

    `share`: "both" axes, the "rows" alone, or "none".
    """
    figure, axes = plt.subplots(
        1,
        len(sources),
        figsize=(7.2, height),
        sharex=share == "both",
        sharey=share != "none",
        squeeze=False,
    )
    for source, ax in zip(sources, axes.flat, strict=True):
        ax.set_title(source.short)
    return figure, zip(sources, axes.flat, strict=True)


def legend_below(figure: Figure, columns: int = 3) -> None:
    """One legend for all panels, below them, each label once."""
    found: dict[str, object] = {}
    for ax in figure.axes:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    figure.tight_layout()
    figure.legend(
        list(found.values()),
        list(found),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        frameon=False,
    )


# ---- Words --------------------------------------------------------------------------------------


def span(values: pd.Series, spec: str = ".2f") -> str:
    """The least and the most of some numbers as text: "0.60 to 0.85", a dash for none."""
    known = values.dropna()
    if not len(known):
        return number(None)
    return f"{number(float(known.min()), spec)} to {number(float(known.max()), spec)}"


def p_value(p: float, level: float = 0.05) -> str:
    """A p-value as text on the side of 0.05 where it is: 0.0498 is no 0.050."""
    text = number(p, "p")
    return number(p, ".4f") if p < level <= float(text) else text


def below(p: pd.Series, level: float = 0.05) -> str:
    """How many p-values lie below the level: "five of six"."""
    known = p.dropna()
    return count(int((known < level).sum()), len(known)) if len(known) else number(None)


def named(which: Sequence[str], of: int) -> str:
    """How many methods, and which unless all or none: "two of six methods (TIES and TSV)"."""
    some = f" ({listed(which)})" if 0 < len(which) < of else ""
    return f"{count(len(which), of)} methods{some}"


def passing(p: pd.Series, level: float = 0.05) -> str:
    """The methods whose p-values lie below the level, as `named`."""
    known = p.dropna()
    return named(list(known.index[known < level]), len(known))
