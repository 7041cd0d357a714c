"""Measures a bundle on another machine through ssh.

    bundle → checks before anything is copied → copy missing files → `mvp-edge bench … --json` → BenchResult

The host runs the same command of the same mvp-edge version that would measure here; its result is sent
back.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
"""Share of the reported progress that is done when the measurement begins."""


@dataclass(frozen=True)
class RemoteBench:
    """A bundle to measure on a host, and how."""

    bundle: Bundle
    """The bundle, from ``load_bundle``."""
    arguments: Sequence[str] = ()
    """Further arguments of `mvp-edge bench`, e.g. ``["--full"]``; paths in them are paths on the host."""
    runtimes: Sequence[str] | None = None
    """Runtimes to install and measure; None takes those that the bundle and the profile share."""
    profile: DeviceProfile | None = None
    """Profile whose budgets are judged; None takes the bundle's own."""

    def run_on(
        self,
        target: str,
        *,
        offline: bool = False,
        progress: Progress = lambda what, share: None,
    ) -> BenchResult:
        """Measure the bundle on a host.

        Args:
            target: host as `ssh` takes it, e.g. ``pi@raspberrypi``.
            offline: whether the host reaches no package index, so that packages are copied to it.
            progress: called with what is being done and the share of the work that is done, 0..1.

        Raises:
            MvpEdgeError: the bundle cannot be measured there. Every process that was started on
                the host is ended.
        """
        candidates = self._candidates()
        shown = 0.0

        def setting_up(what: str, share: float) -> None:
            nonlocal shown
            shown = max(shown, share)  # each copy counts from 0 again; the bar must not go back
            progress(what, _SETTING_UP * shown)

        def measuring(line: str) -> None:
            if match := re.fullmatch(r"\s*(\d+) %  (.+)", line):
                share = _SETTING_UP + (1 - _SETTING_UP) * int(match[1]) / 100
                progress(f"{target}: {match[2]}", share)

        with connect(target, setting_up) as host, TemporaryDirectory() as scratch:
            host.require()
            facts = look_at(host)
            every = self.runtimes is not None
            wanted = usable(host, facts, candidates, self._memory, all_of_them=every)
            folder = host.send(self._files(Path(scratch)))
            avoid = avoided(facts, self._device.runtime.denylist)
            host.install(wanted, avoid=avoid, offline=offline)
            # Exit code 3, a missed budget, comes with a result too; the caller judges it.
            printed = host.mvp_edge(self._words(folder, wanted), accept=(0, 3), hear=measuring)
        progress("done", 1.0)
        try:
            result = json.loads(printed)
        except json.JSONDecodeError as error:
            raise BadInput(f"{target}: bench printed no valid JSON there ({error.msg})") from error
        return parse(BenchResult, result, f"bench on {target}", Path("stdout"))

    @property
    def _device(self) -> DeviceProfile:
        return self.profile or self.bundle.manifest.profile

    def _candidates(self) -> Sequence[str]:
        """The requested runtimes, or else those of the profile that the bundle has files for."""
        path, have = self.bundle.path, self.bundle.manifest.models
        found = [
            name for name, formats in FORMATS.items() if not {*formats.values()}.isdisjoint(have)
        ]
        for name in self.runtimes or ():
            if name not in found:
                raise BadInput(f"{path}: it has no files for {name} (only for {', '.join(found)})")
        backends = [str(name) for name in self._device.runtime.backends]
        if chosen := self.runtimes or [name for name in found if name in backends]:
            return chosen
        raise BadInput(
            f"{path}: it has files for {', '.join(found)}, but {self._device.id} runs "
            f"{', '.join(backends) or 'none of the runtimes'}; --runtime decides"
        )

    @property
    def _memory(self) -> int:
        """Bytes that the networks need at least: for alternating rounds all are loaded together."""
        manifest = self.bundle.manifest
        if not manifest.baseline:
            return manifest.cost.memory_bytes
        return manifest.cost.memory_bytes + manifest.cost_baseline.memory_bytes

    def _files(self, scratch: Path) -> dict[str, Path]:
        """Path on the host → file here."""
        names = [MANIFEST, *self.bundle.manifest.files]
        files = {f"bundle/{name}": self.bundle.path / name for name in names}
        if self.profile is not None:  # written anew, because what it extends is not copied
            files["profile.yaml"] = scratch / "profile.yaml"
            write_text(files["profile.yaml"], self.profile.text())
        return files

    def _words(self, folder: str, runtimes: Sequence[str]) -> list[str]:
        """The arguments of mvp-edge on the host, whose files lie in ``folder``."""
        words = [word for runtime in runtimes for word in ("--runtime", runtime)]
        if self.profile is not None:
            words += ["--device", f"{folder}/profile.yaml"]
        return ["bench", f"{folder}/bundle", *words, *self.arguments, "--json"]


def usable(
    host: Host, facts: Facts, runtimes: Sequence[str], memory: int, *, all_of_them: bool
) -> list[str]:
    """The runtimes that can be installed and run on a host.

    Args:
        host: the connected host.
        facts: the host's facts, from ``look_at``.
        runtimes: names of the wanted runtimes.
        memory: bytes that the networks need at least.
        all_of_them: whether every runtime must be usable; otherwise one is enough.

    Raises:
        BadInput: no runtime is usable, or one is not that must be; the message says what to do.
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
