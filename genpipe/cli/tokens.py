"""`genpipe tokens PROMPT`: what the text encoders read, step by step, chunk by chunk, token by token."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from genpipe.cli.options import add_fields, given_fields
from genpipe.fields import settings_of
from genpipe.messages import one_line, quoted
from genpipe.request import Request
from genpipe.spec import ModelSpec

if TYPE_CHECKING:
    from genpipe.prompts.listing import TokenList

EXAMPLES = """\
examples:
  genpipe tokens "a (red:1.3) castle, [fog]"
  genpipe tokens "a [cat:dog:0.5] at sea" --steps 20 -m dreamshaper.safetensors
"""
_SETTINGS = ("seed", "steps", "prompt_syntax")
_MODEL = ("model", "model_dir", "revision", "variant", "text_encoder", "embeddings", "allow_pickle")


def tokens_command(parser: argparse.ArgumentParser) -> None:
    """show the tokens, chunks and weights that a model reads of a prompt"""
    parser.usage = "%(prog)s PROMPT [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_tokens)
    parser.add_argument("prompt", metavar="PROMPT", help=settings_of(Request)["prompt"].help)
    add_fields(parser, Request, _SETTINGS)
    add_fields(parser, ModelSpec, _MODEL)


def _tokens(args: argparse.Namespace) -> int:
    from genpipe.prompts.reading import read_prompts

    settings = given_fields(args, Request)
    syntax, steps = settings.get("prompt_syntax", "a1111"), settings.get("steps")
    request = Request.check_settings(settings)
    stages = read_prompts(args.prompt, seed=request.seed, steps=steps or 20, syntax=syntax)
    spec = ModelSpec.from_dict(given_fields(args, ModelSpec))

    import torch

    from genpipe.pipeline.conditions import stages_of
    from genpipe.pipeline.loaded import Loaded, checkpoint_of, name_of
    from genpipe.prompts.listing import distinct, list_tokens

    checkpoint = checkpoint_of(spec)
    name = name_of(checkpoint.source)
    loaded = Loaded(checkpoint, spec, device=torch.device("cpu"), dtype=torch.float32, name=name)
    if "seed" in settings:  # then what the seed says where the prompt says nothing
        stages = stages_of(replace(request, prompt=args.prompt), steps or 20, checkpoint)
    tokenizers = [part.tokenizer for part in loaded.prompt_encoder.parts]
    for stage in stages:
        if len(stages) > 1:
            print(f"steps {stage.steps[0]} to {stage.steps[-1]} of {steps or 20}")
        for number, part in enumerate(stage.parts, 1):
            if len(stage.parts) > 1:
                print(f"prompt {number} of {len(stage.parts)}, weight {part.weight:g}: {one_line(part.text)}")
            groups = distinct([list_tokens(part.text, tokenizer, syntax=syntax) for tokenizer in tokenizers])
            for found, encoders in groups.items():
                if len(groups) > 1:
                    print(f"text encoder {' and '.join(map(str, encoders))}")
                _print(found)
    return 0


def _print(found: "TokenList") -> None:
    if found.words is not None:
        print(f"read as: {one_line(found.words)}")
    for number, chunk in enumerate(found.chunks, 1):
        print(f"chunk {number} of {len(found.chunks)}: {len(chunk)} of {found.room} tokens")
        for token in chunk:
            weight = "" if token.weight == 1 else f"{token.weight:.4g}"
            print(f"  {token.id:>6}  {weight:<7} {one_line(token.text)}")
    if found.cut:
        print(f"left out: {quoted(found.cut, 200)}")
