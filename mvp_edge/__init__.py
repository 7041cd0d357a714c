"""mvp-edge: one pre-trained vision model becomes many small ones, by the votes of earlier prunings.

    import mvp_edge

    run = mvp_edge.prune("rpi4", "my_images/", "zoo/")      # SubNetwork: run.subnetwork
    bundle = mvp_edge.export(run, baseline=True)
    print(mvp_edge.bench(bundle).table())
    mvp_edge.report([run.path])

The names are loaded when they are first used: importing this package imports neither torch nor timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvp_edge.reporting import report
    from mvp_edge.runs.deliver import export
    from mvp_edge.runs.prune import prune
    from mvp_edge.runs.run import Run
    from mvp_edge.subnetwork.backbone import load_backbone
    from mvp_edge.subnetwork.network import load_network
    from mvp_edge.subnetwork.subnet import SubNetwork
    from mvp_edge.tasks.task import Task
    from mvp_edge.zoo.entries import Zoo
    from mvp_edge_export.bundle import Bundle
    from mvp_edge_export.measuring.bench import bench
    from mvp_edge_export.profile import DeviceProfile, load_profile

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "mvp_edge_export.bundle",
    "DeviceProfile": "mvp_edge_export.profile",
    "Run": "mvp_edge.runs.run",
    "SubNetwork": "mvp_edge.subnetwork.subnet",
    "Task": "mvp_edge.tasks.task",
    "Zoo": "mvp_edge.zoo.entries",
    "bench": "mvp_edge_export.measuring.bench",
    "export": "mvp_edge.runs.deliver",
    "load_backbone": "mvp_edge.subnetwork.backbone",
    "load_network": "mvp_edge.subnetwork.network",
    "load_profile": "mvp_edge_export.profile",
    "prune": "mvp_edge.runs.prune",
    "report": "mvp_edge.reporting",
}
"""Public name → the module that defines it."""

__all__ = [
    "Bundle",
    "DeviceProfile",
    "Run",
    "SubNetwork",
    "Task",
    "Zoo",
    "bench",
    "export",
    "load_backbone",
    "load_network",
    "load_profile",
    "prune",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
