"""Stage 1: codec, hyperprior and one-step generator together, on pixels and rate.

    python launch/train.py --config=configs/stage1.py:tiny --workdir=runs/stage1 \\
        --config.init.vae=runs/vae

Objective: L1 + LPIPS + λ · bpp, λ ramped up. `:full` has the paper's sizes and optimiser
(400,000 steps of 32 images; λ = 12.2, 7.4, 4.6, 2.9, 1.8, 1.1, 0.6 are its points from 0.010 to
0.111 bpp on Kodak).
`:tiny` is the embedded preset: from scratch on two CPU cores, with AlexNet in LPIPS for VGG.
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="stage1",
        seed=0,
        steps=400_000,
        batch_size=32,  # images a step, over all devices
        # All of the codec, the generator's LoRA, its first convolution and the reduction.
        trainable=r"codec/|generator/(unet/conv_in|vae_reduction)/|generator/.*lora_",
        model=dict(vae=dict(), codec=dict(), generator=dict(unet=dict(rank=64, alpha=8.0))),
        init=dict(vae="", codec="", generator=""),  # model directories to start from; "" is random
        l1=1.0,
        latent=0.0,  # weight of the mean squared distance between x0 and the VAE's latent
        y_gain=1.0,  # how much larger than its random kernels make it y begins
        whiteness=0.0,  # weight of the term that keeps all tokens in use
        rate=dict(weight=1.8, ramp=4_000),  # λ, and the steps until it is reached
        lpips=dict(net="vgg", pool="avg"),
        ema=0.9999,
        lr=5e-5,
        schedule="constant",
        final_lr=1.0,
        warmup=500,  # steps
        weight_decay=0.01,
        b2=0.999,
        clip=5.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=512,  # pixels
            scale=(0.5, 1.0),  # crops come from images reduced by this much
            crops_per_image=1,
            threads=8,
            workers=0,
            cache_gib=0.0,
        ),
        log_every=50,
        checkpoint_every=5_000,
        panel_images=4,
    )
    if size == "tiny":
        c.steps = 1_700
        c.batch_size = 4
        # From scratch, so everything but the encoder of the VAE; there is no LoRA.
        c.trainable = r"codec/|generator/|vae/(decoder|post_quant_conv)/"
        # One group a norm, with the statistics of one position: nothing but the tokens' attention
        # sees farther than a kernel, so a large image is coded as its crops were in training.
        local = dict(norm_groups=1, norm_local=True)
        c.model.vae = local | dict(
            widths=(16, 32, 48), layers=1, latent_channels=16, window=None, patch=2
        )
        c.model.latent_scale = 0.7  # brings its latents to about unit variance
        c.model.codec = local | dict(
            channels=48,
            internal=80,
            semantic=96,
            features=48,
            pixel_features=48,
            fused_features=48,
            analysis_unet=dict(
                widths=(64, 80, 96),
                layers=1,
                attention=(False, False, False),
                mid_attention=True,
                head_dim=32,
            ),
            attention=False,
        )
        c.model.generator = dict(
            # At t = 499 the step to x0 amplifies the prediction's error 2 times, not 15.
            timestep=499,
            unet=local
            | dict(
                widths=(48, 80, 112, 112),
                layers=1,
                attention=(False, False, True, False),
                heads=4,
                out_channels=16,
            ),
        )
        # Begins at about 1 bpp, where y says much, and is then pressed down.
        c.y_gain, c.rate.weight, c.rate.ramp = 6.0, 1.0, 900
        # With no teacher to learn meaning from, the tokens collapse to two within a hundred steps.
        c.whiteness = 0.3
        # From scratch: what the VAE's decoder expects is told to the generator directly as well.
        c.latent = 0.1
        c.lpips = dict(net="alex", pool="max")
        c.l1 = 4.0  # before there is a picture, LPIPS alone is content with its textures
        c.ema = 0.998
        c.lr, c.schedule, c.final_lr, c.warmup, c.clip = 6e-4, "cosine", 0.03, 50, 1.0
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 192, 1, 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every, c.panel_images = 10, 250, 6
    elif size != "full":
        raise ValueError(f"configs/stage1.py:{size}: expected full or tiny")
    return c
