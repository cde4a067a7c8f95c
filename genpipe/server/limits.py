"""What one request may ask for."""

from dataclasses import dataclass

from genpipe.request import Request


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        body: bytes of it.
        pixels: of an image that is drawn.
        given_pixels: of an image that it carries.
        steps: of each image.
        images: of one request.
        characters: of a prompt.
        seconds: until its images are done; those that are not are given up.
    """

    body: int = 32 * 2**20
    pixels: int = 2048 * 2048
    given_pixels: int = 4096 * 4096
    steps: int = 150
    images: int = 16
    characters: int = 10_000
    seconds: float = 600.0

    def check(self, request: Request) -> None:
        """Raise ValueError if a request asks for more than it may."""
        left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
        size = int((request.width + left + right) * (request.height + top + bottom) * request.upscale**2)
        for name, value, most in (
            ("steps", request.steps, self.steps),
            ("the pixels of an image", size, self.pixels),
            ("the characters of the prompt", len(request.prompt), self.characters),
            ("the characters of the negative prompt", len(request.negative_prompt), self.characters),
        ):
            if value > most:
                raise ValueError(f"{name} may be up to {most} on this server, not {value}")
