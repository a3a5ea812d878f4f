"""Converts checkpoints and prints by how many bytes memory grew at most; a small conversion first pays for imports.

python -m tests.converting_in_little_memory SMALL SHARD_BYTES SRC:DST:DTYPE ...
"""

import sys
import tempfile
from pathlib import Path

from osprey_tp.conversion_folder import ConversionOptions, convert


def peak() -> int:
    """Most bytes that this process ever had in memory, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    small, shard, *jobs = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        convert(Path(small), Path(folder, "small"))
    before = peak()
    for source, out, dtype in (job.split(":") for job in jobs):
        convert(Path(source), Path(out), ConversionOptions(max_shard_size=int(shard), dtype=dtype or None))
    sys.stdout.write(f"{peak() - before}\n")
