"""mvp-edge: one pre-trained vision model becomes many small ones, by the votes of earlier prunings.

    import mvp_edge

    run = mvp_edge.prune("rpi4", "my_images/", "zoo/")      # SubNetwork: run.subnetwork
    bundle = mvp_edge.export(run, baseline=True)
    print(mvp_edge.bench(bundle).table())
    mvp_edge.report([run.path])

The names are loaded when they are first used: importing this package imports neither torch nor timm.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvp_edge.backbone import load_backbone
    from mvp_edge.deliver import export
    from mvp_edge.network import load_network
    from mvp_edge.report import report
    from mvp_edge.run import Run, prune
    from mvp_edge.subnet import SubNetwork
    from mvp_edge.task import Task
    from mvp_edge.zoo import Zoo
    from mvp_edge_export.bench import bench
    from mvp_edge_export.bundle import Bundle
    from mvp_edge_export.profile import DeviceProfile, load_profile

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "mvp_edge_export.bundle",
    "DeviceProfile": "mvp_edge_export.profile",
    "Run": "mvp_edge.run",
    "SubNetwork": "mvp_edge.subnet",
    "Task": "mvp_edge.task",
    "Zoo": "mvp_edge.zoo",
    "bench": "mvp_edge_export.bench",
    "export": "mvp_edge.deliver",
    "load_backbone": "mvp_edge.backbone",
    "load_network": "mvp_edge.network",
    "load_profile": "mvp_edge_export.profile",
    "prune": "mvp_edge.run",
    "report": "mvp_edge.report",
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


class _Package(ModuleType):
    """`mvp_edge.prune` and `mvp_edge.report` are the functions, not the submodules of these names.

    Importing a submodule sets it as an attribute of its package, which would hide the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


sys.modules[__name__].__class__ = _Package
