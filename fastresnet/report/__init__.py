"""Pages about runs and sweeps: one self-contained HTML file, and its figures as PNG."""
