"""Make the peers' environments under .bench: python bench/peers.py [official] [diffusers]

Each peer has a virtual environment of its own, so that nothing of it is beside ours or another's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv

from common import home, log

TORCH = "torch==2.13.0"  # the same for every side
PEERS = {
    "official": ["ltx-core==1.0.0", "ltx-pipelines==1.0.0", "transformers==4.57.*"],
    "diffusers": ["diffusers==0.42.1", "transformers", "accelerate"],
}


def make(peer: str) -> None:
    """Make the environment of `peer`; what is there stays and is completed."""
    folder = home() / peer
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    # torch first, on its own, so that a CPU build which is at hand is not replaced by a CUDA one.
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, *PEERS[peer]], check=True)
    if peer == "official":
        # Beside a CPU torch torchaudio's C extension does not load; without the file its Python part does.
        for path in folder.glob("lib/python*/site-packages/torchaudio/lib/_torchaudio*.so"):
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; default: all")
    names = parser.parse_args().peers or list(PEERS)
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown peer: {', '.join(sorted(unknown))}; choose from {', '.join(PEERS)}")
    failed = []
    for name in names:
        log(f"{name}: installing {', '.join([TORCH, *PEERS[name]])}")
        try:
            make(name)
        except (subprocess.CalledProcessError, OSError) as error:
            log(f"{name}: cannot be installed: {error}")
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
