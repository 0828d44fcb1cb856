"""The KL autoencoder, from scratch: the first link of a chain without third-party image models.

    python launch/train.py --config=configs/vae.py:tiny --workdir=runs/vae

Objective: L1 + LPIPS + a little KL. `:full` has Stable Diffusion's sizes; `:tiny` has the
embedded preset's and takes minutes on two CPU cores, where AlexNet stands in for VGG in LPIPS
(19 times faster there).
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="vae",
        seed=0,
        steps=200_000,
        batch_size=32,  # images a step, over all devices
        trainable=r"vae/",
        model=dict(vae=dict()),  # what is left out has the released size
        l1=1.0,
        kl=1e-6,
        lpips=dict(net="vgg", pool="avg"),
        ema=0.999,
        lr=1e-4,
        schedule="constant",
        final_lr=1.0,
        warmup=500,  # steps
        weight_decay=0.01,
        b2=0.999,
        clip=1.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=256,  # pixels
            scale=(0.5, 1.0),  # crops come from images reduced by this much
            crops_per_image=1,
            threads=8,
            workers=0,
            cache_gib=0.0,
        ),
        log_every=50,
        checkpoint_every=5_000,
        panel_images=8,
    )
    if size == "tiny":
        c.steps = 250
        c.batch_size = 16
        c.model.vae = dict(
            widths=(16, 32, 48),
            layers=1,
            latent_channels=16,
            window=None,  # no attention
            patch=2,  # the first and last convolution work at half the resolution
            norm_groups=1,
            norm_local=True,  # statistics of one position: the network sees as far as its kernels
        )
        c.lpips = dict(net="alex", pool="max")
        c.ema = 0.99
        c.lr, c.schedule, c.final_lr, c.warmup = 2e-3, "cosine", 0.05, 50
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 128, 4, 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every = 10, 250
    elif size != "full":
        raise ValueError(f"configs/vae.py:{size}: expected full or tiny")
    return c
