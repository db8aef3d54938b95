"""What can be wrong with a call. `status` is that of HTTP, `code` is for programs."""


class DashboardError(Exception):
    status = 400
    code = "bad_request"
    detail = "The call is not understood."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.detail)
        self.detail = detail or self.detail


class BadRequest(DashboardError):
    pass


class BadCursor(BadRequest):
    code = "bad_cursor"
    detail = "The cursor is none of this list."


class NotFound(DashboardError):
    status = 404
    code = "not_found"
    detail = "There is no such thing."


class JobNotFound(NotFound):
    code = "job_not_found"
    detail = "There is no such job, or its history has been dropped."


class QueueNotFound(NotFound):
    code = "queue_not_found"
    detail = "No worker and no job of such a queue is known."


class PanelNotFound(NotFound):
    code = "panel_not_found"
    detail = "There is no such panel, or it has no such repair."


class Refused(DashboardError):
    status = 403
    code = "refused"
    detail = "This is not for you to do."


class ReadOnly(Refused):
    code = "read_only"
    detail = "This dashboard is read-only."


class ForeignOrigin(Refused):
    code = "foreign_origin"
    detail = "The call comes from another page, or without the token of this one."


class NoSession(DashboardError):
    status = 401
    code = "no_session"
    detail = "There is no session, or it has ended."


class Unavailable(DashboardError):
    status = 503
    code = "unavailable"
    detail = "Redis does not answer."
