from pathlib import Path

from edge.audit import Event
from edge.run import site_of
from edge.status.views import AGAIN_S, SAME_S
from edge.status.volumes import Volumes
from edge.store.record import Step
from tests.edge.builders import HandClock
from tests.edge.status.site import REJECTED, SEEN, USERS, Site, visiting


def views(site: Site) -> list[dict[str, object]]:
    return [dict(one.fields) for one in site.trail() if one.event == Event.VIEWED]


def test_each_view_is_recorded_with_who_what_and_whose(tmp_path: Path, clock: HandClock) -> None:
    """Once while it goes on: a viewer loads hundreds of slices, and a page its pictures."""
    site = Site(tmp_path)
    volumes = Volumes(site_of(site.settings))
    key, other = site.add("a", report=SEEN), site.add("b", report=SEEN)
    bad = site.add("bad", step=Step.QUARANTINED, report=REJECTED)
    studies, who = sorted((key, other, bad)), {"user": "anna", "peer": "127.0.0.1"}
    app = site.app(site.authenticator(USERS), volumes=volumes, clock=clock)
    with visiting(app) as visit:
        visit.log_in(name="anna")
        assert views(site) == []

        def see(*paths: str) -> list[dict[str, object]]:
            """What is recorded of these looks, without the user."""
            before = len(views(site))
            for path in paths:
                assert visit.get(path).status_code == 200
            new = views(site)[before:]
            assert all(one.items() >= who.items() for one in new)
            return [{k: v for k, v in one.items() if k not in who} for one in new]

        page, picture = f"/study/{key}", f"/study/{key}/picture"
        assert see("/", f"{picture}/overview.jpg", "/") == [{"what": "list", "studies": studies}]
        assert see(page, f"{picture}/finding_01.jpg", f"{picture}/overview.jpg", page) == [
            {"what": "study page", "study_key": key, "version": 1}
        ]
        assert see(f"{page}/report/1", f"{page}/report/1") == [
            {"what": "report", "study_key": key, "version": 1}
        ]
        visit.post(f"{page}/volume", **{"x-form-token": visit.token()})
        volumes.wait()
        looks = (f"{page}/view", f"{page}/volume", *(f"{page}/slice/axial/{n}" for n in range(9)))
        assert see(*looks) == [{"what": "images", "study_key": key}]
        assert see(f"/study/{other}/picture/finding_01.jpg", "/drift") == [
            {"what": "pictures", "study_key": other}
        ]
        clock.sleep(SAME_S - 1)
        assert see(looks[-1]) == []
        clock.sleep(SAME_S - 1)
        assert see(looks[-1]) == []
        clock.sleep(SAME_S)
        assert see(looks[-1], f"{picture}/overview.jpg") == [
            {"what": "images", "study_key": key},
            {"what": "overview picture", "study_key": key},
        ]
        for _ in range(2 * round(AGAIN_S / SAME_S)):
            clock.sleep(SAME_S / 2)
            visit.get(looks[-1])
        assert see("/") == [{"what": "list", "studies": studies}]
        assert len([one for one in views(site) if one["what"] == "images"]) == 3
        assert visit.get(f"/study/{key}/report/9").status_code == 404
        clock.sleep(SAME_S)
        visit.client.cookies.clear()
        visit.log_in(name="bert")
        visit.get(page)
        assert (views(site)[-1]["user"], views(site)[-1]["what"]) == ("bert", "study page")
