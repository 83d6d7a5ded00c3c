"""What the processes of :mod:`torture.child` are forked with: everything a command imports, loaded once."""

import importlib
from importlib.util import find_spec

MODULES = (
    *(
        "fastresnet.cli.main",
        "fastresnet.cli.train_progress",
        "fastresnet.cli.progress",
        "fastresnet.training",
    ),
    *("fastresnet.export", "fastresnet.report.page", "fastresnet.loaders.jpeg_tar"),
    *(f"fastresnet.loaders.{name}_backend" for name in ("numba", "resident", "torch")),
    *(f"fastresnet.loaders.sources.{name}" for name in ("arrays", "betons", "paths", "shapes", "download")),
    *(
        "torch._inductor",
        "torch.fx.experimental",
        "torch.utils.data",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
    ),
    "torture.child",
)
SWEEP = ("fastresnet.cli.sweep_progress", "fastresnet.sweep", "optuna.storages", "sqlalchemy.dialects.sqlite")

for name in (*MODULES, *(SWEEP if find_spec("optuna") else ())):
    importlib.import_module(name)
