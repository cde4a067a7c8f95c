"""Training loops on accelerate: the autoencoder, then the text encoder and the denoiser."""
