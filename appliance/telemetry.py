"""Structured logs: one line an event on standard error, without patient data."""

import logging
import sys
from typing import Literal

import structlog

Logger = structlog.typing.FilteringBoundLogger


def configure_logs(level: Literal["debug", "info", "warning", "error"], form: Literal["json", "text"]) -> None:
    """Set up logging for this process; called once, by a daemon or the command line.

    Library loggers go through the same renderer from `warning` upwards; the DICOM parser's remarks on odd values,
    which would repeat them, from `error`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pydicom").setLevel(logging.ERROR)


def logger_for(room: str) -> Logger:
    """A logger whose every line names the room it speaks from."""
    logger: Logger = structlog.get_logger().bind(room=room)
    return logger
