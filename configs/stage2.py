"""Stage 2: the generator of a stage-1 codec learns to make natural images (DMD2).

    python launch/train.py --config=configs/stage2.py:full --workdir=runs/stage2 \\
        --config.init.model=runs/stage1 --config.init.teacher=models/sd15 \\
        --config.init.text=models/clip --config.data.captions=models/clip

where `onedc convert-part` makes the last two from Stable Diffusion 1.5. From scratch instead:

    python launch/train.py --config=configs/stage2.py:tiny --workdir=runs/stage2 \\
        --config.init.model=runs/stage1 --config.init.teacher=runs/teacher

Objective: distribution matching + 0.001 · classifier + 0.625 · (L1 + LPIPS). What trains: the
generator's LoRA, first convolution and reduction, at every tenth step; a fake score and a
classifier, at every step. The codec does not: streams stay as long as they were. `:full` is the
paper's recipe, 1,000,000 steps of 32 images, each with a caption where the data have one. `:tiny`
learns from a diffusion model of one's own, without captions, and trains all of the generator.
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="stage2",
        seed=0,
        steps=1_000_000,
        batch_size=32,  # images a step, over all devices
        accumulate=1,  # parts that a step takes its batch in, for less memory
        # Of the generator alone: its LoRA, its first convolution and the reduction.
        trainable=r"generator/(unet/conv_in|vae_reduction)/|generator/.*lora_",
        # Model folders to start from: the codec, the diffusion model, its text encoder where it has
        # none inside, and LPIPS. "" is random weights in the sizes below; of LPIPS, the package's.
        init=dict(model="runs/stage1", teacher="models/sd15", text="models/clip", lpips=""),
        model=dict(vae=dict(), codec=dict(), generator=dict(unet=dict(rank=64, alpha=8.0))),
        teacher=dict(unet=dict(), text=dict()),
        realism=dict(),  # of the classifier; what is left out is as in the paper
        dtype="bfloat16",  # of convolutions and products; weights that train are float32
        sampled=True,  # whether the VAE's latent is a sample of its posterior, or its mean
        remat="",  # what is recomputed in the backward pass, for less memory: docs/training.md
        frozen_dtype="bfloat16",  # of the weights of real score and text encoder
        generator_every=10,  # steps
        guidance_scale=1.75,  # of the real score's classifier-free guidance
        matching_steps=(20, 640),  # timesteps at which the scores are compared, ends included
        steps_of_noise=(0, 999),  # timesteps for fake score and classifier, ends included
        matching=1.0,  # weight of distribution matching
        adversarial=1e-3,  # weight of the classifier in the generator's loss
        pixel=0.625,  # weight of L1 + LPIPS
        realism_weight=1e-2,  # of the classifier's own loss beside the fake score's
        # `shift`: of images less so many pixels a side, cut anywhere, as strides miss some grids.
        lpips=dict(net="vgg", pool="avg", dtype="bfloat16", shift=0),
        ema=0.0,  # decay of the generator's moving average; 0: there is none
        lr=1e-6,  # of both players, who count their own updates
        schedule="constant",  # or "cosine", over all updates
        final_lr=1.0,  # where a cosine ends, as a share of `lr` (and of `muon`)
        warmup=500,  # updates
        muon=0.0,  # learning rate of kernels, by Muon, with `lr` for the rest; 0: AdamW for all
        weight_decay=0.01,
        b2=0.999,  # how much AdamW keeps of its squares from a step to the next
        clip=5.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),  # devices along both; -1: all that are left
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=512,  # pixels; the classifier needs 64 · 2^(levels of the diffusion model - 1)
            scale=(0.5, 1.0),  # crops come from images reduced by this much
            crops_per_image=1,  # side by side in a batch, of an image that is read once for all
            threads=8,  # that read images in each process, or in each worker
            workers=0,  # processes that read them; 0: the training's own
            cache_gib=0.0,  # memory for images as they are read, so that none is read twice
            captions="",  # folder of the tokenizer that reads them (vocab.json, merges.txt)
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
        c.steps = 1_000
        c.batch_size = 1
        c.trainable = r"generator/"
        c.sampled = False  # as in stage 1
        c.init.teacher, c.init.text = "runs/teacher", ""
        c.realism = dict(width=64, norm_groups=8)
        c.dtype = c.frozen_dtype = "float32"
        c.generator_every = 5
        c.lpips = dict(net="alex", pool="max", shift=8)
        c.lr, c.schedule, c.final_lr, c.warmup, c.clip = 5e-5, "cosine", 0.1, 20, 1.0
        c.ema = 0.99
        c.data.threads, c.data.cache_gib = 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every = 10, 250
    elif size != "full":
        raise ValueError(f"configs/stage2.py:{size}: expected full or tiny")
    return c
