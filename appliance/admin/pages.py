"""The pages behind the door: studies, one study and its picture, packs, incidents, and the health answer."""

from datetime import datetime
from typing import Any

from flask import Response, abort, flash, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from appliance.admin.access import refreshes_itself
from appliance.admin.listing import ROWS_PER_PAGE, SEARCHED, listing_of, query_from_arguments
from appliance.admin.packs_list import read_engines, read_packs
from appliance.admin.picture import picture_png
from appliance.admin.site import Site
from appliance.admin.study_view import shown_image, view_of
from appliance.admin.words import STUDY_WORDS
from appliance.domain.errors import InputError, ReportError
from appliance.domain.lifecycle import StudyEvent
from appliance.telemetry import logger_for

PAGE_SIDE, FULL_SIDE = 900, 2048
"""Longest side of a picture in pixels: within the page, and on its own."""

LISTED_IMAGES = 100
"""Images of a study that its page names; the others are counted."""


class Pages:
    """Answers of the site; each method is one route."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._log = logger_for("web")

    def studies(self) -> ResponseReturnValue:
        """The list, or only its table when the page refreshes itself."""
        query = query_from_arguments(request.args)
        listing = listing_of(self._site.ledger, read_packs(self._site.packs_file), query)
        self._audit("listed-studies", page=query.page, studies=len(listing.rows))
        counts = self._site.ledger.counts()
        return render_template(
            "studies.html",
            query=query,
            listing=listing,
            counts=counts,
            total=sum(counts.values()),
            words=STUDY_WORDS,
            rows_per_page=ROWS_PER_PAGE,
            searched=SEARCHED,
        )

    def study(self, token: str) -> ResponseReturnValue:
        """One study at one revision."""
        packs = read_packs(self._site.packs_file)
        view = view_of(self._site.ledger, packs, token, _number("revision"), _number("image"))
        self._audit("viewed-study", token=token, revision=view.record.revision)
        return render_template("study.html", view=view, listed_images=LISTED_IMAGES)

    def picture(self, token: str) -> ResponseReturnValue:
        """The picture of one image of a study."""
        ledger = self._site.ledger
        record = ledger.study(token, _number("revision"))
        images, analysis = ledger.instances(token, record.revision), ledger.analysis(token, record.revision)
        number = shown_image(images, analysis.outcomes if analysis else (), _number("image"))
        if number is None:
            abort(404)
        self._audit("viewed-picture", token=token, revision=record.revision, image=number)
        side = FULL_SIDE if "full" in request.args else PAGE_SIDE
        try:
            png = picture_png(images[number - 1], ledger.objects(token, record.revision), side)
        except (InputError, ReportError) as error:
            self._log.warning("no picture", token=token, image=number, reason=str(error))
            abort(404)
        return Response(png, mimetype="image/png")

    def again(self, token: str) -> ResponseReturnValue:
        """Send a finished study's results again, or try a failed one again: the ledger opens a new revision."""
        record = self._site.ledger.study(token)
        self._audit("asked-again", token=token, revision=record.revision)
        self._site.ledger.apply(token, record.revision, StudyEvent.RETRIED, reason=f"Asked for by {g.user.name}.")
        self._log.info("study asked for again", token=token, revision=record.revision, user=g.user.name)
        flash("The study is in the queue again, as a new revision.")
        return redirect(url_for("study", token=token), 303)

    def packs(self) -> ResponseReturnValue:
        """The installed packs, and how far each was validated."""
        file = self._site.packs_file
        return render_template("packs.html", listed=read_packs(file), engines=read_engines(file))

    def incidents(self) -> ResponseReturnValue:
        """What arrived and could not be used."""
        incidents = self._site.ledger.incidents()
        self._audit("listed-incidents", incidents=len(incidents))
        return render_template("incidents.html", incidents=incidents)

    def health(self) -> ResponseReturnValue:
        """Whether the site answers and reads its ledger; for monitoring, without a log-in and without patient data."""
        self._site.ledger.counts()
        return {"status": "ok", "version": self._site.version}

    def _audit(self, event: str, **facts: str | int) -> None:
        """Record a look; a page that refreshes itself is recorded when it shows something new to this session."""
        looked: dict[str, Any] = session.setdefault("looked", {})
        if refreshes_itself() and looked.get(event) == facts:
            return
        session["looked"] = {**looked, event: facts}
        now: datetime = self._site.clock()
        self._site.audit.record(now, g.user.name, request.remote_addr or "", event, **facts)


def _number(argument: str) -> int | None:
    value = request.args.get(argument, "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 6 else None  # noqa: PLR2004 - five digits
