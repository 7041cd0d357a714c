"""What was verified: the cost and accuracy of exactly one set of weights.

``Verified`` is the ticket of the exporter: a network that was not verified cannot be exported, for
the exporter takes nothing else. Its file binds the sha256 of the weights that were verified, so a
network that was trained on afterwards has to be verified again.
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
    """What one forward pass of a network costs, at the profile's batch and input size."""

    model_config = _FROZEN

    flops: int = Field(ge=0)
    """Multiply-adds in fvcore's convention: one multiply-add is one; normalisation included."""
    flops_norm: int = Field(ge=0)
    """The part of ``flops`` that fvcore counts for normalisation layers."""
    params: int = Field(ge=0)
    """Parameters, running statistics not among them."""
    weight_bytes: int = Field(ge=0)
    """Bytes of the parameters and buffers in float32."""
    activation_bytes: int = Field(ge=0)
    """Bytes of the activations that live at the same time, at their peak, in float32."""

    @property
    def memory_bytes(self) -> int:
        """Predicted memory: the weights and the peak of the activations."""
        return self.weight_bytes + self.activation_bytes


class Verdict(BaseModel):
    """One budget of a device profile, held against what was reached."""

    model_config = _FROZEN

    budget: str
    """The budget's key in the profile, e.g. ``flops`` or ``latency.p90``."""
    limit: float | None
    """The profile's limit in ``unit``; None when the profile sets none."""
    reached: float | None
    """What was reached in ``unit``; None when it is not known."""
    unit: str
    verdict: VerdictWord
    basis: Basis
    """How ``reached`` came about."""
    note: str = ""
    """Why the verdict is not a plain PASS or FAIL, in one sentence."""

    def __str__(self) -> str:
        reached = "-" if self.reached is None else f"{self.reached:,.6g}"
        limit = "-" if self.limit is None else f"{self.limit:,.6g}"
        return f"{self.budget} {self.verdict}: {reached} of {limit} {self.unit}".rstrip()


class Verified(BaseModel):
    """Cost, accuracy and verdicts of the weights with the given sha256.

    It is written beside the weights (``verified.json``) and read back together with them.
    """

    model_config = _FROZEN

    schema_: Literal[1] = Field(default=1, alias="schema")
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    cost: Cost
    cost_baseline: Cost
    """The unpruned backbone with the task's head, counted the same way."""
    accuracy: float = Field(ge=0, le=1)
    """Top-1 on the task's test images."""
    images: int = Field(ge=0)
    """How many test images ``accuracy`` was measured on."""
    verdicts: tuple[Verdict, ...]
    profile: str
    """The device profile's id."""
    profile_sha256: str
    checks: dict[str, Any] = Field(default_factory=dict)
    """Figures of the cross-checks: the same quantity counted in another way."""

    @property
    def passed(self) -> bool:
        """Whether no budget FAILs; unchecked and inconclusive ones do not stand in the way."""
        return not self.failed

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts that are FAIL."""
        return tuple(v for v in self.verdicts if v.verdict == "FAIL")

    def check_weights(self, weights: Path) -> None:
        """Refuse weights other than the verified ones.

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
            BadInput: either file is missing or damaged, or ``weights`` is not what was verified.
        """
        verified = parse(cls, read_json(path, "verification"), "verification", path)
        verified.check_weights(weights)
        return verified


def parse(model: type[_Model], value: Any, what: str, path: Path) -> _Model:
    """Build ``model`` from JSON that was read from ``path``.

    Raises:
        BadInput: it does not fit; the line names the first key at fault and counts the others.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        more = f" (and {len(others)} more)" if others else ""
        raise BadInput(f"{what}: {path}: {key}: {first['msg']}{more}") from error
