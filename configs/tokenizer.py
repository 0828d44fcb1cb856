"""The VQGAN tokenizer from scratch: the teacher of the semantic distillation in stage 1.

    python launch/train.py --config=configs/tokenizer.py:tiny --workdir=runs/tokenizer

Then --config.distillation.tokenizer=runs/tokenizer in stage 1, which shows it images at half their
size: hence the scale of the crops here.

Objective: L1 + LPIPS + codebook + commitment / 4 + a term that keeps all codes in use. `:full` has
the sizes of MaskGIT's tokenizer, 1024 codes at H/16; `:tiny` has 256 and takes minutes on two CPU
cores, with AlexNet in LPIPS for VGG.
"""

from ml_collections import config_dict


def get_config(size: str = "full") -> config_dict.ConfigDict:
    c = config_dict.create(
        stage="tokenizer",
        seed=0,
        steps=300_000,
        batch_size=32,  # images a step, over all devices
        accumulate=1,  # parts that a step takes its batch in, for less memory
        trainable=r"tokenizer/",
        model=dict(tokenizer=dict()),  # what is left out has the released size
        dtype="bfloat16",  # of convolutions and products; weights are float32
        l1=1.0,
        codebook=1.0,  # weight of the codes' distance to what the encoder puts out
        commitment=0.25,  # weight of the encoder's distance to the codes
        disuse=0.3,  # weight of the term that keeps all codes in use
        temperature=0.1,  # of the choice of codes in that term, see losses.disuse
        # `shift`: of images less so many pixels a side, cut anywhere, as strides miss some grids.
        lpips=dict(net="vgg", pool="avg", dtype="bfloat16", shift=8),
        ema=0.999,  # decay of the weights' moving average, which is kept; 0: there is none
        lr=1e-4,  # learning rate
        schedule="constant",  # or "cosine", over all steps
        final_lr=1.0,  # where a cosine ends, as a share of `lr` (and of `muon`)
        warmup=500,  # steps
        muon=0.0,  # learning rate of kernels, by Muon, with `lr` for the rest; 0: AdamW for all
        weight_decay=0.0,  # it would draw unused codes to zero
        b2=0.99,  # how much AdamW keeps of its squares from a step to the next
        clip=1.0,  # global norm of the gradient
        mesh=dict(data=-1, fsdp=1),  # devices along both; -1: all that are left
        data=dict(
            root="data/train",
            validation="data/val",
            keep=dict(),  # pattern of file names -> how often each counts
            crop=256,  # pixels
            scale=(0.25, 0.5),  # crops come from images reduced by this much
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
        c.steps = 500
        c.batch_size = 16
        c.model.tokenizer = dict(
            widths=(8, 16, 32, 48, 64), layers=1, codes=256, features=32, norm_groups=4
        )
        c.dtype = "float32"
        c.lpips = dict(net="alex", pool="max", shift=8)
        c.ema = 0.99
        c.lr, c.schedule, c.final_lr, c.warmup = 1e-3, "cosine", 0.05, 50
        c.data.crop, c.data.crops_per_image, c.data.threads, c.data.cache_gib = 96, 4, 1, 6.0
        # One low-diversity source weighs less; the photograph in examples/ is not trained on.
        c.data.keep = {"clothing-*": 0.25, "endless-sky-0166*": 0}
        c.log_every, c.checkpoint_every = 10, 250
    elif size != "full":
        raise ValueError(f"configs/tokenizer.py:{size}: expected full or tiny")
    return c
