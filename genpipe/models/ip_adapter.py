"""IP-Adapter ("IP-Adapter: Text Compatible Image Prompt Adapter", arXiv 2308.06721).

An image becomes a few tokens beside those of the prompt. Every attention that reads the prompt reads them, too, by keys and
values of their own, and adds what it finds (eq. 5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.models.attention import Attention, KeysValues
from genpipe.models.image_encoder import ImageEncoder, ImageEncoding, Learned

HEAD = 64  # channels per head of the resampler


@dataclass(frozen=True)
class IPAdapterConfig:
    """Shape of an IP-Adapter.

    Attributes:
        image_channels: width of the image encoder's vectors: of the pooled one, or for a `resampler` of the hidden ones.
        context_channels: width of the tokens, which is that of the prompt's.
        tokens: how many an image becomes.
        widths: inner width of each attention that reads the prompt: those of the way down, of the way up, of the bottom.
        resampler: inner width, layers and heads of what makes tokens of the hidden vectors (IP-Adapter Plus); None for one
            linear layer over the pooled vector.
    """

    image_channels: int
    context_channels: int
    tokens: int
    widths: tuple[int, ...]
    resampler: tuple[int, int, int] | None = None


class TokenProjection(nn.Module):
    """Makes tokens of an image's pooled vector."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.image_channels, config.tokens * config.context_channels)
        self.norm = nn.LayerNorm(config.context_channels)

    def forward(self, encoding: ImageEncoding) -> Tensor:
        """Map an encoding of B images to tokens (B, T, D)."""
        return self.norm(self.proj(encoding.pooled.to(self.proj.weight.dtype)).unflatten(1, (self.tokens, -1)))


class ResamplerLayer(nn.Module):
    """Queries that attend to an image's vectors and to themselves, and a feed-forward layer."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_image, self.norm_queries = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query = nn.Linear(channels, HEAD * heads, bias=False)
        self.key_value = nn.Linear(channels, 2 * HEAD * heads, bias=False)
        self.out = nn.Linear(HEAD * heads, channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, 4 * channels, bias=False)
        self.linear2 = nn.Linear(4 * channels, channels, bias=False)

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        """Map an image's vectors (B, N, C) and queries (B, T, C) to (B, T, C)."""
        normed = self.norm_queries(queries)
        read = torch.cat([self.norm_image(image), normed], dim=1)
        q = self.query(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, HEAD)
        k, v = self.key_value(read).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N + T, HEAD)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.out(h)
        return queries + self.linear2(F.gelu(self.linear1(self.norm(queries))))


class Resampler(nn.Module):
    """Makes tokens of an image's hidden vectors (IP-Adapter Plus): learned queries that read them."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        assert config.resampler is not None
        channels, layers, heads = config.resampler
        self.latents = Learned(1, config.tokens, channels)
        self.proj_in = nn.Linear(config.image_channels, channels)
        self.layers = nn.ModuleList(ResamplerLayer(channels, heads) for _ in range(layers))
        self.proj_out = nn.Linear(channels, config.context_channels)
        self.norm_out = nn.LayerNorm(config.context_channels)

    def forward(self, encoding: ImageEncoding) -> Tensor:
        """Map an encoding of B images to tokens (B, T, D)."""
        image = self.proj_in(encoding.hidden.to(self.latents.weight.dtype))
        queries = self.latents.weight.expand(len(image), -1, -1)
        for layer in self.layers:
            queries = layer(image, queries)
        return self.norm_out(self.proj_out(queries))


class IPAdapter(nn.Module):
    """Tokens of an image, and the keys and values of them for each attention of a U-Net that reads the prompt."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = TokenProjection(config) if config.resampler is None else Resampler(config)
        pairs = [(config.context_channels, width) for width in config.widths]
        self.keys = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairs)
        self.values = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairs)

    def forward(self, encoding: ImageEncoding) -> Tensor:
        """Map an encoding of B images to tokens (B, T, D)."""
        return self.projection(encoding)

    def keys_values(self, tokens: Tensor, scales: Tensor, readers: Iterable[Attention]) -> KeysValues:
        """Compute what each attention reads of images.

        Args:
            tokens: (rows, T, D), as `forward` gives them.
            scales: (rows,), how much they count: values are multiplied by them.
            readers: as `UNet.readers` gives them.
        """
        tokens = tokens.to(next(self.parameters()).dtype)
        found = {}
        for reader, key, value in zip(readers, self.keys, self.values, strict=True):
            by_head = (each.unflatten(-1, (reader.heads, -1)).transpose(1, 2) for each in (key(tokens), value(tokens)))
            k, v = by_head  # (rows, heads, T, head_channels)
            found[reader] = (k, v * scales.to(v.dtype)[:, None, None, None])
        return found


@dataclass(frozen=True, eq=False)
class References:
    """An IP-Adapter with the image encoder that it was trained with."""

    adapter: IPAdapter
    encoder: ImageEncoder

    def tokens(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Make tokens of images, and of no image for each: what the negative prompt reads.

        Args:
            images: (1, 3, S, S) each, as `ImageEncoder` takes them; each is encoded by itself.

        Returns:
            (B, T, D) of the images, and (B, T, D) of none.
        """
        return (
            torch.cat([self.adapter(self.encoder(image)) for image in images]),
            torch.cat([self._of_none(image) for image in images]),
        )

    def _of_none(self, image: Tensor) -> Tensor:
        """The pooled vector of no image is zero; the hidden vectors are those of an image of zeros."""
        if self.adapter.config.resampler is not None:
            return self.adapter(self.encoder(torch.zeros_like(image)))
        nothing = image.new_zeros(1, self.adapter.config.image_channels)
        return self.adapter(ImageEncoding(nothing, nothing))
