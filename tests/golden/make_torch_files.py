"""Writes torch/*.pt, small files of the kinds that PyTorch writes or wrote.

pip install torch
python tests/golden/make_torch_files.py
"""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from reference import draw  # noqa: E402


def main():
    whole = torch.from_numpy(draw("whole", (3, 4)))
    state = torch.nn.ParameterDict({"parameter": whole}).state_dict()  # an OrderedDict
    state |= {
        "turned": whole.T,  # the same storage, other strides
        "part": whole[1:, 2],
        "bfloat16": whole.bfloat16(),
        "half": whole.half(),
        "double": whole.double(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }
    folder = HERE / "torch"
    torch.save(state, folder / "zip.pt")
    nested = {"epoch": 3, "state_dict": state}
    torch.save(nested, folder / "plain.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
