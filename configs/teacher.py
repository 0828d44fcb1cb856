"""The latent diffusion model from scratch: the score of stage 2, and what stage 1 may begin as.

    python launch/train.py --config=configs/teacher.py:tiny --workdir=runs/teacher \\
        --config.init.vae=runs/vae

Then --config.init.teacher=runs/teacher in stage 2 and, at `:full`, --config.init.unet=runs/teacher
in stage 1, which has to be of the same VAE and leave it as it is: see docs/training.md for `:tiny`.

Objective: the mean squared error of the noise predicted at timesteps drawn from all 1000. `:full`
has the sizes of Stable Diffusion 1.5 and its batch; `:tiny` those of the embedded preset's
generator, but with norms: without, a diffusion model stops learning within thirty steps. With
--config.data.captions=FOLDER, that of a tokenizer, a text encoder trains along, on the captions of
the data (one from elsewhere: --config.init.text=FOLDER --config.trainable=unet/).
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="teacher",
        seed=0,
        steps=500_000,
        batch_size=2048,  # images a step, over all devices
        accumulate=1,  # parts that a step takes its batch in, for less memory
        trainable=r"unet/|text/",
        # The U-Net's and the text encoder's fields; what is left out has the released size.
        # Without captions the context is one zero vector of `context` numbers.
        model=dict(unet=dict(), text=dict(), context=768, latent_scale=0.18215),
        dtype="bfloat16",  # of convolutions and products; weights are float32
        remat="",  # what is recomputed in the backward pass, for less memory: docs/training.md
        caption_drop=0.1,  # share of captions that are taken for empty ones
        # Folders to start from: the VAE is needed; without the others they begin at random, and
        # with `reshaped` what is narrower there is widened.
        init=dict(vae="", unet="", text="", reshaped=False),
        ema=0.9999,  # decay of the weights' moving average, which is kept; 0: there is none
        lr=1e-4,  # learning rate
        schedule="constant",  # or "cosine", over all steps
        final_lr=1.0,  # where a cosine ends, as a share of `lr` (and of `muon`)
        warmup=10_000,  # steps
        muon=0.0,  # learning rate of kernels, by Muon, with `lr` for the rest; 0: AdamW for all
        weight_decay=0.01,
        b2=0.999,  # how much AdamW keeps of its squares from a step to the next
        clip=1.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),  # devices along both; -1: all that are left
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=512,  # pixels
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
        best="loss",
        validation_batches=4,  # that are measured at each checkpoint
        tensorboard=False,  # whether metrics and panels are written for it too
        panel_images=4,  # of validation, drawn at each checkpoint; 0: none
    )
    if size == "tiny":
        c.steps = 1_000
        c.batch_size = 16
        c.model.unet = dict(
            norm_groups=8,
            widths=(64, 80, 64),
            layers=0,
            attention=(False, False, True),
            heads=4,
            out_channels=48,
        )
        c.model.text = dict(width=64, layers=2, heads=4, hidden=256)
        c.model.context = 64
        c.model.latent_scale = 1.0
        c.dtype = "float32"
        c.ema = 0.998
        c.lr, c.schedule, c.final_lr, c.warmup = 1e-3, "cosine", 0.05, 50
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 192, 1, 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every, c.panel_images = 10, 250, 6
    elif size != "full":
        raise ValueError(f"configs/teacher.py:{size}: expected full or tiny")
    return c
