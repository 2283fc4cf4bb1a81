"""What decides a run's numbers outside its formulas: seeds, and how the processor rounds."""

import zlib

import torch


def seed_of(*parts: str | int) -> int:
    """A seed for one use of chance, from what names it."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def settle(seed: int, threads: int) -> None:
    """Seed torch, set its threads (0: its own choice), and fix what would change the numbers silently."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # saturated logits give denormal gradients, which CPUs multiply slowly
    torch.backends.cudnn.allow_tf32 = False  # a log-ratio is a difference of numbers around 1e4
    torch.manual_seed(seed)
