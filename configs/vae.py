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
        accumulate=1,  # parts that a step takes its batch in, for less memory
        trainable=r"vae/",
        model=dict(vae=dict()),  # what is left out has the released size
        dtype="bfloat16",  # of convolutions and products; weights are float32
        remat="",  # what is recomputed in the backward pass, for less memory: docs/training.md
        l1=1.0,  # weight; that of LPIPS is 1
        kl=1e-6,  # weight of the latents' divergence from the unit Gaussian
        # `shift`: of images less so many pixels a side, cut anywhere, as strides miss some grids.
        lpips=dict(net="vgg", pool="avg", dtype="bfloat16", shift=8),
        ema=0.999,  # decay of the weights' moving average, which is kept; 0: there is none
        lr=1e-4,  # learning rate
        schedule="constant",  # or "cosine", over all steps
        final_lr=1.0,  # where a cosine ends, as a share of `lr` (and of `muon`)
        warmup=500,  # steps
        muon=0.0,  # learning rate of kernels, by Muon, with `lr` for the rest; 0: AdamW for all
        weight_decay=0.01,
        b2=0.999,  # how much AdamW keeps of its squares from a step to the next
        clip=1.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),  # devices along both; -1: all that are left
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=256,  # pixels
            scale=(0.5, 1.0),  # crops come from images reduced by this much
            crops_per_image=1,  # side by side in a batch, of an image that is read once for all
            threads=8,  # that read images in each process, or in each worker
            workers=0,  # processes that read them; 0: the training's own
            cache_gib=0.0,  # memory for images as they are read, so that none is read twice
            captions="",  # this stage reads none
        ),
        log_every=50,
        checkpoint_every=5_000,
        keep_last=2,  # checkpoints; and the best one by `best`, a metric of the validation images
        best="lpips",  # lower is better; "-psnr" where higher is; "" keeps the last ones only
        validation_batches=4,  # that are measured at each checkpoint
        tensorboard=False,  # whether metrics and panels are written for it too
        panel_images=8,  # of validation, drawn at each checkpoint; 0: none
    )
    if size == "tiny":
        c.steps = 400
        c.batch_size = 16
        c.model.vae = dict(
            widths=(40, 72),
            encoder_widths=(24, 48),
            layers=0,
            latent_channels=48,
            window=None,  # no attention
            patch=4,  # the first and last convolution work at a quarter of the resolution
            transform=True,  # there is a picture from the first step
            norm_groups=0,  # no norms: see layers.GroupNorm
        )
        c.dtype = "float32"
        c.lpips = dict(net="alex", pool="max", shift=8)
        c.l1 = 2.0
        c.ema = 0.99
        c.lr, c.schedule, c.final_lr, c.warmup = 1.5e-3, "cosine", 0.05, 50
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 128, 4, 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every = 10, 250
    elif size != "full":
        raise ValueError(f"configs/vae.py:{size}: expected full or tiny")
    return c
