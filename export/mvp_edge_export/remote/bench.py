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
from mvp_edge_export.remote.host import Host, Progress, connect
from mvp_edge_export.running.doctor import Facts, avoided, look_at, obstacles
from mvp_edge_export.running.sessions import FORMATS
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
    candidates = _runtimes(bundle, device, runtimes)
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
        host.require()
        facts = look_at(host)
        wanted = usable(host, facts, candidates, _memory(bundle), all_of_them=runtimes is not None)
        names = [MANIFEST, *bundle.manifest.files]
        files = {f"bundle/{name}": bundle.path / name for name in names}
        if profile is not None:  # with all that it extends
            files["profile.yaml"] = Path(scratch) / "profile.yaml"
            write_text(files["profile.yaml"], profile.text())
        folder = host.send(files)
        host.install(wanted, avoid=avoided(facts, device.runtime.denylist), offline=offline)
        words = [word for runtime in wanted for word in ("--runtime", runtime)]
        if profile is not None:
            words += ["--device", f"{folder}/profile.yaml"]
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


def usable(
    host: Host, facts: Facts, runtimes: Sequence[str], memory: int, *, all_of_them: bool
) -> list[str]:
    """Those of the runtimes that can be installed and run on a host.

    Args:
        host: that is connected.
        facts: what it is.
        runtimes: that are wanted.
        memory: bytes that the networks take at least.
        all_of_them: whether it is not enough that some can.

    Raises:
        BadInput: none can, or not all that must; why, and what to do.
    """
    found, left_out = [], []
    for name in runtimes:
        for one in obstacles(facts, [name], memory):
            remedy = f"; {one.do}" if one.do else ""
            left_out.append(f"{host.target}: {one.subject}: {one.text}{remedy}")
            break
        else:
            found.append(name)
    if left_out and (all_of_them or not found):
        raise BadInput(left_out[0])
    for line in left_out:
        host.tell(f"left out, {line.removeprefix(f'{host.target}: ')}")
    return found


def _runtimes(bundle: Bundle, profile: DeviceProfile, asked: Sequence[str] | None) -> Sequence[str]:
    """The runtimes that are asked for, else those of the profile; the bundle has files for them."""
    have = bundle.manifest.models
    found = [name for name, formats in FORMATS.items() if not {*formats.values()}.isdisjoint(have)]
    for name in asked or ():
        if name not in found:
            raise BadInput(
                f"{bundle.path}: it has no files for {name} (but for {', '.join(found)})"
            )
    backends = [str(name) for name in profile.runtime.backends]
    if chosen := asked or [name for name in found if name in backends]:
        return chosen
    raise BadInput(
        f"{bundle.path}: it has files for {', '.join(found)}, but {profile.id} runs "
        f"{', '.join(backends) or 'none of the runtimes'}; --runtime decides"
    )


def _memory(bundle: Bundle) -> int:
    """Bytes that the networks take at least, which are in memory together to be measured in turns."""
    manifest = bundle.manifest
    if not manifest.baseline:
        return manifest.cost.memory_bytes
    return manifest.cost.memory_bytes + manifest.cost_baseline.memory_bytes
