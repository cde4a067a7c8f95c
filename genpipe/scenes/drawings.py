"""Things that no emoji shows, drawn as shapes in the emoji's flat style, and costumes for those that one does.

Used by scripts/make/sprites.py only; what is drawn here ends up in the atlas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL import Image

from genpipe.scenes.pen import BLACK, BONE, GOLD, Colour, Pen, canvas, curve


def skull(draw: Pen, x: float, y: float, r: float, dark: Colour = BLACK) -> None:
    """Draw a skull over crossed bones, centred on (x, y); `r` is the half-width of the cranium."""
    for side in (-1, 1):
        ends = ((x - side * 1.5 * r, y + 0.35 * r, -1), (x + side * 1.5 * r, y + 1.75 * r, 1))
        draw.line([end[:2] for end in ends], fill=BONE, width=max(2, round(0.34 * r)))
        for ex, ey, s in ends:
            for dx, dy in ((s * side * 0.16, -s * 0.2), (-s * side * 0.1, s * 0.2)):
                k = 0.27 * r
                draw.ellipse((ex + dx * r - k, ey + dy * r - k, ex + dx * r + k, ey + dy * r + k), fill=BONE)
    draw.rounded_rectangle((x - 0.62 * r, y, x + 0.62 * r, y + 1.3 * r), radius=0.25 * r, fill=BONE)
    draw.ellipse((x - r, y - r, x + r, y + 0.85 * r), fill=BONE)
    for side in (-1, 1):
        cx, cy, k = x + side * 0.43 * r, y + 0.08 * r, 0.29 * r
        draw.ellipse((cx - k, cy - k, cx + k, cy + 1.1 * k), fill=dark)
    draw.polygon([(x, y + 0.38 * r), (x - 0.17 * r, y + 0.7 * r), (x + 0.17 * r, y + 0.7 * r)], fill=dark)
    for dx in (-0.25, 0.0, 0.25):
        draw.line([(x + dx * r, y + 0.92 * r), (x + dx * r, y + 1.26 * r)], fill=dark, width=max(1, round(0.09 * r)))


@dataclass(frozen=True)
class Rig:
    """The colours of a sailing ship: its sails in light and in shade, its hull, its flag, and where skulls go."""

    sail: Colour
    shade: Colour
    wood: Colour = (140, 84, 42)
    plank: Colour = (176, 112, 58)
    keel: Colour = (98, 56, 28)
    trim: Colour = GOLD
    flag: Colour = BLACK
    skull_on_sail: bool = False
    skull_on_flag: bool = True


RIGS = {
    "pirate_ship_dark": Rig((58, 58, 68), (40, 40, 48), skull_on_sail=True),
    "pirate_ship_grey": Rig((142, 146, 156), (112, 116, 128)),
    "tall_ship": Rig((250, 246, 232), (222, 212, 190), flag=(206, 48, 48), skull_on_flag=False),
    "ghost_ship": Rig((150, 214, 190), (110, 176, 156), wood=(70, 92, 98), plank=(96, 124, 128), keel=(44, 62, 70),
                      trim=(150, 214, 190), flag=(36, 60, 64)),
}  # fmt: skip


def sail(draw: Pen, rig: Rig, x: float, top: float, bottom: float, wide: float, low: float) -> None:
    """Draw a square sail hanging from a yard: `wide` and `low` are its half-widths, and it swells to the right."""
    belly, middle = 0.16 * (bottom - top), (top + bottom) / 2
    left = curve((x - wide, top), (x - wide + belly * 1.6, middle), (x - low, bottom))
    right = curve((x + wide, top), (x + wide + belly * 2.2, middle), (x + low, bottom))
    foot = curve((x + low, bottom), (x, bottom - belly * 1.2), (x - low, bottom))
    draw.polygon(left[::-1] + right + foot, fill=rig.sail)
    inner = curve(
        (x + wide * 0.72, top), (x + wide * 0.72 + belly * 2.2, middle), (x + low * 0.72, bottom - belly * 0.5)
    )
    draw.polygon(right + inner[::-1], fill=rig.shade)
    draw.line([(x - wide - 12, top), (x + wide + 12, top)], fill=rig.keel, width=11)


def sailing_ship(rig: Rig) -> Image.Image:
    """Draw a three-masted ship, bow to the right and stern castle to the left, with its flag high on the main mast."""
    image, draw = canvas()
    for x, top in ((124, 150), (252, 14), (372, 128)):
        draw.rectangle((x - 7, top, x + 7, 400), fill=rig.keel)
    draw.line([(400, 372), (502, 306)], fill=rig.keel, width=14)
    for a, b in (((372, 134), (500, 306)), ((124, 156), (60, 330)), ((252, 90), (372, 140)), ((252, 90), (124, 158))):
        draw.line([a, b], fill=rig.keel, width=4)
    jib = curve((388, 160), (462, 236), (490, 304)) + curve((490, 304), (430, 300), (396, 330))
    draw.polygon([(388, 160), *jib], fill=rig.shade)
    sail(draw, rig, 122, 176, 316, 52, 60)
    sail(draw, rig, 372, 158, 216, 42, 48)
    sail(draw, rig, 372, 228, 332, 52, 60)
    sail(draw, rig, 250, 126, 184, 56, 64)
    sail(draw, rig, 250, 198, 350, 74, 82)
    if rig.skull_on_sail:
        skull(draw, 256, 246, 39)
    bottom = [*curve((470, 348), (448, 452), (392, 486)), (120, 486), *curve((120, 486), (70, 462), (44, 318))]
    draw.polygon([(44, 318), (148, 318), (158, 366), (330, 372), (346, 348), (470, 348), *bottom], fill=rig.wood)
    shadow = [*curve((459, 400), (440, 458), (392, 486)), (120, 486), *curve((120, 486), (84, 468), (62, 412))]
    draw.polygon([*shadow, *curve((62, 412), (250, 466), (459, 400))], fill=rig.keel)
    draw.line([(50, 352), (152, 352)], fill=rig.keel, width=6)
    draw.line(curve((56, 390), (250, 412), (464, 372)), fill=rig.plank, width=9, joint="curve")
    rail = [(38, 316), (150, 316), (160, 364), (330, 370), (346, 346), (478, 346)]
    draw.line(rail, fill=rig.trim, width=11, joint="curve")
    for x, y in ((104, 424), (164, 432), (224, 434), (284, 431), (344, 425), (402, 413)):
        draw.rounded_rectangle((x - 15, y - 14, x + 15, y + 14), radius=4, fill=(44, 26, 18))
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(16, 14, 16))
    for x in (74, 114):
        draw.rounded_rectangle((x - 13, 328, x + 13, 346), radius=4, fill=(255, 222, 120))
    cloth = curve((259, 10), (302, -8), (334, 26), (392, 8)) + curve((392, 110), (334, 128), (302, 94), (259, 112))
    draw.polygon(cloth, fill=rig.flag)
    if rig.skull_on_flag:
        skull(draw, 325, 48, 29, rig.flag)
    draw.ellipse((242, 0, 262, 20), fill=rig.trim)
    return image


def viking_ship() -> Image.Image:
    image, draw = canvas()
    wood, dark = (150, 92, 48), (104, 60, 30)
    draw.rectangle((248, 60, 264, 380), fill=dark)
    for i in range(6):
        x = 126 + i * 44
        stripe = [(x, 84), (x + 44, 84), *curve((x + 44, 84), (x + 66, 180), (x + 44, 290)), (x, 290),
                  *curve((x, 290), (x + 22, 180), (x, 84))]  # fmt: skip
        draw.polygon(stripe, fill=(200, 44, 44) if i % 2 == 0 else (250, 240, 220))
    draw.line([(112, 82), (402, 82)], fill=dark, width=12)
    side = [*curve((70, 250), (60, 380), (110, 440)), (400, 440), *curve((400, 440), (452, 380), (440, 250))]
    draw.polygon([*side, *curve((440, 250), (420, 350), (380, 360)), (130, 360), *curve((130, 360), (92, 350), (70, 250))],
                 fill=wood)  # fmt: skip
    draw.line([(96, 412), (416, 412)], fill=dark, width=7)
    draw.line(curve((440, 262), (436, 190), (484, 188)), fill=wood, width=30)
    draw.ellipse((446, 160, 500, 210), fill=wood)
    draw.polygon([(490, 172), (512, 188), (488, 202)], fill=wood)
    draw.ellipse((464, 174, 478, 188), fill=BLACK)
    draw.line(curve((72, 262), (56, 196), (96, 176)), fill=wood, width=26)
    for i, colour in enumerate(((206, 52, 48), GOLD, (60, 110, 190), (206, 52, 48), GOLD, (60, 110, 190))):
        x = 134 + i * 48
        draw.ellipse((x - 24, 346, x + 24, 394), fill=colour, outline=dark, width=5)
        draw.ellipse((x - 6, 364, x + 6, 376), fill=dark)
    return image


def submarine() -> Image.Image:
    image, draw = canvas()
    body, dark, glass = (252, 200, 50), (222, 152, 30), (130, 210, 240)
    draw.rectangle((250, 90, 266, 200), fill=(110, 120, 130))
    draw.rectangle((250, 84, 310, 102), fill=(110, 120, 130))
    draw.rounded_rectangle((190, 140, 330, 260), radius=24, fill=dark)
    draw.polygon([(70, 300), (16, 226), (16, 378)], fill=(214, 66, 50))
    draw.rounded_rectangle((40, 200, 500, 404), radius=102, fill=body)
    draw.pieslice((40, 200, 500, 404), 10, 170, fill=dark)
    draw.rounded_rectangle((52, 206, 488, 350), radius=72, fill=body)
    for x in (180, 290, 400):
        draw.ellipse((x - 40, 250, x + 40, 330), fill=(240, 244, 246))
        draw.ellipse((x - 27, 263, x + 27, 317), fill=glass)
        draw.ellipse((x - 18, 270, x - 2, 286), fill=(230, 248, 255))
    return image


def treasure_chest() -> Image.Image:
    image, draw = canvas()
    wood, dark, iron = (156, 92, 44), (110, 62, 28), (250, 196, 70)
    draw.pieslice((50, 40, 462, 360), 180, 360, fill=dark)
    draw.rectangle((50, 196, 462, 240), fill=(60, 34, 18))
    for x, y, r in ((110, 236, 34), (170, 214, 38), (236, 200, 42), (304, 210, 40), (364, 222, 38), (412, 240, 30),
                    (140, 250, 30), (270, 236, 36), (204, 240, 32), (336, 246, 34)):  # fmt: skip
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 208, 60), outline=(214, 150, 30), width=5)
    draw.polygon([(232, 196), (262, 160), (292, 196), (262, 240)], fill=(224, 50, 80))
    draw.polygon([(140, 208), (160, 184), (182, 208), (160, 238)], fill=(60, 190, 120))
    draw.rounded_rectangle((44, 250, 468, 450), radius=14, fill=wood)
    for y in (314, 382):
        draw.line([(44, y), (468, y)], fill=dark, width=6)
    for x in (44, 420):
        draw.rectangle((x, 250, x + 48, 450), fill=iron)
    draw.rectangle((44, 250, 468, 276), fill=iron)
    draw.rounded_rectangle((220, 240, 292, 330), radius=10, fill=(255, 220, 110), outline=(190, 130, 30), width=6)
    draw.ellipse((244, 262, 268, 286), fill=dark)
    draw.rectangle((250, 274, 262, 310), fill=dark)
    return image


def lighthouse() -> Image.Image:
    image, draw = canvas()
    for i in range(5):
        a, b = i / 5, (i + 1) / 5
        top, bottom = 150 + 310 * a, 150 + 310 * b
        draw.polygon([(206 - 46 * a, top), (306 + 46 * a, top), (306 + 46 * b, bottom), (206 - 46 * b, bottom)],
                     fill=(214, 48, 48) if i % 2 == 0 else (250, 248, 244))  # fmt: skip
    draw.polygon([(214, 76), (40, 30), (40, 140), (214, 112)], fill=(255, 232, 130))
    draw.polygon([(298, 76), (472, 30), (472, 140), (298, 112)], fill=(255, 232, 130))
    draw.rectangle((186, 134, 326, 154), fill=(60, 66, 76))
    draw.rectangle((214, 62, 298, 134), fill=(255, 240, 160), outline=(60, 66, 76), width=8)
    draw.polygon([(196, 66), (256, 10), (316, 66)], fill=(190, 40, 40))
    draw.rounded_rectangle((232, 390, 280, 460), radius=20, fill=(90, 60, 44))
    draw.ellipse((120, 444, 392, 504), fill=(120, 124, 128))
    return image


def hot_air_balloon() -> Image.Image:
    image, draw = canvas()
    colours = ((226, 60, 56), (250, 190, 60), (60, 140, 210), (250, 190, 60), (226, 60, 56))
    for half, colour in zip((190, 126, 56), colours[:3], strict=True):
        draw.ellipse((256 - half, 10, 256 + half, 360), fill=colour)
        draw.polygon([(256 - half * 0.78, 290), (256 + half * 0.78, 290), (256 + half * 0.24, 392), (256 - half * 0.24, 392)],
                     fill=colour)  # fmt: skip
    for x in (216, 296):
        draw.line([(x, 388), (226 if x < 256 else 286, 436)], fill=(90, 60, 40), width=6)
    draw.rounded_rectangle((208, 430, 304, 500), radius=12, fill=(168, 108, 56))
    draw.line([(208, 452), (304, 452)], fill=(120, 72, 36), width=8)
    return image


def pyramid() -> Image.Image:
    image, draw = canvas()
    draw.polygon([(250, 60), (20, 440), (330, 440)], fill=(244, 200, 110))
    draw.polygon([(250, 60), (330, 440), (492, 400)], fill=(206, 152, 70))
    for t in (0.25, 0.45, 0.64, 0.82):
        y, left, right = 60 + 380 * t, 250 - 230 * t, 250 + 80 * t
        draw.line([(left, y), (right, y)], fill=(222, 172, 86), width=7)
        draw.line([(right, y), (250 + 242 * t, 60 + 340 * t)], fill=(184, 132, 58), width=7)
    return image


def igloo() -> Image.Image:
    image, draw = canvas()
    draw.pieslice((40, 80, 440, 740), 180, 360, fill=(226, 240, 252))
    for y, half in ((330, 186), (250, 158), (170, 112)):
        draw.line(curve((240 - half, y), (240, y + 18), (240 + half, y)), fill=(160, 196, 226), width=8)
    for x, top, bottom in (
        (140, 262, 336),
        (220, 182, 254),
        (300, 256, 336),
        (180, 340, 410),
        (90, 340, 410),
        (240, 90, 172),
    ):
        draw.line([(x, top), (x, bottom)], fill=(160, 196, 226), width=8)
    draw.pieslice((280, 250, 490, 570), 180, 360, fill=(200, 224, 244))
    draw.pieslice((312, 290, 458, 530), 180, 360, fill=(40, 70, 110))
    draw.rounded_rectangle((20, 404, 500, 436), radius=16, fill=(250, 253, 255))
    return image


def windmill() -> Image.Image:
    image, draw = canvas()
    draw.polygon([(200, 190), (312, 190), (356, 490), (156, 490)], fill=(238, 222, 196))
    draw.polygon([(270, 190), (312, 190), (356, 490), (296, 490)], fill=(214, 192, 160))
    draw.polygon([(180, 200), (256, 110), (332, 200)], fill=(190, 66, 50))
    draw.rounded_rectangle((228, 410, 284, 490), radius=24, fill=(120, 72, 40))
    draw.rectangle((238, 260, 274, 300), fill=(110, 180, 220))
    for dx, dy in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        ex, ey = 256 + dx * 180, 180 + dy * 160
        px, py = -dy * 44, dx * 44
        draw.polygon([(256 + dx * 50, 180 + dy * 44), (ex, ey), (ex + px, ey + py), (256 + dx * 50 + px, 180 + dy * 44 + py)],
                     fill=(250, 246, 236), outline=(120, 72, 40), width=6)  # fmt: skip
        draw.line([(256, 180), (ex, ey)], fill=(120, 72, 40), width=12)
    draw.ellipse((236, 160, 276, 200), fill=(90, 54, 30))
    return image


DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    **{name: partial(sailing_ship, rig) for name, rig in RIGS.items()},
    "viking_ship": viking_ship,
    "submarine": submarine,
    "treasure_chest": treasure_chest,
    "lighthouse": lighthouse,
    "hot_air_balloon": hot_air_balloon,
    "pyramid": pyramid,
    "igloo": igloo,
    "windmill": windmill,
}
