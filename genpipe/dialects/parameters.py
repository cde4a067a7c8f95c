"""What other programs' files say of how to draw an image, in our words."""

from typing import Any, NamedTuple

from genpipe.fields import settings_of
from genpipe.messages import one_line
from genpipe.request import Request


class Parameters(NamedTuple):
    """What a file of another program says.

    Attributes:
        settings: of `Request`, those that it gives.
        model: the name of the checkpoint that drew the image, which says nothing of where it lies; None where the file
            names none.
        unread: what else it says, by that program's names: settings that genpipe does not have, and values that it cannot
            take.
    """

    settings: dict[str, Any]
    model: str | None
    unread: dict[str, str]

    def take(self, name: str, value: Any, *, called: str) -> None:
        """Put a value into the settings, or into `unread` under the name that it is `called` there, if it cannot be.

        Args:
            name: of the setting.
            value: a number, a text, or None, which says nothing.
        """
        if value is None:
            return
        try:
            self.settings[name] = setting_value(name, value)
        except ValueError:
            self.leave(called, value)

    def leave(self, called: str, value: Any) -> None:
        """Put a value into `unread`, beside what is there under that name."""
        text = one_line(str(value), 200)
        before = self.unread.get(called)
        self.unread[called] = text if before is None else f"{before}; {text}"


def setting_value(name: str, value: Any) -> Any:
    """Give the value of a setting of `Request`, from a text too.

    Raises:
        ValueError: it is none.
    """
    kind = settings_of(Request)[name].kind
    return kind.check(name, kind.read(name, value) if isinstance(value, str) else value)
