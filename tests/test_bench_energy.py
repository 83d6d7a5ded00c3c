"""The energy of a board's runs: the difference of a GPU's counter."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from fastresnet.bench.energy import EnergyMeter


def test_energy_is_the_difference_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for NVML that has the card use 250 J between two readings."""
    readings = iter([1_000_000, 1_250_000, 1_500_000])
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = RuntimeError  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(readings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    card = types.SimpleNamespace(uuid="1-2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    meter = EnergyMeter(torch.device("cuda", 0))
    before, after = meter.read(), meter.read()
    assert meter.obstacle is None and before is not None and after is not None and after - before == 250
    monkeypatch.setitem(sys.modules, "pynvml", None)
    without = EnergyMeter(torch.device("cuda", 0))
    assert without.obstacle == "nvidia-ml-py is not installed" and without.read() is None
    assert EnergyMeter(torch.device("cpu")).read() is None


def test_a_driver_that_fails_amid_a_board_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Exception):
        pass

    def fails(handle: str) -> int:
        raise Lost

    nvml = types.SimpleNamespace(NVMLError=Lost, nvmlDeviceGetTotalEnergyConsumption=fails)
    meter = EnergyMeter(torch.device("cpu"))
    meter.obstacle, meter._nvml, meter._handle = None, nvml, "card"
    assert meter.read() is None
