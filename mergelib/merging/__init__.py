"""Merging: T fine-tuned models and their base in, one state dict out.

Ten methods, one file each with its formula, listed in `METHODS` (`METHODS.table()` gives their
parameters).

τt = θt − θ0 is a task vector; the merged model is θ0 + Δ. `preset(name, edition)` gives the
parameters of an edition: `corrected` (ours), `paper` (behind the released numbers of arXiv
2601.22285) or `original` (the method's own authors). `tall_masks` and `emr` also give the model of
one task, `task=t`, from what is shared by all: t counts from 0 in the order of the models.

Accuracy: task vectors and what is done elementwise are float64, rounded once to float32 at the end.
Singular vectors and polar factors come from float64 eigenvectors of the smaller Gram matrix, and
what these blur is found from the matrix itself. For matrices of 2^18 entries and more the large
products of tsv and iso_cts run in float32: relative error of Δ about 3e-6.
Tensors are worked on one to a core, so the result does not depend on the number of cores.

Memory: tensors are read one by one, and a few task vectors are held at a time; so any number of
models takes the merged state dict, and some hundred MB.
"""

# Importing a method's file registers it; the order is that of the published tables, then ours.
# isort: off
from mergelib.merging.methods import weight_avg, arithmetic, ties, dare, tsv, isotropic  # noqa: F401
from mergelib.merging.methods import iso_cts, tall_masks, emr, base_protecting  # noqa: F401
