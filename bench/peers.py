"""Make the environments of ours and the peers under .bench: python bench/peers.py [ours] [official] [diffusers]

Each side has a virtual environment of its own with what its package asks for, so that nothing is beside it that its
users would not have: what is installed changes what transformers imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv

from common import OURS, ROOT, home, log

TORCH = "torch==2.13.0"  # the same for every side
SIDES = {
    OURS: ["--editable", str(ROOT)],
    "official": ["ltx-core==1.0.0", "ltx-pipelines==1.0.0", "transformers==4.57.*"],
    "diffusers": ["diffusers==0.42.1", "transformers", "accelerate"],
}


def make(side: str) -> None:
    """Make the environment of `side`; what is there stays and is completed."""
    folder = home() / side
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    # torch first, on its own, so that a CPU build which is at hand is not replaced by a CUDA one.
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, *SIDES[side]], check=True)
    if side == "official":
        # Beside a CPU torch torchaudio's C extension does not load; without the file its Python part does.
        for path in folder.glob("lib/python*/site-packages/torchaudio/lib/_torchaudio*.so"):
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=f"of {', '.join(SIDES)}; default: all")
    names = parser.parse_args().sides or list(SIDES)
    if unknown := set(names) - set(SIDES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(SIDES)}")
    failed = []
    for name in names:
        log(f"{name}: installing {', '.join([TORCH, *SIDES[name]])}")
        try:
            make(name)
        except (subprocess.CalledProcessError, OSError) as error:
            log(f"{name}: cannot be installed: {error}")
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
