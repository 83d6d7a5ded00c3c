"""The page about a sweep: its cells beside what was printed."""
