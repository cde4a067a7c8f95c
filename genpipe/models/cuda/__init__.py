"""The forms in which a CUDA device runs the networks fastest: channels_last, Triton kernels, CUDA graphs.

To compare them, name one of `forms.NAMED` ("plain", "channels_last", "kernels", "graphs", …) and evaluate a U-Net, with its
weights and not yet prepared, as a `Pipeline` does:

    form = NAMED["graphs"]
    unet = prepare(unet, device=device, dtype=dtype, forms=form)
    denoiser = UNetDenoiser(unet, timesteps, conditioning, evaluate=evaluation(unet, form, device))

`prepare` takes an autoencoder too. `Pipeline.from_pretrained` takes `forms.best_forms(device, dtype)`; what it evaluates its
denoiser with is `pipeline.networks.evaluate`. A graph is captured at the first evaluation of a shape.
"""
