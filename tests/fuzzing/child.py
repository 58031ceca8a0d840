"""Opens what it is told to, line by line, under a limit of memory, and says what came of it.

A process of its own: a crash, a hang or a blow-up of memory is seen by the one who asks.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from dictlab import DictlabError, load
from dictlab.formats.loading import formats

ROOM = 1 << 30  # bytes of address space beyond what is in use when all is imported


def look(path: str, format: str | None) -> dict[str, Any]:
    """Load a dictionary and use it, and measure what that took."""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        dictionary = load(path, format=format)
        codes, x_hat = dictionary(torch.ones(3, dictionary.d_in))
        found: dict[str, Any] = {"outcome": "loaded", "said": f"{len(codes.values)} {x_hat.shape}"}
    except DictlabError as error:
        found = {"outcome": "refused", "said": str(error), "cause": _cause(error)}
    except BaseException:  # a panic of compiled code is no Exception
        found = {"outcome": "failed", "said": traceback.format_exc()}
    found["seconds"] = time.process_time() - start
    found["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    return found


def _cause(error: BaseException) -> str:
    """Whether memory ran out, which a refusal must not hide."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, MemoryError) or "allocate memory" in str(chain):
            return f"{type(chain).__name__}: {chain}"
        chain = chain.__cause__ or chain.__context__
    return ""


def main() -> None:
    """Answer until nobody asks any more."""
    torch.set_num_threads(1)
    formats()
    torch.ones(3, 3) @ torch.ones(3, 3)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, in_use + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(look(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
