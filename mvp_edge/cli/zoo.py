"""`mvp-edge zoo`: build and look after the zoo of pruned models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Group, Method, Number, common, declared, example
from mvp_edge.methods.catalogue import WITHOUT_ZOO
from mvp_edge.runs.request import POLICIES
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge.zoo.entries import Entry, Zoo


@click.group(cls=Group, epilog=example("mvp-edge zoo list zoo/"))
def zoo() -> None:
    """Build and look after the zoo of pruned models."""


@zoo.command(
    "build",
    epilog=example(
        "mvp-edge zoo build --backbone resnet18 --tasks tasks/ --zoo zoo/",
        "mvp-edge zoo build --backbone resnet18 --tasks cifar100.zip --sample 20x5 --zoo zoo/",
    ),
)
@click.option(
    "--backbone", type=click.Path(), required=True, metavar="NAME|FILE",
    help="Pre-trained network: a timm name, a description.json, or ARCHITECTURE@FILE.",
)  # fmt: skip
@click.option(
    "--tasks", required=True, type=PATH, metavar="DIR",
    help="Folder of tasks (folders or zips); with --sample a folder or zip of classes.",
)  # fmt: skip
@click.option(
    "--sample", metavar="NxK",
    help="Draw N tasks of K classes each from the classes of --tasks [all tasks as they are].",
)  # fmt: skip
@click.option(
    "--zoo",
    "path",
    required=True,
    type=PATH,
    metavar="Z",
    help="Folder of the zoo; made if need be.",
)
@click.option(
    "--keep", type=Number(0, 1, min_open=True), default=0.1, metavar="R",
    help="Share of units to keep in each layer [0.1].",
)  # fmt: skip
@click.option(
    "--policy", type=click.Choice(POLICIES),
    help="Which units can be pruned, as for prune [tied; heads-nodes for a ViT].",
)  # fmt: skip
@click.option(
    "--method", type=Method(WITHOUT_ZOO),
    help="Pruning method for every task [distill; ahnp for a ViT; with --snapshots ifp, ahnp].",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), metavar="N",
    help="Number of training steps for each task [1000; magnitude, random 100].",
)  # fmt: skip
@click.option(
    "--snapshots", default="", metavar="0.5,0.25",
    help="Larger keep ratios at which the networks are kept as well (ifp, ahnp) [none].",
)  # fmt: skip
@declared("weights_key", "input_size", "augment", "accelerator", "seed")
@common
def zoo_build(console: Console, **options: Any) -> None:
    """Prune every task without a zoo's help; killed at any moment, the same command goes on."""
    console.say("loading …")
    from mvp_edge.zoo.build import ZooBuild

    options["snapshots"] = _ratios(options["snapshots"])
    built, added = ZooBuild(**options).run(console.progress, console.say)
    sample = f" --sample {options['sample']}" if options["sample"] else ""
    text = f"{built.path}: {len(added)} added, {len(built.names())} in all"
    if len(built.names()) > 1:
        text += f"\nnext: mvp-edge zoo trunk {built.path} --tasks {options['tasks']}{sample}"
    console.result({"zoo": str(built.path), "added": added, "entries": built.names()}, text)


@zoo.command(
    "trunk",
    epilog=example(
        "mvp-edge zoo trunk zoo/ --tasks tasks/",
        "mvp-edge zoo trunk new/ --backbone resnet18 --images photos/ --keep 0.25",
    ),
)
@click.argument("path", metavar="ZOO", type=PATH)
@click.option(
    "--tasks", type=PATH, metavar="DIR",
    help="Folder of the tasks that the zoo was built from; with --sample a folder or zip of classes.",
)  # fmt: skip
@click.option(
    "--sample", metavar="NxK",
    help="Draw N tasks of K classes each; give what `zoo build` was given [all tasks as they are].",
)  # fmt: skip
@click.option(
    "--images", type=PATH, metavar="DIR|ZIP",
    help="Images without labels, in addition to those of the tasks or instead of them.",
)  # fmt: skip
@click.option(
    "--backbone", type=click.Path(), metavar="NAME|FILE",
    help="Pre-trained network of a new zoo, or where the zoo's is now, if it has moved [the zoo's].",
)  # fmt: skip
@click.option(
    "--policy", type=click.Choice(POLICIES),
    help="Which units can be pruned in a new zoo [tied; heads-nodes for a ViT].",
)  # fmt: skip
@click.option(
    "--keep", type=Number(0, 1, min_open=True), metavar="R",
    help="Share of units to keep in each layer [the zoo's; 0.1 for a new zoo].",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), metavar="N",
    help="Number of training steps [32 passes through the images].",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the trunk of that keep ratio.")
@declared("weights_key", "input_size", "accelerator", "seed")
@common
def zoo_trunk(console: Console, **options: Any) -> None:
    """Train one small network on all tasks at once; `prune` starts new tasks from it.

    The zoo's networks vote on its units; in a zoo without networks the units with the largest weights are kept. The
    backbone is the teacher (knowledge distillation), so images without labels can be used too. Killed at any
    moment, the same command goes on.
    """
    console.say("loading …")
    from mvp_edge.zoo.trunk import TrunkBuild

    trunk = TrunkBuild(**options).run(console.progress, console.say)
    told = f"{len(trunk.classes)} classes on validation images"
    told = told if options["tasks"] else "held-out images as the backbone does"
    console.result(
        _entry_facts(trunk), f"{trunk.directory}: {100 * trunk.scores['val']:.1f} % of {told}"
    )


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise BadInput(
            f"{text}: ratios separated by commas, e.g. 0.5,0.25", field="snapshots"
        ) from error


@zoo.command("list", epilog=example("mvp-edge zoo list zoo/"))
@click.argument("path", metavar="ZOO", type=PATH)
@common
def zoo_list(console: Console, path: Path) -> None:
    """List the entries: classes, accuracy, size, how they were made."""
    from mvp_edge.zoo.entries import Zoo

    opened = Zoo.open(path)
    entries, trunks, broken = opened.readable()
    console.result(
        {
            "zoo": str(path),
            "entries": [_entry_facts(entry) for entry in entries],
            "trunks": [_entry_facts(trunk) for trunk in trunks],
            "broken": broken,
        },
        "\n".join(
            [
                _zoo_line(opened, len(entries)),
                *map(_entry_line, entries),
                *map(_trunk_line, trunks),
            ]
        ),
    )
    for line in broken:
        console.warn(line)


@zoo.command("show", epilog=example("mvp-edge zoo show zoo/ fruit"))
@click.argument("path", metavar="ZOO", type=PATH)
@click.argument("name")
@common
def zoo_show(console: Console, path: Path, name: str) -> None:
    """One entry in full: meanings, recipe, and what it kept layer by layer."""
    from mvp_edge.zoo.entries import Zoo

    entry = Zoo.open(path).entry(name)
    subnetwork = entry.network.subnetwork
    facts = {**_entry_facts(entry), "widths": subnetwork.widths}
    text = json.dumps(_entry_facts(entry), indent=1, ensure_ascii=False)
    console.result(facts, f"{text}\n{subnetwork!r}")


@zoo.command("verify", epilog=example("mvp-edge zoo verify zoo/"))
@click.argument("path", metavar="ZOO", type=PATH)
@click.option(
    "--backbone", type=click.Path(), metavar="NAME|FILE",
    help="Where the backbone is now, if it has moved [as the zoo says].",
)  # fmt: skip
@common
def zoo_verify(console: Console, path: Path, backbone: str | None) -> None:
    """Check every entry's files against their hashes and the backbone; exit 2 if one is broken."""
    from mvp_edge.subnetwork.backbone import load_backbone
    from mvp_edge.zoo.entries import Zoo

    opened = Zoo.open(path)
    source = backbone or opened.backbone_source
    broken = opened.verify(load_backbone(source, opened.input_size))
    sound = len(set(opened.names()) - broken.keys())
    console.result(
        {"zoo": str(path), "sound": sound, "broken": broken}, f"{path}: {sound} entries are sound"
    )
    if broken:
        raise BadInput("; ".join(broken.values()))


@zoo.command("rm", epilog=example("mvp-edge zoo rm zoo/ fruit trees"))
@click.argument("path", metavar="ZOO", type=PATH)
@click.argument("names", nargs=-1, required=True)
@common
def zoo_rm(console: Console, path: Path, names: tuple[str, ...]) -> None:
    """Remove entries."""
    from mvp_edge.zoo.entries import Zoo

    opened = Zoo.open(path)
    missing = [name for name in names if name not in opened.names()]
    if missing:  # said before one of the others is gone
        raise BadInput(f"zoo {path} has no entry {missing[0]!r}: mvp-edge zoo list {path}")
    for name in dict.fromkeys(names):
        opened.remove(name)
    console.result({"removed": list(names)}, f"{path}: removed {', '.join(names)}")


@zoo.command("add", epilog=example("mvp-edge zoo add zoo/ runs/001"))
@click.argument("path", metavar="ZOO", type=PATH)
@click.argument("run", type=PATH)
@click.option("--force", is_flag=True, help="Replace the zoo's network of that task.")
@common
def zoo_add(console: Console, path: Path, run: Path, force: bool) -> None:
    """Add a finished run's network as an entry."""
    from mvp_edge.runs.run import add_run
    from mvp_edge.zoo.entries import Zoo

    entry = add_run(Zoo.open(path), run, force=force)
    console.result(_entry_facts(entry), f"{path}: added {entry.name}")


def _entry_facts(entry: "Entry") -> dict[str, Any]:
    return {
        "name": entry.name,
        "classes": list(entry.classes),
        "synsets": list(entry.synsets),
        "scores": dict(entry.scores),
        "cost": dict(entry.cost),
        "recipe": dict(entry.recipe),
        "keep": entry.keep,
        "snapshots": list(entry.snapshots),
    }


def _entry_line(entry: "Entry") -> str:
    recipe = entry.recipe
    top1 = f"{100 * entry.scores['test']:5.1f} %" if "test" in entry.scores else "      -"
    made = f"{recipe['method']}@{recipe['steps']}"
    return f"{entry.name:<28} {top1}  {made:<14} {', '.join(entry.classes)}"


def _trunk_line(trunk: "Entry") -> str:
    from mvp_edge.zoo.entries import origin

    made, top1 = f"trunk@{trunk.recipe['steps']}", 100 * trunk.scores["val"]
    return f"{f'trunk, keep {trunk.name}':<28} {top1:5.1f} %  {made:<14} {origin(trunk)}"


def _zoo_line(zoo: "Zoo", count: int) -> str:
    return (
        f"{count} entries of {zoo.facts.backbone.name} ({zoo.input_size} px), "
        f"policy {zoo.policy}, keep {zoo.keep:g}"
    )
