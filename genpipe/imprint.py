"""What an image's file says of how it was made: the texts that PNG, JPEG and WebP carry, written and read.

PNG has a chunk for each text. JPEG and WebP have A1111's text as the comment of their EXIF data, where A1111 keeps it, and
genpipe's in an XMP packet. All three have the packet, which says by IPTC's "Digital Source Type" that a machine made the image.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from html import escape
from typing import Any
from xml.etree import ElementTree

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from genpipe.messages import Notice

# Keys of `Image.info`: what made the image, as genpipe's JSON and as A1111's text, and its kind of source.
MADE, PARAMETERS, SOURCE = "genpipe", "parameters", "digital_source_type"
# Kinds of source (IPTC NewsCodes): made by a trained model alone, or by one out of another image.
TRAINED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# Bytes that one segment of a JPEG file holds of XMP, and of EXIF data.
JPEG_XMP, JPEG_EXIF = 65_502, 65_533
_XMP_CHUNK = "XML:com.adobe.xmp"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OURS = "urn:genpipe:"
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description rdf:about="" \
xmlns:Iptc4xmpExt="{iptc}" xmlns:genpipe="{ours}">{properties}</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def saving_options(info: Mapping[Any, Any], kind: str) -> dict[str, Any]:
    """Give the arguments of `PIL.Image.Image.save` that write what `Image.info` says of how the image was made.

    What a JPEG has no room for is left out, with a warning.

    Args:
        info: of the image; other keys are let be.
        kind: "PNG", "JPEG" or "WEBP"; other kinds carry nothing.
    """
    texts, source = _texts(info), info.get(SOURCE)
    if kind == "PNG":
        chunks = PngInfo()
        for key, text in png_texts(info).items():
            chunks.add_itxt(key, text)  # the kind that holds Unicode
        return {"pnginfo": chunks} if chunks.chunks else {}
    if kind not in ("JPEG", "WEBP"):
        return {}
    options: dict[str, bytes] = {}
    if PARAMETERS in texts:
        exif = Image.Exif()
        comment = b"UNICODE\0" + texts[PARAMETERS].encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        options["exif"] = exif.tobytes()
    if source is not None or MADE in texts:
        options["xmp"] = _packet(source, texts.get(MADE))
    if kind == "JPEG":
        if len(options.get("exif", b"")) > JPEG_EXIF:
            del options["exif"]
            warnings.warn(
                Notice("a JPEG has no room for so long a prompt, and is saved without: a PNG has"), stacklevel=3
            )
        if len(options.get("xmp", b"")) > JPEG_XMP:
            options["xmp"] = _packet(source, None)
            warnings.warn(Notice("a JPEG has no room for what made it, and is saved without: a PNG has"), stacklevel=3)
    return options


def png_texts(info: Mapping[Any, Any]) -> dict[str, str]:
    """Give the texts that a PNG carries, by their keys, of what `Image.info` says of how the image was made."""
    source = info.get(SOURCE)
    return {**_texts(info), **({} if source is None else {_XMP_CHUNK: _packet(source, None).decode()})}


def texts_in(image: Image.Image) -> dict[str, str]:
    """Give the texts that an image carries, by the names of a PNG's chunks; damaged ones are left out.

    Of JPEG and WebP these are "genpipe" and `SOURCE` from their XMP, "parameters" or "comment" from the comment of their EXIF
    data, and "prompt" and "workflow" where ComfyUI keeps them.
    """
    found = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    found.pop(_XMP_CHUNK, None)
    packet = image.info.get("xmp")
    if isinstance(packet, bytes):
        found |= {key: text for key, text in _read_packet(packet) if key not in found}
    with warnings.catch_warnings(), suppress(Exception):  # of damaged EXIF data nothing is read
        warnings.simplefilter("ignore")
        found |= {key: text for key, text in _read_exif(image.getexif()) if key not in found}
    return found


def _texts(info: Mapping[Any, Any]) -> dict[str, str]:
    # A model's path may hold bytes that are no text.
    return {key: str(info[key]).encode("utf-8", "replace").decode() for key in (PARAMETERS, MADE) if key in info}


def _packet(source: str | None, made: str | None) -> bytes:
    """An XMP packet of what is not None."""
    properties = ""
    if source is not None:
        properties += f"<Iptc4xmpExt:DigitalSourceType>{SOURCES}{source}</Iptc4xmpExt:DigitalSourceType>"
    if made is not None:
        # XML has no control characters, and JSON in ASCII has escapes for them.
        properties += f"<genpipe:made>{escape(json.dumps(json.loads(made)), quote=False)}</genpipe:made>"
    return _PACKET.format(rdf=_RDF, iptc=_IPTC, ours=_OURS, properties=properties).encode()


def _read_packet(packet: bytes) -> Iterator[tuple[str, str]]:
    if b"<!" in packet:  # declarations, which may grow without end
        return
    try:
        root = ElementTree.fromstring(packet.rstrip(b"\0 "))
    except (ElementTree.ParseError, ValueError, LookupError):
        return
    for described in root.iter(f"{{{_RDF}}}Description"):
        for key, name in ((SOURCE, f"{{{_IPTC}}}DigitalSourceType"), (MADE, f"{{{_OURS}}}made")):
            element = described.find(name)
            text = described.get(name) if element is None else element.text or element.get(f"{{{_RDF}}}resource")
            if text:
                yield key, text.strip().removeprefix(SOURCES)


def _read_exif(exif: Image.Exif) -> Iterator[tuple[str, str]]:
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes):
        kind, data, encoding = comment[:8], comment[8:], "utf-8"
        if kind == b"UNICODE\0":
            # UTF-16, of which the standard does not say which half comes first: in most texts zeros tell.
            encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        text = data.decode(encoding, "replace")
        yield (PARAMETERS if "Steps:" in text else "comment"), text  # cameras write comments too
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model):
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and name in ("prompt", "workflow"):
            yield name, text
    description = exif.get(ExifTags.Base.ImageDescription)
    if isinstance(description, str):
        yield "description", description
