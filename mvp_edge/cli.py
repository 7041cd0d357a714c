"""The command line. Heavy imports live in the command bodies: `--help` answers at once.

Every command: exit code 0 done, 2 bad input, 3 budget, 4 export gate, 130 interrupted; `--json` prints one
document on stdout, everything else goes to stderr.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mvp_edge import __version__
from mvp_edge.console import Console
from mvp_edge_export.errors import BadInput, MvpEdgeError

if TYPE_CHECKING:
    from mvp_edge.zoo import Entry

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Lists commands in the order of the flow, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="mvp-edge")
def cli() -> None:
    r"""One pre-trained vision model, many small ones.

    \b
    mvp-edge prune --device rpi4.yaml --task my_images/ --zoo zoo/
    mvp-edge export runs/001 --baseline
    mvp-edge bench runs/001/bundle
    mvp-edge report runs/001
    """


def main() -> None:
    """Entry point: turns our errors into one line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "interrupted: finished work is kept; the same command goes on from there", err=True
        )
        sys.exit(130)
    except MvpEdgeError as error:
        click.echo(f"mvp-edge: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mvp_edge"):
            raise
        click.echo(
            f"mvp-edge: this command needs {error.name}: pip install 'mvp-edge[server]'", err=True
        )
        sys.exit(2)


def _common(command: _Command) -> _Command:
    """--json and --quiet, as a `Console` in the command's first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="No progress, no remarks.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        with Console(as_json=as_json, quiet=quiet) as console:
            return command(console, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


# --- prune ---------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--device", required=True, metavar="D", help="Profile: a shipped name or a YAML file."
)
@click.option(
    "--task", metavar="T", help="Images: a folder of class folders, a zip of one, or a list file."
)
@click.option("--zoo", metavar="Z", help="The zoo whose entries vote.")
@click.option(
    "--backbone", metavar="NAME|FILE", help="timm name, description.json, or ARCHITECTURE@FILE."
)
@click.option("--classes", metavar="A,B,…", help="Only these classes of the task.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, mvp, ifp, ifp-taylor, ahnp, magnitude or random.",
)
@click.option(
    "--policy", type=click.Choice(["tied", "inner", "heads-nodes"]), help="What is prunable."
)
@click.option(
    "--similarity", type=click.Choice(["leep", "wordnet"]), default="leep", show_default=True
)
@click.option(
    "--neighbours", type=click.IntRange(1), default=3, show_default=True, help="How many vote."
)
@click.option("--disjoint", is_flag=True, help="Only neighbours that share no class with the task.")
@click.option(
    "--keep", default="auto", show_default=True, metavar="auto|R", help="Share of units kept."
)
@click.option(
    "--steps", type=click.IntRange(0), help="Fine-tuning steps [MVP 100; IFP, AHNP 1000]."
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate [the method's].")
@click.option(
    "--tau",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Temperature of the vote; 0 takes the units with most votes.",
)
@click.option(
    "--head",
    type=click.Choice(["means", "zero", "random"]),
    default="means",
    show_default=True,
    help="How the new classifier starts.",
)
@click.option(
    "--statistics/--no-statistics",
    default=True,
    show_default=True,
    help="Re-estimate BatchNorm on the task before step 1.",
)
@click.option("--augment", default="flip,shift", show_default=True, metavar="flip,shift|none")
@click.option(
    "--synsets", metavar="FILE", help="Lines `class: synset` for names WordNet does not know."
)
@click.option("--input-size", type=click.IntRange(8, 4096), metavar="PX", help="Side of the input.")
@click.option(
    "--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--add-to-zoo", is_flag=True, help="Add the result to the zoo.")
@click.option(
    "--reference", is_flag=True, help="Fine-tune the unpruned backbone too, for the accuracy drop."
)
@click.option("--out", type=_PATH, metavar="RUN", help="Run directory [runs/001, runs/002, …].")
@click.option("--force", is_flag=True, help="Replace an existing run directory.")
@_common
def prune(
    console: Console, device: str, task: str | None, zoo: str | None, classes: str | None,
    augment: str, out: Path | None, force: bool, **options: Any,
) -> None:  # fmt: skip
    r"""Make a small network for a device and a task.

    \b
    mvp-edge prune --device rpi4.yaml --task my_images/ --zoo zoo/
    """
    from mvp_edge.demo import demo_defaults

    if task is None:
        demo = demo_defaults()
        if demo is None:
            raise BadInput(
                "prune: --task is missing (a folder of class folders); `make demo` makes a task and a zoo to try"
            )
        task, zoo = demo.task, zoo or demo.zoo
        options["augment"] = demo.augment
        console.say(f"no --task given: using the demo's task {task} and zoo {zoo}")
    else:
        options["augment"] = _augment(augment)
        if zoo is None and options["backbone"] is None:
            raise BadInput(
                "prune: give --zoo Z (its backbone is used) or --backbone NAME|FILE, or both"
            )
    chosen = tuple(name.strip() for name in classes.split(",")) if classes else None

    console.say("loading …")
    from mvp_edge.run import prune as run_prune

    run = run_prune(
        device, task, zoo, out=out, force=force, classes=chosen,
        progress=console.progress, say=console.say, **options,
    )  # fmt: skip
    console.result(
        {"run": str(run.path), **run.verified.model_dump(mode="json", by_alias=True)},
        f"{run!r}\nnext: mvp-edge export {run.path} --baseline",
    )


def _augment(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("none",):
        return ()
    if not names or any(name not in ("flip", "shift") for name in names):
        raise BadInput(f"--augment {text}: flip, shift, flip,shift or none")
    return names


# --- export, bench, predict, report --------------------------------------------------------------


@cli.command()
@click.argument("run", type=_PATH)
@click.option(
    "--format", "formats", default="onnx,openvino", show_default=True, metavar="onnx,openvino"
)
@click.option("--fp16", is_flag=True, help="Also an OpenVINO IR with float16 weights.")
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch open instead of 1.")
@click.option("--embed-preprocess", is_flag=True, help="Put the normalisation into the graph.")
@click.option(
    "--baseline", is_flag=True, help="Export the unpruned network beside it, for comparison."
)
@click.option("--out", type=_PATH, metavar="BUNDLE", help="Bundle directory [RUN/bundle].")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@_common
def export(console: Console, run: Path, formats: str, **options: Any) -> None:
    r"""Write RUN's network as ONNX and OpenVINO, through the parity gate.

    \b
    mvp-edge export runs/001 --baseline
    """
    console.say("loading …")
    from mvp_edge.deliver import export as deliver

    wanted = tuple(name.strip() for name in formats.split(","))
    bundle = deliver(run, formats=wanted, progress=console.step, **options)
    manifest = bundle.manifest
    lines = [
        f"{a.model} in {a.runtime} {a.version}: {100 * a.top1:.1f} % top-1 on {a.images} test images"
        for a in manifest.accuracy
    ]
    facts = {"bundle": str(bundle.path), **manifest.model_dump(mode="json", by_alias=True)}
    console.result(facts, "\n".join([*lines, f"next: mvp-edge bench {bundle.path}"]))


@cli.command()
@click.argument("bundle", type=_PATH)
@click.option("--device", metavar="D", help="Judge by another profile than the bundle's.")
@click.option(
    "--runtime", "runtimes", multiple=True, type=click.Choice(["onnxruntime", "openvino"])
)
@click.option("--threads", multiple=True, type=click.IntRange(1), help="[1 and all physical cores]")
@click.option(
    "--full", is_flag=True, help="The long protocol: 60 s, 1,024 runs, three processes a cell."
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), help="Steady seconds a cell [15; full 60]."
)
@click.option(
    "--out", type=_PATH, metavar="FILE", help="Where the JSON goes [BUNDLE/../bench.json]."
)
@_common
def bench(
    console: Console, bundle: Path, device: str | None, runtimes: tuple[str, ...],
    threads: tuple[int, ...], full: bool, seconds: float | None, out: Path | None,
) -> None:  # fmt: skip
    r"""Measure BUNDLE's latency and memory on this machine, pruned and unpruned interleaved.

    \b
    mvp-edge bench runs/001/bundle
    """
    from mvp_edge_export.bench import bench as measure
    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.profile import load_profile
    from mvp_edge_export.storage import write_json

    loaded = load_bundle(bundle)
    result = measure(
        loaded,
        profile=load_profile(device) if device else None,
        runtimes=runtimes or None,
        threads=threads or None,
        full=full,
        seconds=seconds,
        progress=console.share,
    )
    file = out or loaded.path.resolve().parent / "bench.json"
    facts = result.model_dump(mode="json", by_alias=True)
    write_json(file, facts)
    console.result(facts, result.table())
    console.say(f"written to {file}")


@cli.command()
@click.argument("bundle", type=_PATH)
@click.argument("images", nargs=-1, required=True, type=_PATH)
@click.option(
    "--runtime", type=click.Choice(["onnxruntime", "openvino"]), help="[the first installed]"
)
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="How many labels."
)
@_common
def predict(
    console: Console, bundle: Path, images: tuple[Path, ...], runtime: str | None, top: int
) -> None:
    r"""Classify images (files or folders) with BUNDLE alone.

    \b
    mvp-edge predict runs/001/bundle photo.jpg holiday/
    """
    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.predict import predict as classify

    found = []
    for prediction in classify(load_bundle(bundle), images, runtime, top):
        found.append(prediction.to_json())
        if prediction.skipped is not None:
            console.warn(f"{prediction.file}: skipped: {prediction.skipped}")
        else:
            labels = ", ".join(f"{label} {100 * p:.1f} %" for label, p in prediction.top)
            console.line(f"{prediction.file}: {labels}")
    console.result({"predictions": found}, None)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option("--out", type=_PATH, metavar="FILE", help="[RUN/report.html]")
@_common
def report(console: Console, runs: tuple[Path, ...], out: Path | None) -> None:
    r"""Write one self-contained HTML page about a run, or comparing several.

    \b
    mvp-edge report runs/001
    """
    from mvp_edge.report import report as write_report

    path = write_report(runs, out)
    console.result({"report": str(path)}, f"{path}")


# --- zoo -----------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def zoo() -> None:
    """Build and look after the zoo of pruned models."""


@zoo.command("build")
@click.option(
    "--backbone",
    required=True,
    metavar="B",
    help="timm name, description.json, or ARCHITECTURE@FILE.",
)
@click.option(
    "--tasks",
    required=True,
    type=_PATH,
    metavar="DIR",
    help="A folder of tasks; with --sample, of classes.",
)
@click.option("--sample", metavar="NxK", help="Draw N tasks of K classes from one folder or zip.")
@click.option(
    "--zoo", "path", required=True, type=_PATH, metavar="Z", help="The zoo; made if need be."
)
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True)
@click.option(
    "--policy", type=click.Choice(["tied", "inner", "heads-nodes"]), help="[the family's default]"
)
@click.option("--method", metavar="NAME", help="[ifp for ResNet, ahnp for ViT]")
@click.option("--steps", type=click.IntRange(1), help="[1000]")
@click.option(
    "--snapshots", default="", metavar="0.5,0.25", help="Also keep the weights at these ratios."
)
@click.option("--input-size", type=click.IntRange(8, 4096), metavar="PX")
@click.option("--augment", default="flip,shift", show_default=True, metavar="flip,shift|none")
@click.option(
    "--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_common
def zoo_build(console: Console, **options: Any) -> None:
    r"""Prune every task from scratch; killed at any moment, the same command goes on.

    \b
    mvp-edge zoo build --backbone resnet18 --tasks tasks/ --zoo zoo/
    mvp-edge zoo build --backbone resnet18 --tasks cifar100.zip --sample 20x5 --zoo zoo/
    """
    console.say("loading …")
    from mvp_edge.build import build_from

    options["augment"] = _augment(options["augment"])
    options["snapshots"] = _ratios(options["snapshots"], options["keep"])
    built, added = build_from(progress=console.progress, say=console.say, **options)
    console.result(
        {"zoo": str(built.path), "added": added, "entries": built.names()},
        f"{built.path}: {len(added)} added, {len(built.names())} in all",
    )


def _ratios(text: str, keep: float) -> tuple[float, ...]:
    try:
        ratios = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise BadInput(f"--snapshots {text}: ratios separated by commas, e.g. 0.5,0.25") from error
    for ratio in ratios:
        if not keep < ratio < 1:
            raise BadInput(
                f"--snapshots {ratio:g}: a snapshot's ratio lies between --keep {keep:g} and 1"
            )
    return ratios


@zoo.command("list")
@click.argument("path", metavar="ZOO", type=_PATH)
@_common
def zoo_list(console: Console, path: Path) -> None:
    """List the entries: classes, accuracy, size, how they were made."""
    from mvp_edge.zoo import Zoo

    opened = Zoo.open(path)
    entries, broken = [], []
    for name in opened.names():
        try:
            entries.append(opened.entry(name))
        except BadInput as error:
            broken.append(str(error))
    console.result(
        {"zoo": str(path), "entries": [_entry_facts(entry) for entry in entries], "broken": broken},
        "\n".join([_zoo_line(opened.facts, len(entries)), *map(_entry_line, entries)]),
    )
    for line in broken:
        console.warn(line)


@zoo.command("show")
@click.argument("path", metavar="ZOO", type=_PATH)
@click.argument("name")
@_common
def zoo_show(console: Console, path: Path, name: str) -> None:
    """One entry in full: meanings, recipe, and what it kept layer by layer."""
    from mvp_edge.zoo import Zoo

    entry = Zoo.open(path).entry(name)
    subnetwork = entry.network.subnetwork
    facts = {**_entry_facts(entry), "widths": subnetwork.widths}
    text = json.dumps(_entry_facts(entry), indent=1, ensure_ascii=False)
    console.result(facts, f"{text}\n{subnetwork!r}")


@zoo.command("verify")
@click.argument("path", metavar="ZOO", type=_PATH)
@_common
def zoo_verify(console: Console, path: Path) -> None:
    """Check every entry's files against their hashes and the backbone; exit 2 if one is broken."""
    from mvp_edge.backbone import load_backbone
    from mvp_edge.zoo import Zoo

    opened = Zoo.open(path)
    backbone = load_backbone(opened.backbone_source, opened.facts["backbone"]["input_size"])
    broken = opened.verify(backbone)
    sound = len(opened.names()) - len(broken)
    console.result(
        {"zoo": str(path), "sound": sound, "broken": broken}, f"{path}: {sound} entries are sound"
    )
    if broken:
        raise BadInput("; ".join(broken.values()))


@zoo.command("rm")
@click.argument("path", metavar="ZOO", type=_PATH)
@click.argument("names", nargs=-1, required=True)
@_common
def zoo_rm(console: Console, path: Path, names: tuple[str, ...]) -> None:
    """Remove entries."""
    from mvp_edge.zoo import Zoo

    opened = Zoo.open(path)
    for name in names:
        opened.remove(name)
    console.result({"removed": list(names)}, f"{path}: removed {', '.join(names)}")


@zoo.command("add")
@click.argument("path", metavar="ZOO", type=_PATH)
@click.argument("run", type=_PATH)
@click.option("--force", is_flag=True, help="Replace the entry of that task.")
@_common
def zoo_add(console: Console, path: Path, run: Path, force: bool) -> None:
    """Add a finished run's network as an entry."""
    from mvp_edge.run import add_run
    from mvp_edge.zoo import Zoo

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


def _zoo_line(facts: Any, count: int) -> str:
    backbone = facts["backbone"]
    return (
        f"{count} entries of {backbone['name']} ({backbone['input_size']} px), "
        f"policy {facts['policy']}, keep {facts['keep']:g}"
    )


# --- device --------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def device() -> None:
    """Look at device profiles, and check your own."""


@device.command("list")
@_common
def device_list(console: Console) -> None:
    """The shipped profiles with their budgets."""
    from mvp_edge_export.profile import load_profile, shipped_profiles

    profiles = [load_profile(name) for name in shipped_profiles()]
    facts = [profile.model_dump(mode="json", by_alias=True) for profile in profiles]
    console.result(
        {"profiles": facts}, "\n".join(f"{p.id:<18} {p.name:<36} {_budgets(p)}" for p in profiles)
    )


@device.command("show")
@click.argument("name")
@_common
def device_show(console: Console, name: str) -> None:
    """One profile in full, with what it extends filled in."""
    import yaml

    from mvp_edge_export.profile import load_profile

    facts = load_profile(name).model_dump(mode="json", by_alias=True)
    console.result(facts, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())


@device.command("check")
@click.argument("file", type=_PATH)
@_common
def device_check(console: Console, file: Path) -> None:
    """Name all mistakes of a profile at once; exit 2 if there are any."""
    from mvp_edge_export.profile import check_profile

    mistakes = check_profile(file)
    console.result(
        {"file": str(file), "mistakes": mistakes}, None if mistakes else f"{file}: no mistakes"
    )
    if mistakes:
        raise BadInput("\n".join(mistakes))


@device.command("schema")
@_common
def device_schema(console: Console) -> None:
    """The JSON schema of a profile, for editors."""
    from mvp_edge_export.profile import profile_schema

    schema = profile_schema()
    console.result(schema, json.dumps(schema, indent=1, ensure_ascii=False))


def _budgets(profile: Any) -> str:
    from mvp_edge_export.quantities import format_bytes, format_count

    budgets = profile.budgets
    parts = [
        f"flops {format_count(budgets.flops)}" if budgets.flops else "",
        f"params {format_count(budgets.params)}" if budgets.params else "",
        f"file {format_bytes(budgets.file)}" if budgets.file else "",
        f"memory {format_bytes(budgets.memory)}" if budgets.memory else "",
    ]
    return ", ".join(part for part in parts if part)


# --- demo, completion ----------------------------------------------------------------------------


@cli.command()
@click.option(
    "--out", type=_PATH, default=Path("demo"), show_default=True, help="Where everything goes."
)
@_common
def demo(console: Console, out: Path) -> None:
    """The main job on scikit-learn's handwritten digits: backbone, zoo, prune, export, bench, report."""
    console.say("loading …")
    from mvp_edge.demo import run_demo

    report_path = run_demo(out, console)
    console.result({"report": str(report_path)}, f"the report: {report_path}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
    mvp-edge completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "mvp-edge", "_MVP_EDGE_COMPLETE").source())
