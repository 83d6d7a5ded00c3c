"""Where the ``fastresnet`` command and ``python -m fastresnet`` start."""

import signal


def main() -> None:
    """Run the command line; until it has been imported Ctrl-C ends the process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastresnet.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
