"""Words that a model of the scenes' world has not learned."""

from genpipe.messages import listed, quoted
from genpipe.scenes.normalise import normalise
from genpipe.scenes.vocabulary import unknown_words


def words_not_known(prompt: str, learned: tuple[str, ...]) -> tuple[str, ...]:
    """Name the words of a prompt that a model has not learned, with known ones that come near, in one line; () for none.

    Args:
        learned: the model's concepts; () is all of the scenes' world.
    """
    pool = learned or None
    unknown = unknown_words(normalise(prompt, pool).text, pool)
    if not unknown:
        return ()
    named = [
        f"{quoted(word)} (did you mean {' or '.join(near)}?)" if near else quoted(word)
        for word, near in unknown.items()
    ]
    return (f"the model does not know {listed(named)}: it draws the rest",)
