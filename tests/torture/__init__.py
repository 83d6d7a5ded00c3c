"""Faults put upon real runs: ``make torture``. Each must end in the bits of a run that had none, or in one line."""
