"""The regression gate: how long the product's parts take, as ratios to a calibration loop timed beside them.

    make bench-save     # a baseline of this machine and commit
    make bench-check    # later: fails where something has become slower, and names it

Each part is timed by pytest-benchmark; before every round the calibration loop runs, and what is kept is the median of
the rounds' own ratios. A machine that is busy, or of another speed, slows both.
"""
