"""The state of a training on disk: a run that is resumed from it gives a bit-identical result.

One safetensors file, replaced as a whole. A checkpoint belongs to one problem: it holds a hash of everything that
the result follows from, and is ignored where that differs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.pruning.arithmetic import arithmetic_of
from mvp_edge.pruning.finetune import History, Ledger
from mvp_edge.pruning.problem import Problem, Snapshot
from mvp_edge.subnetwork.subnet import Kept, resize
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_file, sha256_json

FORMAT = 2


class State(Protocol):
    """What is saved of a training, and put back into it."""

    problem: Problem
    kept: dict[str, NDArray[np.int64]]
    removed: dict[str, list[int]]
    snapshots: dict[float, Snapshot]
    extra: dict[str, torch.Tensor]
    step: int
    ledger: Ledger
    history: History
    seconds: float
    step_seconds: float

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The network's optimizer."""

    def adopt(self, model: nn.Module) -> None:
        """Train ``model`` from here on, with a new optimizer."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is saved, and which problem it must be of."""

    path: Path
    identity: str

    @classmethod
    def of(cls, problem: Problem, model: nn.Module, kept: Kept, method: str) -> "Checkpoint | None":
        """The checkpoint of a training that begins like this; None where the problem has no place for one."""
        if problem.checkpoint is None:
            return None
        return cls(problem.checkpoint, _identity(problem, model, kept, method))

    def save(self, training: State) -> None:
        """Write the training's state."""
        from safetensors.torch import save_file

        tensors = {f"model/{n}": t.contiguous() for n, t in training.model.state_dict().items()}
        for name, parameter in training.model.named_parameters():
            for key, value in training.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value.contiguous().clone()
        tensors |= {f"kept/{n}": torch.from_numpy(u) for n, u in training.kept.items()}
        tensors |= {f"extra/{n}": t for n, t in training.extra.items()}
        for ratio, (kept, values) in training.snapshots.items():
            tensors |= {f"snapshot/{ratio}/kept/{n}": torch.from_numpy(u) for n, u in kept.items()}
            tensors |= {f"snapshot/{ratio}/model/{n}": t.contiguous() for n, t in values.items()}
        facts = {
            "problem": self.identity,
            "step": training.step,
            "removed": training.removed,
            "ledger": asdict(training.ledger),
            "history": asdict(training.history),
            "seconds": training.seconds,
            "step_seconds": training.step_seconds,
        }
        with atomic_file(self.path) as partial:
            save_file(tensors, partial, {"facts": json.dumps(facts)})

    def restore(self, training: State) -> bool:
        """Put ``training`` into the saved state; False where there is none of this problem."""
        if not self.path.exists():
            return False
        facts, tensors = self._read()
        if facts.get("problem") != self.identity:
            return False
        problem, part = training.problem, _sections(tensors)
        training.kept = {name: units.numpy() for name, units in part["kept"].items()}
        widths = {name: len(units) for name, units in training.kept.items()}
        model = resize(problem.backbone.with_head(problem.classes), widths, problem.policy)
        model.load_state_dict(part["model"])
        training.step = facts["step"]
        training.adopt(model)
        state = _sections(part.get("optimizer", {}))
        for name, parameter in training.model.named_parameters():
            own = {key: values[name] for key, values in state.items() if name in values}
            if own:
                training.optimizer.state[parameter] = own
        training.extra = part.get("extra", {})
        for ratio, values in _sections(part.get("snapshot", {})).items():
            inside = _sections(values)
            kept = {n: u.numpy() for n, u in inside["kept"].items()}
            training.snapshots[float(ratio)] = (kept, inside["model"])
        training.removed = facts["removed"]
        training.ledger = Ledger(**facts["ledger"])
        training.history = History(**facts["history"])
        training.seconds, training.step_seconds = facts["seconds"], facts["step_seconds"]
        return True

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                facts: dict[str, Any] = json.loads(file.metadata()["facts"])
                return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"checkpoint {self.path} is broken ({error}): delete it to start afresh"
            ) from error


def _identity(problem: Problem, model: nn.Module, kept: Kept, method: str) -> str:
    """A hash of everything that the result follows from."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    units = {name: np.ascontiguousarray(indices) for name, indices in kept.items()}
    arrays = {**{name: tensor.numpy() for name, tensor in tensors.items()}, **units}
    teacher = problem.teacher
    if teacher is not None:
        arrays["teacher"] = teacher.logits.numpy()
        method = f"{method} {teacher.weight} {teacher.temperature} {teacher.same_classes}"
    arrays["labels"] = np.ascontiguousarray(problem.train.labels)
    arrays["pixels"] = np.ascontiguousarray(
        problem.train.pixels[:: 1 + len(arrays["labels"]) // 64]
    )
    return sha256_json(
        {
            "format": FORMAT,
            "method": method,
            "recipe": asdict(problem.recipe),
            "arithmetic": arithmetic_of(problem.recipe.accelerator),
            "seed": problem.seed,
            "policy": problem.policy,
            "widths": dict(problem.widths),
            "snapshots": list(problem.snapshots),
            "arrays": {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()},
        }
    )


def _sections(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Split names at their first slash."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        section, _, rest = name.partition("/")
        parts.setdefault(section, {})[rest] = tensor
    return parts
