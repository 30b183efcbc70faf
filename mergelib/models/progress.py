"""Where a training stands: what a killed one continues from, and what it logs."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mergelib.core.errors import MergelibError
from mergelib.core.store import load_tensors, save_tensors

LOG = ("step", "learning_rate", "loss", "validation_loss", "validation_accuracy")


@dataclass
class Progress:
    """A training between two steps: what the steps to come depend on, and the log of those done.

    `buffers` are the model's (batch statistics), `total` is the sum of averaged weights so far;
    batches, crops and rates follow from the step.
    """

    trained: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    draws: torch.Generator
    total: dict[str, Tensor] = field(default_factory=dict)
    log: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Steps that were done."""
        return len(self.log)

    def stale(self) -> int:
        """Validations since the one of lowest loss."""
        losses = [row[3] for row in self.log if not math.isnan(row[3])]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def save(self, file: Path) -> None:
        """Write all of it as safetensors, atomically."""
        held = {f"weights/{name}": value for name, value in self.trained.items()}
        held |= {f"buffers/{name}": value for name, value in self.buffers.items()}
        held |= {f"total/{name}": value for name, value in self.total.items()}
        for name, value in self.trained.items():
            of_weight = self.optimizer.state.get(value, {})
            held |= {f"optimizer/{k}/{name}": v for k, v in of_weight.items() if v is not None}
        held["draws"] = self.draws.get_state()
        held["log"] = torch.tensor(self.log, dtype=torch.float64)
        save_tensors(file, held)

    def restore(self, file: Path) -> None:
        """Take up what was saved of the same training.

        Raises MergelibError for a file that cannot be read or is of another one.
        """
        held = load_tensors(file)
        parts: dict[str, dict[str, Tensor]] = {
            "weights": {},
            "buffers": {},
            "total": {},
            "optimizer": {},
        }
        for name, value in held.items():
            part, _, rest = name.partition("/")
            if part in parts:
                parts[part][rest] = value
        weights, own = parts["weights"], self.trained
        if {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in own.items()}:
            raise MergelibError(f"{file} is of another training: remove it")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])
            for name, value in self.buffers.items():
                value.copy_(parts["buffers"][name])
        device = next(iter(own.values())).device
        self.total = {name: value.to(device) for name, value in parts["total"].items()}
        self._restore_optimizer(parts["optimizer"])
        self.draws.set_state(held["draws"])
        self.log = [tuple(row) for row in held["log"].tolist()]

    def _restore_optimizer(self, held: dict[str, Tensor]) -> None:
        states: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(self.trained))}
        places = {name: i for i, name in enumerate(self.trained)}
        for name, value in held.items():
            kind, _, weight = name.partition("/")
            states[places[weight]][kind] = value
        groups = self.optimizer.state_dict()["param_groups"]
        given = {i: state for i, state in states.items() if state}
        self.optimizer.load_state_dict({"state": given, "param_groups": groups})
