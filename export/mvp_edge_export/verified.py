"""The result of verifying a network: cost, accuracy and verdicts of one set of weights.

The exporter requires a ``Verified``, so a network that was not verified cannot be exported. Its file
contains the sha256 of the verified weights: a network whose training is continued must be verified
again.
"""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import read_json, sha256_file, write_json

VerdictWord = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNCHECKED"]
Basis = Literal["counted", "predicted", "estimate", "measured", "none"]

_Model = TypeVar("_Model", bound=BaseModel)

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Cost(BaseModel):
    """Cost of one forward pass with the profile's batch size and the network's input size."""

    model_config = _FROZEN

    flops: int = Field(ge=0)
    """Number of multiply-adds, counted as fvcore does: a fused multiply-add is one, with normalisation."""
    flops_norm: int = Field(ge=0)
    """The part of ``flops`` that fvcore counts for normalisation layers."""
    params: int = Field(ge=0)
    """Number of parameters, without running statistics."""
    weight_bytes: int = Field(ge=0)
    """Size of the parameters and buffers in float32, in bytes."""
    activation_bytes: int = Field(ge=0)
    """Peak size of the activations that are needed at the same time, in float32, in bytes."""

    @property
    def memory_bytes(self) -> int:
        """Predicted memory in bytes: weights and peak activations."""
        return self.weight_bytes + self.activation_bytes


class Verdict(BaseModel):
    """Comparison of a network with one budget of a device profile."""

    model_config = _FROZEN

    budget: str
    """Key of the budget in the profile, e.g. ``flops`` or ``latency.p90``."""
    limit: float | None
    """Limit in ``unit``; None if the profile sets none."""
    reached: float | None
    """Value of the network in ``unit``; None if it is not known."""
    unit: str
    verdict: VerdictWord
    basis: Basis
    """How ``reached`` was obtained."""
    note: str = ""
    """Explanation of the verdict or of ``reached``, in one sentence; may be empty."""

    def __str__(self) -> str:
        reached = "-" if self.reached is None else f"{self.reached:,.6g}"
        limit = "-" if self.limit is None else f"{self.limit:,.6g}"
        return f"{self.budget} {self.verdict}: {reached} of {limit} {self.unit}".rstrip()


class Verified(BaseModel):
    """Cost, accuracy and verdicts of the weights with the given sha256.

    It is stored as ``verified.json`` in the folder of the weights.
    """

    model_config = _FROZEN

    schema_: Literal[1] = Field(default=1, alias="schema")
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    cost: Cost
    cost_baseline: Cost
    """Cost of the unpruned backbone with the task's head, counted the same way."""
    accuracy: float = Field(ge=0, le=1)
    """Top-1 accuracy on the task's test images, 0..1."""
    images: int = Field(ge=0)
    """Number of test images that ``accuracy`` was measured on."""
    verdicts: tuple[Verdict, ...]
    profile: str
    """Id of the device profile."""
    profile_sha256: str
    checks: dict[str, Any] = Field(default_factory=dict)
    """Results of cross-checks, in which the same quantity was counted in another way."""

    @property
    def passed(self) -> bool:
        """Whether no verdict is FAIL; UNCHECKED and INCONCLUSIVE are allowed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts that are FAIL."""
        return tuple(v for v in self.verdicts if v.verdict == "FAIL")

    def check_weights(self, weights: Path) -> None:
        """Check that a file contains the verified weights.

        Raises:
            BadInput: ``weights`` does not exist, or its sha256 is not the verified one.
        """
        if not weights.is_file():
            raise BadInput(f"verified weights: {weights} does not exist")
        found = sha256_file(weights)
        if found != self.weights_sha256:
            raise BadInput(
                f"{weights} has sha256 {found[:12]}…, but {self.weights_sha256[:12]}… was "
                "verified: the file was changed since; prune again, or restore it"
            )

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads."""
        write_json(path, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(cls, path: Path, weights: Path) -> Self:
        """Read ``path`` and check that it was made for the file ``weights``.

        Raises:
            BadInput: one of the files is missing or invalid, or ``weights`` was not verified.
        """
        verified = parse(cls, read_json(path, "verification"), "verification", path)
        verified.check_weights(weights)
        return verified


def parse(model: type[_Model], value: Any, what: str, path: Path) -> _Model:
    """Build a pydantic model from a JSON value.

    Args:
        model: class of the model.
        value: the JSON value.
        what: name of the kind of file, for the error message.
        path: the file that it was read from, for the error message.

    Raises:
        BadInput: the value is invalid; the message names the first invalid key and the number of
            the others.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        more = f" (and {len(others)} more)" if others else ""
        raise BadInput(f"{what}: {path}: {key}: {first['msg']}{more}") from error
