"""A network being pruned: the problem, the state between two steps, and its result.

Every method (`scratch.random`, `scratch.magnitude`, `scratch.conventional`, `scratch.ifp`, `distill.distill`,
`ahnp.ahnp`, `mvp.mvp`, `smsp.smsp`) is a function ``Problem → Pruned``. They share `Training`, which fine-tunes a
network, shrinks it physically, and can be saved and resumed at any of its stops.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning.arithmetic import lay_out
from mvp_edge.pruning.batches import Batches, LabelledImages, Recipe
from mvp_edge.pruning.distillation import DistillationBatches, Teacher
from mvp_edge.pruning.finetune import History, Ledger, Loss, Stepper, accuracy, predict_logits
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import Kept, compose, extract, kept_axes, resize
from mvp_edge.subnetwork.units import UnitGroup, unit_groups
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_file, sha256_json

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""

Snapshot = tuple[dict[str, NDArray[np.int64]], dict[str, torch.Tensor]]
"""A network on its way: the kept units of each group, and the weights."""


@dataclass(frozen=True)
class Problem:
    """One network to be made: of which backbone, for which images, how wide, how long."""

    backbone: Backbone
    policy: str
    classes: int
    train: LabelledImages
    validation: LabelledImages | None
    widths: Mapping[str, int]
    recipe: Recipe
    teacher: Teacher | None = None
    """Whose opinion counts beside the labels; ``classes`` then counts its other classes, too."""
    voters: Sequence[Voter] = ()
    """The zoo's networks that the method asks, the nearest first."""
    seed: int = 0
    snapshots: Sequence[float] = ()
    """Larger keep ratios at which an iterative method also leaves its weights."""
    checkpoint: Path | None = None
    """Where a killed run finds its state; removed by the caller when the run is safe."""
    progress: Progress = lambda phase, done, total: None

    @property
    def groups(self) -> tuple[UnitGroup, ...]:
        """The backbone's unit groups under the policy."""
        return unit_groups(self.backbone.model, self.policy)

    @property
    def batches(self) -> Batches:
        """The seeded stream of training batches."""
        how = (self.train, self.backbone.preprocess, self.recipe, self.seed)
        return DistillationBatches(*how, self.teacher) if self.teacher else Batches(*how)

    @property
    def loss(self) -> Loss:
        """Of those batches."""
        return self.teacher.loss if self.teacher else F.cross_entropy


@dataclass
class Pruned:
    """What a method returns."""

    model: nn.Module
    kept: dict[str, NDArray[np.int64]]
    ranking: dict[str, NDArray[np.int64]]
    """All units of each group, the first to go first: its last m are the kept set at width m."""
    ledger: Ledger
    history: History
    seconds: float
    """Wall time of the method, on this machine."""
    step_seconds: float
    """The part of it that was spent in training steps."""
    snapshots: dict[float, Snapshot] = field(default_factory=dict)
    """Keep ratio → the network as it was at that ratio."""
    ballots: tuple[Ballot, ...] = ()
    """Of a method that asks the zoo."""


class Training:
    """A network in training that may shrink on the way.

    ``kept`` are its units as indices in the backbone, ``fallen`` the removed ones in the order in which
    they fell. Between two calls everything that matters is in tensors and numbers, so `save` and
    `restore` make a killed run go on to the bit-same result. ``method`` says how the network is made,
    beyond what the problem says: a checkpoint of another method or problem is not gone on with.
    """

    def __init__(self, problem: Problem, model: nn.Module, kept: Kept, method: str = ""):
        self.problem = problem
        whole = problem.backbone.outline(problem.classes)
        self.dense_macs = forward_macs(whole, problem.backbone.shape)
        self.batches, self.loss = problem.batches, problem.loss
        self.kept = {
            g.name: np.asarray(kept.get(g.name, np.arange(g.size))) for g in problem.groups
        }
        self.fallen: dict[str, list[int]] = {g.name: [] for g in problem.groups}
        self.snapshots: dict[float, Snapshot] = {}
        self.step = 0
        self.ledger, self.history = Ledger(), History()
        self.extra: dict[str, torch.Tensor] = {}
        """Tensors of the method's own (AHNP's scores)."""
        self.seconds = self.step_seconds = 0.0
        self._clock = time.perf_counter()
        self._identity = ""
        if problem.checkpoint is not None:
            self._identity = _identity(problem, model, self.kept, method)
        self._adopt(model)

    def _adopt(self, model: nn.Module) -> None:
        """Train ``model`` from here on."""
        problem = self.problem
        self.stepper = Stepper(model, problem.recipe, problem.backbone.shape, self.dense_macs)

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""
        return self.stepper.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The network's own; its momentum is cut when the network is."""
        return self.stepper.optimizer

    @property
    def macs(self) -> int:
        """Of one image through the network as it is now."""
        return self.stepper.macs

    def run(self, until: int, after_update: Callable[[], None] | None = None) -> None:
        """Fine-tune up to step ``until``; a validation point every fifth of the recipe."""
        with self.stepper.threads():
            self._run(until, after_update)

    def _run(self, until: int, after_update: Callable[[], None] | None) -> None:
        recipe, problem = self.problem.recipe, self.problem
        self.model.train()
        every = max(1, recipe.steps // 5)
        while self.step < until:
            began = time.perf_counter()
            loss, right = self.stepper.step(
                self.batches, self.step, self.ledger, self.loss, after_update
            )
            self.history.steps.append(
                {
                    "step": self.step + 1,
                    "loss": loss,
                    "lr": recipe.rate(self.step),
                    "train_accuracy": right,
                    "units": sum(len(units) for units in self.kept.values()),
                }
            )
            self.step += 1
            self.step_seconds += time.perf_counter() - began
            problem.progress("tuning", self.step, recipe.steps)
            if self.step % every == 0:
                self._validate()
        self.model.eval()

    @property
    def cut(self) -> bool:
        """Whether units were removed already, or none have to be."""
        widths = self.problem.widths
        return all(len(kept) <= widths.get(name, len(kept)) for name, kept in self.kept.items())

    def shrink(self, local: Kept, order: Mapping[str, Sequence[int]]) -> None:
        """Keep only ``local`` units (indices in the present network); ``order``: the others as they fall.

        The optimizer's momentum is cut like the weights it belongs to.
        """
        policy = self.problem.policy
        groups = unit_groups(self.model, policy)
        old = dict(self.model.named_parameters())
        state = {name: self.optimizer.state.get(p, {}) for name, p in old.items()}
        axes = kept_axes(groups, local, {**old, **dict(self.model.named_buffers())})
        for name, units in order.items():
            self.fallen[name] += [int(self.kept[name][unit]) for unit in units]
        self.kept.update(compose(self.kept, local))
        self._adopt(extract(self.model, local, policy))
        for name, parameter in self.model.named_parameters():
            cut = {}
            for key, value in state[name].items():
                if isinstance(value, torch.Tensor) and value.shape == old[name].shape:
                    for axis in range(value.dim()):
                        if (name, axis) in axes:
                            index = torch.from_numpy(axes[name, axis]).to(value.device)
                            value = value.index_select(axis, index)
                cut[key] = value
            if cut:
                self.optimizer.state[parameter] = cut

    def snapshot(self, ratio: float) -> None:
        """Remember the network as it is now."""
        tensors = {n: t.detach().cpu().clone() for n, t in self.model.state_dict().items()}
        self.snapshots[ratio] = ({n: u.copy() for n, u in self.kept.items()}, tensors)

    def finished(self, importance: Mapping[str, NDArray[np.float64]]) -> Pruned:
        """The result; survivors are ranked by ``importance`` (one value a kept unit), least first."""
        ranking = {}
        for name, kept in self.kept.items():
            last = kept[np.argsort(importance[name], kind="stable")] if name in importance else kept
            ranking[name] = np.concatenate([np.asarray(self.fallen[name], dtype=np.int64), last])
        model = lay_out(self.model, "cpu", torch.contiguous_format).eval()
        seconds = self.seconds + time.perf_counter() - self._clock
        return Pruned(
            model,
            self.kept,
            ranking,
            self.ledger,
            self.history,
            seconds,
            self.step_seconds,
            snapshots=self.snapshots,
        )

    def save(self) -> None:
        """Write the checkpoint, if the problem has a place for one."""
        if self.problem.checkpoint is None:
            return
        from safetensors.torch import save_file

        tensors = {f"model/{n}": t.contiguous() for n, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value.contiguous().clone()
        tensors |= {f"kept/{n}": torch.from_numpy(u) for n, u in self.kept.items()}
        tensors |= {f"extra/{n}": t for n, t in self.extra.items()}
        for ratio, (kept, values) in self.snapshots.items():
            tensors |= {f"snapshot/{ratio}/kept/{n}": torch.from_numpy(u) for n, u in kept.items()}
            tensors |= {f"snapshot/{ratio}/model/{n}": t.contiguous() for n, t in values.items()}
        facts = {
            "problem": self._identity,
            "step": self.step,
            "fallen": self.fallen,
            "ledger": asdict(self.ledger),
            "history": asdict(self.history),
            "seconds": self.seconds + time.perf_counter() - self._clock,
            "step_seconds": self.step_seconds,
        }
        with atomic_file(self.problem.checkpoint) as partial:
            save_file(tensors, partial, {"facts": json.dumps(facts)})

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one of this very problem; True when there was."""
        path = self.problem.checkpoint
        if path is None or not path.exists():
            return False
        from safetensors import SafetensorError, safe_open

        tensors: dict[str, torch.Tensor] = {}
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"checkpoint {path} is broken ({error}): delete it to start afresh"
            ) from error
        if facts.get("problem") != self._identity:
            return False
        part = _sections(tensors)
        self.kept = {name: units.numpy() for name, units in part["kept"].items()}
        widths = {name: len(units) for name, units in self.kept.items()}
        full = self.problem.backbone.with_head(self.problem.classes)
        model = resize(full, widths, self.problem.policy)
        model.load_state_dict(part["model"])
        self.step = facts["step"]
        self._adopt(model)
        state = _sections(part.get("optimizer", {}))
        for name, parameter in self.model.named_parameters():
            own = {key: values[name] for key, values in state.items() if name in values}
            if own:
                self.optimizer.state[parameter] = own
        self.extra = part.get("extra", {})
        for ratio, values in _sections(part.get("snapshot", {})).items():
            inside = _sections(values)
            kept = {n: u.numpy() for n, u in inside["kept"].items()}
            self.snapshots[float(ratio)] = (kept, inside["model"])
        self.fallen = facts["fallen"]
        self.ledger = Ledger(**facts["ledger"])
        self.history = History(**facts["history"])
        self.seconds, self._clock = facts["seconds"], time.perf_counter()
        self.step_seconds = facts["step_seconds"]
        return True

    def _validate(self) -> None:
        images = self.problem.validation
        if images is not None and len(images.labels):
            logits = predict_logits(
                self.model, images.pixels, self.problem.backbone.preprocess, fast=True
            )
            self.history.validation.append(
                {"step": self.step, "top1": accuracy(logits, images.labels)}
            )


def _identity(problem: Problem, model: nn.Module, kept: Kept, method: str) -> str:
    """What a checkpoint has to agree in: everything that the result follows from."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    units = {name: np.ascontiguousarray(indices) for name, indices in kept.items()}
    arrays = {**{name: tensor.numpy() for name, tensor in tensors.items()}, **units}
    if problem.teacher is not None:
        arrays["teacher"] = problem.teacher.logits.numpy()
        method = (
            f"{method} {problem.teacher.share} {problem.teacher.temperature} {problem.teacher.own}"
        )
    arrays["labels"] = np.ascontiguousarray(problem.train.labels)
    arrays["pixels"] = np.ascontiguousarray(
        problem.train.pixels[:: 1 + len(arrays["labels"]) // 64]
    )
    return sha256_json(
        {
            "method": method,
            "recipe": asdict(problem.recipe),
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
