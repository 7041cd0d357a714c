"""A bundle measured on another machine, as if one sat there.

    bundle → checks (nothing copied yet) → files by hash → `mvp-edge bench … --json` there → BenchResult

It is the same command, of the same mvp-edge, that measures here; only its result travels.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import MANIFEST
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.remote.host import Progress, connect
from mvp_edge_export.sessions import FORMATS
from mvp_edge_export.storage import write_text
from mvp_edge_export.verified import parse

_SETTING_UP = 0.1
"""The share of the work, as it is told, until the measuring begins."""


def bench_on(
    target: str,
    bundle: Bundle,
    arguments: Sequence[str] = (),
    *,
    runtimes: Sequence[str] | None = None,
    profile: DeviceProfile | None = None,
    offline: bool = False,
    progress: Progress = lambda what, share: None,
) -> BenchResult:
    """Measure a bundle on a host.

    Args:
        target: what `ssh` takes, e.g. ``pi@raspberrypi``.
        bundle: from ``load_bundle``.
        arguments: more of `mvp-edge bench`, e.g. ``["--full"]``; files in them must lie there.
        runtimes: to install and measure; None takes those that both the bundle and the profile have.
        profile: whose budgets to judge; the bundle's own if None.
        offline: the host reaches no package index.
        progress: told what is done and the share of the work that is.

    Raises:
        MvpEdgeError: it cannot be measured there; nothing that was started there runs on.
    """
    device = profile or bundle.manifest.profile
    wanted = list(runtimes or _runtimes(bundle, device))
    words = [word for runtime in wanted for word in ("--runtime", runtime)]

    sent = 0.0

    def setting_up(what: str, share: float) -> None:
        nonlocal sent
        sent = max(sent, share)  # the wheel comes after the bundle, and there may be more
        progress(what, _SETTING_UP * sent)

    def measuring(line: str) -> None:
        if match := re.fullmatch(r"\s*(\d+) %  (.+)", line):
            share = _SETTING_UP + (1 - _SETTING_UP) * int(match[1]) / 100
            progress(f"{target}: {match[2]}", share)

    with connect(target, setting_up) as host, TemporaryDirectory() as scratch:
        host.require(wanted, ram=_memory(bundle))
        names = [MANIFEST, *bundle.manifest.files]
        files = {f"bundle/{name}": bundle.path / name for name in names}
        if profile is not None:  # with all that it extends
            files["profile.yaml"] = Path(scratch) / "profile.yaml"
            write_text(files["profile.yaml"], profile.text())
        folder = host.send(files)
        if profile is not None:
            words += ["--device", f"{folder}/profile.yaml"]
        host.install(wanted, denied=device.runtime.denylist, offline=offline)
        # A missed budget (3) is a result too: whoever asked judges it.
        printed = host.mvp_edge(
            ["bench", f"{folder}/bundle", *words, *arguments, "--json"],
            accept=(0, 3),
            hear=measuring,
        )
    progress("done", 1.0)
    try:
        facts = json.loads(printed)
    except json.JSONDecodeError as error:
        raise BadInput(f"{target}: what bench printed there is not JSON ({error.msg})") from error
    return parse(BenchResult, facts, f"bench on {target}", Path("stdout"))


def _runtimes(bundle: Bundle, profile: DeviceProfile) -> list[str]:
    have = bundle.manifest.models
    found = [name for name, formats in FORMATS.items() if not {*formats.values()}.isdisjoint(have)]
    backends = [str(name) for name in profile.runtime.backends]
    if both := [name for name in found if name in backends]:
        return both
    raise BadInput(
        f"{bundle.path}: it has files for {', '.join(found)}, but {profile.id} runs "
        f"{', '.join(backends) or 'none of the runtimes'}; --runtime decides"
    )


def _memory(bundle: Bundle) -> int:
    """Bytes that the networks, which are measured in turns, take at least together."""
    manifest = bundle.manifest
    baseline = manifest.cost_baseline.memory_bytes if manifest.baseline else 0
    return manifest.cost.memory_bytes + baseline
