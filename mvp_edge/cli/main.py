"""The command line. Heavy imports live in the command bodies: `--help` answers at once.

Every command: exit code 0 done, 2 bad input, 3 budget, 4 export gate, 130 interrupted; `--json` prints one
document on stdout, everything else goes to stderr.
"""

import json
import signal
import sys
from io import BufferedReader, FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mvp_edge import __version__
from mvp_edge.cli.bench import bench
from mvp_edge.cli.console import Console
from mvp_edge.cli.device import device
from mvp_edge.cli.doctor import doctor
from mvp_edge.cli.options import PATH, Group, common, declared, example, numbers, words
from mvp_edge.cli.zoo import zoo
from mvp_edge.runs.request import OPTIONS, Request
from mvp_edge_export.errors import BadInput, MvpEdgeError


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "mvp-edge prune --device rpi4.yaml --task my_images/ --zoo zoo/",
        "mvp-edge export runs/001 --baseline",
        "mvp-edge bench runs/001/bundle",
        "mvp-edge report runs/001",
    ),
)
@click.version_option(__version__, prog_name="mvp-edge")
def cli() -> None:
    """One pre-trained vision model, many small ones."""


INTERRUPTED = "interrupted: finished work is kept; the same command goes on from there"


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    presses = _noted_presses()
    try:
        sys.exit(cli(prog_name="mvp-edge", standalone_mode=False) or 0)
    except (KeyboardInterrupt, click.Abort):
        _end(130, INTERRUPTED)
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show()
            sys.exit(2)
        path = error.ctx.command_path if error.ctx else "mvp-edge"
        _end(2, f"{path}: {' '.join(error.format_message().split())} ({path} --help)")
    except click.ClickException as error:
        _end(2, f"mvp-edge: {error.format_message()}")
    except MvpEdgeError as error:
        if presses:  # a library swallowed the interrupt and then failed because of it (observed with safetensors)
            _end(130, INTERRUPTED)
        told = error.command_line if isinstance(error, BadInput) else str(error)
        _end(error.exit_code, f"mvp-edge: {told}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mvp_edge"):
            raise
        package = error.name.partition(".")[0]
        _end(2, f"mvp-edge: this command needs {package}: pip install 'mvp-edge[server]'")
    except OSError as error:
        if error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        _end(2, f"mvp-edge: {place}{error.strerror}")


def _noted_presses() -> list[int]:
    """A list that records each Ctrl-C; KeyboardInterrupt is raised as usual."""
    presses: list[int] = []

    def press(number: int, _frame: FrameType | None) -> None:
        presses.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, press)
    return presses


def _end(code: int, line: str) -> None:
    click.echo(line, err=True)
    sys.exit(code)


@cli.command(
    epilog=example(
        "mvp-edge prune --device rpi4.yaml --task my_images/ --zoo zoo/",
        "mvp-edge prune --device rpi4.yaml --task my_images/ --zoo zoo/ --front 5 --pick fastest",
    )
)
@declared(*OPTIONS)
@click.option(
    "--out",
    type=PATH,
    metavar="RUN",
    help="Folder of the run [the next of runs/001, runs/002, …].",
)
@click.option("--force", is_flag=True, help="Replace another run at --out.")
@common
def prune(console: Console, out: Path | None, force: bool, **arguments: Any) -> None:
    """Make a small network for a device and a task."""
    if arguments["task"] is None:
        _take_demo(arguments, console)
    console.say("loading …")
    from mvp_edge.cli.front import front_table
    from mvp_edge.runs.choice import FILE, Front
    from mvp_edge.runs.prune import prune_for

    request = Request(**arguments)
    run = prune_for(request, out, force, console.progress, console.say)
    facts = {"run": str(run.path), **run.verified.model_dump(mode="json", by_alias=True)}
    text: Any = f"{run!r}"
    if run.verified.passed:
        text += f"\nnext: mvp-edge export {run.path} --baseline"
    if (run.path / FILE).exists():
        from rich.console import Group as Lines
        from rich.text import Text

        front = Front.load(run.path)
        facts["front"] = front.model_dump(mode="json", by_alias=True)
        text = Lines(front_table(front), Text(f"picked {front.picked}: {front.why}\n{text}"))
    console.result(facts, text)
    run.check()


def _take_demo(arguments: dict[str, Any], console: Console) -> None:
    """The demo's task and zoo, where it ran in this folder and no task is given.

    Raises:
        BadInput: there is no demo here.
    """
    from mvp_edge.demo.job import demo_defaults

    demo = demo_defaults()
    if demo is None:
        raise BadInput(
            "prune needs your images: --task FOLDER_OF_CLASS_FOLDERS, with --backbone NAME|FILE or --zoo Z; "
            "`make demo` makes a task and a zoo to try"
        )
    arguments["task"] = demo.task
    if arguments["zoo"] is None and arguments["backbone"] is None:
        arguments["zoo"] = demo.zoo
    if arguments["augment"] is None:
        arguments["augment"] = demo.augment
    zoo = arguments["zoo"] or "of none"
    console.say(f"no --task given: the demo's {demo.task}, with the zoo {zoo}")


@cli.command(epilog=example("mvp-edge export runs/001 --baseline"))
@click.argument("run", type=PATH)
@click.option(
    "--format", "formats", default="onnx,openvino", metavar="onnx,openvino",
    help="File formats to write [onnx,openvino].",
)  # fmt: skip
@click.option(
    "--precision", "precisions", metavar="fp32,int8,fp16",
    help="Number formats to write [those that the profile allows].",
)  # fmt: skip
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open [fixed to 1].")
@click.option(
    "--embed-preprocess",
    is_flag=True,
    help="Put the normalisation of pixels into the exported graph.",
)
@click.option(
    "--baseline", is_flag=True, help="Export the unpruned network as well, for comparison."
)
@click.option("--out", type=PATH, metavar="BUNDLE", help="Where the bundle goes [RUN/bundle].")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common
def export(
    console: Console, run: Path, formats: str, precisions: str | None, **options: Any
) -> None:
    """Write RUN's network as ONNX and OpenVINO, through the parity gate."""
    console.say("loading …")
    from mvp_edge.runs.deliver import export as deliver

    bundle = deliver(
        run, formats=words(formats) or (), precisions=numbers(precisions), progress=console.step,
        **options,
    )  # fmt: skip
    manifest = bundle.manifest
    lines = [
        f"{one.format} in {one.runtime} {one.test.version}: {100 * one.test.top1:.1f} % top-1 on "
        f"{one.test.images} test images{'' if one.kept else f'; kept out: {one.why}'}"
        for one in manifest.candidates
    ]
    lines.append(f"to ship: {manifest.choice}")
    facts = {"bundle": str(bundle.path), **manifest.model_dump(mode="json", by_alias=True)}
    console.result(facts, "\n".join([*lines, f"next: mvp-edge bench {bundle.path}"]))


cli.add_command(bench)


@cli.command(
    epilog=example(
        "mvp-edge predict runs/001/bundle photo.jpg holiday/",
        "rpicam-vid -t 0 --codec mjpeg -o - | mvp-edge predict runs/001/bundle - --jsonl",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option(
    "--runtime", type=click.Choice(["onnxruntime", "openvino"]),
    help="Runtime to use [the one chosen for the device, else the first installed].",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]),
    help="Number format to use [the one chosen for the device, else fp32].",
)  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the runtime [as chosen for the device, else 1].",
)
@click.option(
    "--top", type=click.IntRange(1), default=1, help="Number of labels to print per image [1]."
)
@click.option(
    "--jsonl", is_flag=True, help="Print one line of JSON per image, as soon as it is classified."
)
@common
def predict(
    console: Console, bundle: Path, images: tuple[Path, ...], jsonl: bool, **options: Any
) -> None:
    """Classify images with BUNDLE alone: files, folders, or - for standard input.

    Standard input holds one image, or JPEG frames one after the other (motion JPEG).
    """
    if jsonl and console.as_json:
        raise click.UsageError("--json and --jsonl: give one of them")

    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.running.predict import STREAM
    from mvp_edge_export.running.predict import predict as classify

    if STREAM in images and sys.stdin.isatty():
        raise BadInput("-: nothing is piped into standard input; pipe an image or JPEG frames")
    stdin = BufferedReader(FileIO(0, closefd=False))
    sources = [stdin if image == STREAM else image for image in images]
    found = []
    done = 0
    for prediction in classify(load_bundle(bundle), sources, **options):
        done += prediction.skipped is None
        if prediction.skipped is not None:
            console.warn(f"{prediction.name}: skipped: {prediction.skipped}")
        if jsonl:
            console.line(json.dumps(prediction.to_json(), ensure_ascii=False, allow_nan=False))
        elif console.as_json:
            found.append(prediction.to_json())
        elif prediction.skipped is None:
            labels = ", ".join(f"{label} {100 * p:.1f} %" for label, p in prediction.top)
            console.line(f"{prediction.name}: {labels}")
    console.result({"predictions": found}, None)
    if not done:
        raise BadInput("no image could be decoded")


@cli.command(epilog=example("mvp-edge report runs/001"))
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, metavar="FILE", help="Where the page goes [RUN/report.html].")
@common
def report(console: Console, runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained HTML page about a run, or comparing several."""
    from mvp_edge.reporting import report as write_report

    path = write_report(runs, out)
    console.result({"report": str(path)}, f"{path}")


cli.add_command(zoo)
cli.add_command(device)
cli.add_command(doctor)


@cli.command(epilog=example("mvp-edge demo"))
@click.option(
    "--out", type=PATH, default=Path("demo"), help="Folder for everything that is made [demo]."
)
@declared("seed")
@common
def demo(console: Console, out: Path, seed: int) -> None:
    """The main job on scikit-learn's handwritten digits: backbone, zoo, prune, export, bench, report."""
    console.say("loading …")
    from mvp_edge.demo.job import run_demo

    report_path = run_demo(out, console, seed)
    console.result({"report": str(report_path)}, f"the report: {report_path}")


@cli.command(epilog=example("mvp-edge completion bash >> ~/.bashrc"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "mvp-edge", "_MVP_EDGE_COMPLETE").source())
