"""Stage 1: codec, hyperprior and one-step generator together, on pixels and rate.

    python launch/train.py --config=configs/stage1.py:tiny --workdir=runs/stage1

Objective: L1 + LPIPS + λ · bpp + the semantic distillation, λ ramped up. `:full` is the paper's
recipe: 400,000 steps of 32 images, λ = 12.2, 7.4, 4.6, 2.9, 1.8, 1.1, 0.6 for its points from 0.010
to 0.111 bpp on Kodak. It wants what it starts from: --config.init.vae (Stable Diffusion 2.1's),
--config.init.unet (a one-step or another diffusion model's) and --config.distillation.tokenizer
(MaskGIT's), each the folder of converted weights or of a run of vae, teacher or tokenizer.
`:tiny` is the embedded preset, autoencoder and all from scratch on two CPU cores, with AlexNet in
LPIPS for VGG, and with the distillation only where a tokenizer is named. For a stage 2 after it,
the VAE has to be there before: docs/training.md.
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="stage1",
        seed=0,
        steps=400_000,
        batch_size=32,  # images a step, over all devices
        accumulate=1,  # parts that a step takes its batch in, for less memory
        # All of the codec, the generator's LoRA, its first convolution and the reduction.
        trainable=r"codec/|generator/(unet/conv_in|vae_reduction)/|generator/.*lora_",
        model=dict(vae=dict(), codec=dict(), generator=dict(unet=dict(rank=64, alpha=8.0))),
        dtype="bfloat16",  # of convolutions and products; weights are float32
        sampled=True,  # whether the VAE's latent is a sample of its posterior, or its mean
        remat="",  # what is recomputed in the backward pass, for less memory: docs/training.md
        # Model folders to start from; "" is random. With `reshaped` what is narrower there is
        # widened and what is missing random, without it they must fit. "unet" is a diffusion
        # model, which the generator begins as but for its first convolution.
        init=dict(vae="", codec="", generator="", unet="", reshaped=False),
        l1=1.0,
        l1_span=1.0,  # with several model.codec.rates, how many times it is that at the highest one
        perceptual=1.0,  # weight of LPIPS; at 0 it is not computed
        coarse=0.0,  # weight of the same distance between means of 16x16 pixels
        chroma=0.0,  # weight of L1 between colours alone, without their luminance
        motif=0.0,  # weight of the share of the error that all cells of 32x32 pixels have in common
        # Weight of DISTS between squares of `crop` pixels of so many of a step's images: its VGG is
        # slow on CPUs. `file` is its weights.pt, by default that of the package DISTS-pytorch.
        # `critic` is the weight of a discriminator of these squares and of VGG's features of them,
        # with layers of `width` channels. `dtype` is that of their convolutions.
        texture=dict(
            weight=0.0, crop=64, images=4, file="", critic=0.0, width=64, dtype="bfloat16"
        ),
        latent=0.0,  # weight of the mean squared distance between x0 and the VAE's latent
        y_gain=1.0,  # how much larger than its random kernels make it y begins
        whiteness=0.0,  # weight of the term that keeps all tokens in use
        # Chance of an image to be made from its tokens alone, without y. L1 and the like teach it;
        # LPIPS and DISTS take it for the original, and as metrics are lower by so much.
        alone=0.0,
        # λ, and the steps until it is reached. With several model.codec.rates (a quality knob) each
        # image has a rate of its own, and λ is `span` times as large at the lowest one.
        # What is counted is what y would cost with "noise" for its rounding, or its "rounding".
        rate=dict(weight=1.8, ramp=4_000, span=1.0, proxy="noise"),
        # weight · (cross-entropy + mse · squared error of the expected code), to the tokens of a
        # tokenizer's folder; "" is none. `head` is the student. Crops are multiples of 32 windows.
        distillation=dict(
            tokenizer="",
            weight=1e-3,
            mse=0.01,
            head=dict(width=768, pairs=3, heads=12, window=16),
        ),
        # `shift`: of images less so many pixels a side, cut anywhere, as strides miss some grids.
        lpips=dict(net="vgg", pool="avg", dtype="bfloat16", shift=0),
        ema=0.0,  # decay of the weights' moving average, which is kept; 0: there is none
        lr=5e-5,  # learning rate
        schedule="constant",  # or "cosine", over all steps
        final_lr=1.0,  # where a cosine ends, as a share of `lr` (and of `muon`)
        warmup=500,  # steps
        muon=0.0,  # learning rate of kernels, by Muon, with `lr` for the rest; 0: AdamW for all
        weight_decay=0.01,
        b2=0.999,  # how much AdamW keeps of its squares from a step to the next
        clip=5.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),  # devices along both; -1: all that are left
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            # A step's images are squares of `source_crop` pixels, all in one of these views: made
            # smaller, or a part of them; `batch` is the share of the batch size that there are.
            source_crop=1024,
            views=(
                dict(resize=512, chance=0.2),
                dict(crop=512, chance=0.5),
                dict(crop=1024, chance=0.3, batch=0.25),
            ),
            crop=512,  # pixels; of validation, and of training where there are no views
            scale=(1.0, 1.0),  # crops come from images reduced by this much
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
        # Images that each checkpoint codes to bytes and back, as `onedc eval` does: coded_bpp, …
        coded=dict(images="", limit=8, metrics=("psnr", "lpips_alex")),
        tensorboard=False,  # whether metrics and panels are written for it too
        panel_images=4,  # of validation, drawn at each checkpoint; 0: none
    )
    if size == "tiny":
        c.steps = 6_800
        c.batch_size = 8
        c.trainable = r".*"  # from scratch; there is no LoRA
        c.sampled = False  # a VAE that learns only here has no spread that means anything
        # No norms (see layers.GroupNorm), and nothing but attention at H/32 and H/64 sees farther
        # than a kernel: a large image is coded as its crops were in training.
        plain = dict(norm_groups=0)
        # Few and wide blocks: cores multiply these fastest, and gradients need no norms there.
        c.model.vae = plain | dict(
            widths=(40, 72),
            encoder_widths=(24, 48),
            layers=0,
            latent_channels=48,
            window=None,
            patch=4,
            transform=True,
        )
        c.model.latent_scale = 1.0
        c.model.codec = plain | dict(
            rates=5,
            guided=True,  # False: an ablation, no semantic tokens
            transform=True,
            channels=64,
            internal=144,
            semantic=64,
            features=64,
            pixel_features=96,
            fused_features=64,
            analysis_unet=dict(
                widths=(64, 64, 64),
                layers=0,
                attention=(False, False, False),
                mid_attention=True,
                head_dim=32,
            ),
            attention=False,
        )
        c.model.generator = dict(
            # At t = 499 the step to x0 amplifies the prediction's error 2 times, not 15.
            timestep=499,
            noise=True,  # or grass and cloth would be one motif, repeated every 16 pixels
            unet=plain
            | dict(
                widths=(64, 80, 64),
                layers=0,
                attention=(False, False, True),
                heads=4,
                out_channels=48,
            ),
        )
        # Begins as a cosine transform at about 1 bpp, and is then pressed down.
        c.y_gain, c.rate.weight, c.rate.ramp, c.rate.span = 3.3, 1.6, 400, 60.0
        c.alone = 0.15
        # With no teacher to learn meaning from, tokens collapse to two within a hundred steps.
        c.whiteness = 0.5
        # For crops of 128 pixels, which are 4×4 of the teacher's tokens; 8 is for 256 pixels.
        c.distillation.head = dict(width=128, pairs=1, heads=4, window=4)
        c.dtype = c.texture.dtype = "float32"
        c.lpips = dict(net="alex", pool="max", shift=8)
        # LPIPS alone is content with its own textures, dots of colour among them, nor does it mind
        # a shift of colour that an eye sees at once.
        c.l1, c.coarse, c.chroma, c.perceptual = 1.0, 10.0, 5.0, 2.5
        c.ema = 0.998
        # Once z is white its gradients all but vanish. With a longer memory than 0.99 the first one
        # that comes after makes steps many times too large, and z is far out before it is noticed.
        c.b2 = 0.99
        c.muon, c.lr, c.warmup, c.clip = 1.5e-3, 4e-4, 50, 1.0
        c.schedule, c.final_lr = "cosine", 0.02
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 128, 2, 1, 6.0
        # Enlarged ones are as smooth as photographs of many pixels are.
        c.data.scale, c.data.views, c.data.source_crop = (0.4, 1.25), (), 0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every, c.panel_images = 10, 250, 6
    elif size != "full":
        raise ValueError(f"configs/stage1.py:{size}: expected full or tiny")
    return c
