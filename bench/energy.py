"""The energy a GPU has used, where it reports that."""

from __future__ import annotations

import contextlib

import torch


class EnergyMeter:
    """Reads the GPU's own energy counter (NVML), in joules since the driver was loaded.

    Attributes:
        obstacle: why there is no reading here; None where there is.
    """

    def __init__(self, device: torch.device) -> None:
        self.obstacle: str | None = None
        if device.type != "cuda":
            self.obstacle = "only a GPU reports it"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # torch may count only some of the GPUs that NVML counts
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
            self._joules()
        except ImportError:
            self.obstacle = "nvidia-ml-py is not installed"
        except Exception as error:  # of NVML, whose class is only known once it is imported
            self.obstacle = f"NVML: {error}"

    def read(self) -> float | None:
        """Return the joules so far, None where there is no reading."""
        if self.obstacle is not None:
            return None
        with contextlib.suppress(self._nvml.NVMLError):  # a driver's passing trouble costs no run
            return self._joules()
        return None

    def _joules(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
