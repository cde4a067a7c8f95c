"""Errors as their callers read them: one clear line as JSON, and never a traceback."""

from typing import Any

from starlette.responses import JSONResponse

from genpipe.messages import one_line


class ApiError(Exception):
    """What is answered in place of a result.

    Args:
        status: of HTTP.
        message: one line that says how to put it right.
        retry_after: seconds after which it may go better; None says nothing of it.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, one_line(message, 600), retry_after


def error_response(path: str, error: ApiError) -> JSONResponse:
    """Write an error in the form of the API that a path belongs to."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["Connection"] = "close"
    content: dict[str, Any] = {"error": error.message}
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        content = {"error": {"message": error.message, "type": kind, "param": None, "code": None}}
    elif path.startswith("/sdapi/"):
        content = {"error": "genpipe", "detail": error.message, "errors": error.message, "body": ""}
    return JSONResponse(content, error.status, headers)
