"""What a run writes down of its results: the content of its JSON files, from the engine's objects."""

from collections.abc import Sequence

from torch import nn

from mvp_edge.pruning.problem import Pruned
from mvp_edge.pruning.votes import Ballot
from mvp_edge.runs.files import (
    GroupVotes,
    LayerFlops,
    LayersFile,
    Neighbour,
    NeighboursFile,
    RankedTask,
    SharedMeaning,
    VotesFile,
)
from mvp_edge.runs.run_file import (
    BackboneFacts,
    Keep,
    Outcome,
    ProfileFacts,
    Room,
    Skipped,
    TaskFacts,
    TrainingFacts,
    Width,
)
from mvp_edge.runs.settle import Settled
from mvp_edge.subnetwork.cost import layers
from mvp_edge.subnetwork.network import Network
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.neighbours import Neighbours


def neighbours_file(
    found: Neighbours, entries: Sequence[Entry], flops: int | float
) -> NeighboursFile:
    """neighbours.json of the neighbours that were found, which took ``flops`` multiply-adds."""
    weights = {entry.name: entry.weights_sha256 for entry in entries}
    return NeighboursFile(
        similarity=found.similarity,
        neighbours=tuple(
            Neighbour(
                task=one.task,
                score=one.score,
                classes=one.classes,
                shared=tuple(
                    SharedMeaning(ours=match.ours, theirs=match.theirs, wup=match.wup)
                    for match in one.shared
                ),
            )
            for one in found.chosen
        ),
        candidates=tuple(RankedTask(task=one.task, score=one.score) for one in found.candidates),
        weights={one.task: weights[one.task] for one in found.chosen},
        flops=flops,
    )


def group_votes(ballot: Ballot) -> GroupVotes:
    """The votes on one unit group, as they stand in votes.json."""
    return GroupVotes(
        name=ballot.group.name,
        kind=ballot.group.kind,
        size=ballot.group.size,
        kept=tuple(ballot.kept.tolist()),
        votes=tuple(ballot.votes.tolist()),
        drawn=tuple(ballot.without_votes.tolist()),
    )


def votes_file(neighbours: NeighboursFile, pruned: Pruned, tau: float) -> VotesFile:
    """votes.json of a network that was pruned by votes with the temperature ``tau``."""
    groups = [group_votes(ballot) for ballot in pruned.ballots]
    names = tuple(one.task for one in neighbours.neighbours)
    return VotesFile(neighbours=names, tau=tau, groups=tuple(groups))


def layers_file(settled: Settled, module: nn.Module) -> LayersFile:
    """layers.json: the cost of each layer, and of the same layer of the unpruned network."""
    backbone = settled.backbone
    unpruned = layers(backbone.outline(len(settled.task.classes)), backbone.shape)
    whole = {layer.name: layer.flops for layer in unpruned}
    found = [
        LayerFlops(
            name=layer.name,
            kind=layer.kind,
            flops=layer.flops,
            params=layer.params,
            output_shape=tuple(layer.output_shape),
            flops_baseline=whole.get(layer.name),
        )
        for layer in layers(module, backbone.shape)
    ]
    return LayersFile(layers=tuple(found))


def outcome_of(settled: Settled, training: TrainingFacts, network: Network) -> Outcome:
    """What run.json says of a finished run."""
    request, backbone, task, plan = settled.request, settled.backbone, settled.task, settled.plan
    profile, kept = settled.profile, network.subnetwork
    return Outcome(
        seed=request.seed,
        backbone=BackboneFacts(
            name=backbone.name,
            architecture=backbone.architecture.name,
            source=backbone.source,
            sha256=backbone.sha256,
            family=backbone.family.name,
            policy=settled.policy,
            input_size=backbone.preprocess.size,
            num_classes=len(backbone.classes),
            notes=backbone.notes or None,
        ),
        task=TaskFacts(
            name=task.name,
            source=task.source,
            classes=tuple(task.classes),
            images={name: len(examples) for name, examples in task.splits.items()},
            skipped=tuple(Skipped(file=one.file, why=one.why) for one in task.skipped),
        ),
        profile=ProfileFacts(id=profile.id, name=profile.name, sha256=profile.sha256),
        method=settled.method,
        method_reason=settled.source.reason,
        keep=Keep(
            asked=request.keep,
            zoo=settled.zoo.keep if settled.zoo else None,
            chosen=plan.keep,
            binding=plan.binding,
            room=Room.model_validate(plan.room.to_json()) if plan.room else None,
        ),
        widths={
            name: Width(size=size, kept=kept.widths[name]) for name, size in kept.sizes.items()
        },
        training=training,
    )
