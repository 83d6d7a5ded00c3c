"""Data sets known by their digest, whatever file they came in."""

# CIFAR-10-J75: every image of CIFAR-10 as a JPEG at quality 75 with 4:2:0 chroma, as `fastresnet data jpeg`
# makes it.
KNOWN_NAMES = {"328a49f4ddc16d15560e49fa50ada676cfd7aefc6ce58f01152754f053c02c2a": "CIFAR-10-J75"}
