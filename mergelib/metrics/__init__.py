"""The pairwise metrics of two fine-tuned models, one module per category."""

# Importing a category's module registers its metrics; the tables keep this, the published, order.
# isort: off
from mergelib.metrics import task_vector, effective_rank, subspace, activation, gradient  # noqa: F401
from mergelib.metrics import cross_task, base_knowledge, principal_angles  # noqa: F401
from mergelib.metrics import gradient_alignment  # noqa: F401
