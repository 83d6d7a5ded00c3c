"""``python -m fastresnet``."""

from fastresnet.cli.main import main

main()
