"""What the pages show, and that texts from studies stay texts."""

import http.client
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest

from edge.audit import Event, Person
from edge.dicom_out.exports import DeliveryStep, ExportStore
from edge.dicom_out.part import deliveries_panel
from edge.drift.compare import BASELINE, LAST_IMAGES, MIN_RECENT
from edge.drift.observe import put as put_drift
from edge.errors import EdgeError
from edge.findings import SecondReading
from edge.folders import DATABASE
from edge.guarantee import Guarantee
from edge.report.model import Status
from edge.report.write import write_version
from edge.run import site_of
from edge.status.volumes import Volumes
from edge.store.record import Step
from imaging.volume import StudyHeader
from tests.edge.builders import TERMS, open_store, put
from tests.edge.drift.test_compare import studies
from tests.edge.drift.test_images import studies as images
from tests.edge.report.reports import CHANGE, REPORT, VERDICT
from tests.edge.running_agent import sql
from tests.edge.status.site import CT, LINK, REJECTED, SEEN, Site, Visit, visiting

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7907 * 7919 }}'


@pytest.fixture
def volumes(site: Site) -> Volumes:
    return Volumes(site_of(site.settings))


@pytest.fixture
def visit(site: Site, volumes: Volumes) -> Iterator[Visit]:
    with visiting(site.open_app(volumes=volumes)) as visit:
        yield visit


ANYONE = {"user": "open to every user of this machine", "peer": "127.0.0.1"}


def recorded(site: Site, event: Event) -> dict[str, object]:
    """What the audit trail has of the one event of this kind."""
    (record,) = [record for record in site.trail() if record.event == event]
    return dict(record.fields)


def test_the_status_shows_queue_refusals_pending_reads_and_reports(
    site: Site, visit: Visit
) -> None:
    site.add("read", report=SEEN)
    site.add("waits", step=Step.CLAIMED, report=None)
    reason = {"kind": "IncompleteSeries", "reason": "slice 12 is missing\nTraceback", "file": "a/b"}
    header = StudyHeader("P7", "Roe^Ann", study_date="20260301", accession="A12")
    refused = replace(REJECTED, header=header)
    site.add("refused", step=Step.QUARANTINED, report=refused, reason=reason)
    put(site.folders.inbox, "arrives", done=False)
    text = visit.get("/").text
    for words in ("Doe Jane", "waits", "arrives", "IncompleteSeries", "slice 12 is missing",
                  "complete when nothing changes", "screening-int8 1 (none)", "cloud:50051",
                  "No guarantee for this scan", "Roe Ann",
                  "P7, 2026-03-01, A12, refused"):  # fmt: skip
        assert words in text
    assert "Traceback" not in text
    assert text.count("/requeue") == 1


@pytest.mark.parametrize("off", [False, True])
def test_a_site_without_a_cloud_shows_no_guarantee(site: Site, off: bool) -> None:
    """None of its reports ever gives one."""
    given = Guarantee(TERMS, "", permanent=False)
    with visiting(site.open_app(guarantee=given, links=dict)) as visit:
        text = visit.get("/").text
    assert "No report of this site gives a guarantee: no second reader is configured." in text
    assert TERMS.text not in text
    links = {} if off else {"cloud:50051": LINK}
    with visiting(site.open_app(guarantee=given, links=lambda: links)) as visit:
        assert (TERMS.text in visit.get("/").text) is not off


def test_the_page_of_a_study_begins_with_the_result_and_names_readers_that_disagree(
    site: Site, visit: Visit
) -> None:
    apart = replace(SEEN.findings[0], edge_score=0.99, verdict=replace(VERDICT, probability=0.2))
    key = site.add("a", report=replace(SEEN, findings=(apart,)))
    text = visit.get(f"/study/{key}").text
    assert "The two readers disagree strongly about finding 1." in text
    assert "the readers disagree: edge 0.99, cloud 0.20" in text


def test_a_pending_read_shows_its_age_and_reason(site: Site, visit: Visit) -> None:
    key = site.add("a", report=replace(SEEN, status=Status.PROVISIONAL,
                                       second_reading=SecondReading.MISSING))  # fmt: skip
    pending = "INSERT INTO pending VALUES (?, 'pending', 1, 0, 3, 7200.0, 'the cloud is gone', '')"
    sql(site.folders.state / DATABASE, pending, values=(key,))
    text = visit.get("/").text
    assert "the cloud is gone" in text
    assert "2 h of running time" in text
    assert "provisional" in text


def test_hostile_text_stays_text(site: Site, visit: Visit) -> None:
    """In every field of the header, in names of folders, and in reasons of refusals."""
    name = HOSTILE.replace("/", "-")
    finding = replace(SEEN.findings[0], reason=HOSTILE)
    report = replace(
        SEEN,
        header=StudyHeader(**{one.name: HOSTILE for one in fields(StudyHeader) if one.type is str}),
        findings=(finding,),
        second_reading_reason=HOSTILE,
        models={HOSTILE: HOSTILE, "edge": HOSTILE},
        changes=(replace(CHANGE, version=1, text=HOSTILE),),
    )
    key = site.add(name, report=report)
    reason = {"kind": HOSTILE, "reason": HOSTILE, "file": HOSTILE}
    bad = site.add("bad", step=Step.QUARANTINED, report=None, reason=reason)
    put(site.folders.inbox, f"in {name}", done=False)
    for path in ("/", f"/study/{key}", f"/study/{key}/view", f"/study/{bad}", "/drift"):
        text = visit.get(path).text
        assert "<img src=x" not in text
        assert "<script>alert" not in text
        assert "62615533" not in text
        if path != "/drift":
            assert "&lt;script&gt;alert(2)&lt;/script&gt;" in text


def test_paths_lead_to_files_of_the_report_alone(site: Site, visit: Visit) -> None:
    key = site.add("a")
    (site.folders.outbox / "a" / "secret.jpg").write_bytes(b"x")
    (site.folders.outbox / "a" / "finding_07.jpg").symlink_to("/etc/passwd")
    for path in (
        f"/study/{key}/picture/..%2F..%2Fstate%2Fspool.sqlite3",
        f"/study/{key}/picture/secret.jpg",
        f"/study/{key}/picture/report.html",
        f"/study/{key}/picture/finding_07.jpg",
        f"/study/{key}/report/2",
        f"/study/{key}/report/-1",
        f"/study/{key}/report/..",
        "/study/../../etc/passwd",
        f"/study/{'g' * 32}",
        f"/study/{key.upper()}X",
        "/static/../pages.py",
        "/static/%2e%2e/pages.py",
        f"/study/{key}/slice/axial/-1",
        f"/study/{key}/slice/oblique/0",
    ):
        server = http.client.HTTPConnection(visit.client.base_url.netloc.decode())
        server.request("GET", path)  # as it is: other clients resolve the dots
        assert server.getresponse().status == 404, path
        server.close()
    assert visit.get(f"/study/{key}/picture/overview.jpg").headers["content-type"] == "image/jpeg"


def test_a_report_of_another_study_in_the_folder_is_not_shown(site: Site, visit: Visit) -> None:
    key, other = site.add("a"), site.add("b")
    report = site.folders.outbox / "a" / "report.json"
    report.write_text(report.read_text().replace(key, other))
    assert "gone or damaged" in visit.get(f"/study/{key}").text
    report.write_text('{"study_key": "' + key)
    assert "gone or damaged" in visit.get(f"/study/{key}").text
    assert visit.get("/").status_code == 200


def test_versions_and_changes_of_a_report(site: Site, visit: Visit) -> None:
    key = site.add("a", report=SEEN)
    second = replace(SEEN, study_key=key, version=2, changes=(CHANGE,))
    write_version(second, {}, site.folders.outbox / "a")
    text = visit.get(f"/study/{key}").text
    assert "finding 4 is new" in text
    assert "the first report" in text
    for number in (1, 2):
        page = visit.get(f"/study/{key}/report/{number}")
        assert f"version {number}<br>" in page.text


def test_a_refused_study_is_put_back(site: Site, visit: Visit) -> None:
    key = site.add("a", step=Step.QUARANTINED, report=REJECTED)
    gone = site.add("gone", step=Step.QUARANTINED, report=REJECTED)
    shutil.rmtree(site.folders.quarantine / gone / "study")
    assert "slice 12 of 100 is missing" in visit.get(f"/study/{key}").text
    assert visit.get("/").text.count("/requeue") == 1
    answer = visit.post("/requeue", {"study": key, "token": visit.token()})
    assert answer.headers["location"] == "/?note=requeued"
    assert len(list((site.folders.inbox / "a").iterdir())) == CT.count
    assert recorded(site, Event.REQUEUED) == {"study_key": key, "name": "a", **ANYONE}
    text = visit.get("/?note=requeued").text
    assert "back in the inbox" in text
    assert "/requeue" not in text


def test_a_study_that_cannot_be_put_back_says_why(site: Site, visit: Visit) -> None:
    key = site.add("a", step=Step.QUARANTINED, report=None)
    token = visit.token()
    put(site.folders.inbox, "a")
    answer = visit.post("/requeue", {"study": key, "token": token})
    assert answer.status_code == 409
    assert "the inbox has another of this name" in answer.text
    assert visit.post("/requeue", {"study": "0" * 31, "token": token}).status_code == 404


def test_deliveries_are_shown_and_sent_again_where_there_are_some(site: Site, visit: Visit) -> None:
    assert "Results sent" not in visit.get("/").text
    key = site.add("a", report=SEEN)
    form = {"study": key, "target": "pacs", "token": visit.token(f"/study/{key}")}
    assert visit.post("/deliveries/resend", form).status_code == 404
    site.give_up(key, f"refused {HOSTILE}")
    panel = deliveries_panel(site_of(site.with_target()))
    with visiting(site.open_app(panels=[panel])) as other:
        text = other.get("/").text
        assert "Results sent" in text
        assert "Given up" in text
        assert "Segmentation Storage" in text
        assert "<script>alert" not in text
        form["token"] = other.token()
        answer = other.post("/deliveries/resend", form)
        assert answer.headers["location"] == "/?note=deliveries.resend"
        what = {"study_key": key, "versions": [1], "targets": ["pacs"]}
        assert recorded(site, Event.RESENT) == {**what, **ANYONE}
        text = other.get("/?note=deliveries.resend").text
        assert "The results are sent again." in text
        assert "Given up" not in text
        refused = other.post("/deliveries/resend", {**form, "target": "x"})
        assert refused.status_code == 409
        assert "They cannot be sent again: x: no such target" in refused.text
        assert other.post("/deliveries/other", form).status_code == 404


def test_the_page_of_a_study_says_where_its_results_are(site: Site, visit: Visit) -> None:
    """By target and version; those of another study are not there."""
    key, other = (site.add(name, report=SEEN) for name in "ab")
    text = visit.get(f"/study/{key}").text
    assert "In the outbox of this machine: <strong>a</strong>" in text
    assert "Nothing of this study is sent" in text
    with open_store(site.folders.state / DATABASE, ["pacs", "web"]) as store:
        exports = store.extension(ExportStore)
        exports.adopt(other, (1,))
        exports.adopt(key, (1, 2, 3, 4))
        one, two, three, _ = exports.of(key)
        exports.made(one, sent=["pacs"])
        exports.made(two)
        exports.not_made(three, f"no object {HOSTILE}", is_fault=True)
        exports.ended(exports.deliveries(DeliveryStep.SENDING)[0], DeliveryStep.DEAD, "it is full")
    with visiting(site.open_app()) as late:
        text = late.get(f"/study/{key}").text
    rows = re.findall(r"<tr>(.*?)</tr>", text.split('id="results"')[1].split("</section>")[0], re.S)
    found = [[re.sub("<[^>]*>", " ", cell).split() for cell in row.split("</td>")] for row in rows]
    seen = [(" ".join(cells[0]), *cells[1], " ".join(cells[2])) for cells in found[1:]]
    assert seen == [
        ("every target", "4", "being made"),
        ("every target", "3", "not made"),
        ("pacs", "2", "pending"),
        ("web", "2", "pending"),
        ("pacs", "1", "has them"),
        ("web", "1", "dead letter"),
    ]
    assert "it is full" in rows[6]
    assert 'name="target" value="web"' in rows[6]
    assert [row.count("resend") for row in rows] == [0] * 6 + [1]
    assert "<script>alert" not in text


def test_lists_name_patients_first_and_the_trail_has_whom_they_show(site: Site) -> None:
    pending = site.add("pending-folder", report=replace(SEEN, status=Status.PROVISIONAL))
    dead = site.add("dead-folder", report=replace(SEEN, header=StudyHeader("P9", "Roe^Ann")))
    sql(site.folders.state / DATABASE,
        "INSERT INTO pending VALUES (?, 'pending', 1, 0, 3, 7200.0, 'gone', '')",
        values=(pending,))  # fmt: skip
    for number in range(25):  # on the first page of the latest studies is neither
        site.add(f"later {number}")
    site.give_up(dead, "refused")
    with visiting(site.open_app(panels=[deliveries_panel(site_of(site.with_target()))])) as late:
        text = late.get("/").text
    for name, folder in (("Doe Jane", "pending-folder"), ("Roe Ann", "dead-folder")):
        assert text.index(f">{name}</a>") < text.index(f'<span class="soft">{folder}</span>')
    (listed,) = [one.fields["studies"] for one in site.trail() if one.event == Event.VIEWED]
    assert {pending, dead} <= set(listed)


def test_slices_are_the_study_s_own_voxels(site: Site, volumes: Volumes, visit: Visit) -> None:
    """In all planes as they are displayed: head up; the marks lie in the same voxels."""
    key = site.add("a", report=SEEN)
    token = visit.token(f"/study/{key}")
    assert visit.get(f"/study/{key}/volume").json()["state"] == "closed"
    assert visit.post(f"/study/{key}/volume").status_code == 403
    opening = visit.post(f"/study/{key}/volume", **{"x-form-token": token})
    assert opening.json()["state"] == "reading"
    volumes.wait()
    answer = visit.get(f"/study/{key}/volume").json()
    assert answer["state"] == "ready"
    hu = CT.hu()
    assert answer["shape"] == list(hu.shape)
    assert answer["images"][:3] == [1, 2, 3]
    assert [(m["number"], m["possible"]) for m in answer["marks"]] == [(1, False), (2, True)]
    assert answer["marks"][0]["index"] == [6.0, 20.0, 12.0]
    expected = {"axial": hu[5], "coronal": hu[::-1, 7], "sagittal": hu[::-1, :, 9]}
    index = {"axial": 5, "coronal": 7, "sagittal": 9}
    for plane, truth in expected.items():
        got = visit.get(f"/study/{key}/slice/{plane}/{index[plane]}")
        shape = int(got.headers["x-rows"]), int(got.headers["x-columns"])
        np.testing.assert_array_equal(np.frombuffer(got.content, "<i2").reshape(shape), truth)
    assert visit.get(f"/study/{key}/slice/axial/{CT.count}").status_code == 404
    # once its files are gone, so are its voxels, and the page says so
    (site.folders.done / key).rename(site.root / "elsewhere")
    gone = visit.get(f"/study/{key}/volume").json()
    assert gone["state"] == "failed"
    assert "removed from this machine" in gone["reason"]
    assert visit.get(f"/study/{key}/slice/axial/5").status_code == 404
    assert list(site.folders.viewer.glob(f"{key}*")) == []
    assert "were removed" in visit.get(f"/study/{key}").text


def test_a_database_that_does_not_answer_is_said(site: Site, visit: Visit) -> None:
    (site.folders.state / DATABASE).rename(site.root / "moved")
    answer = visit.get("/")
    assert answer.status_code == 503
    assert "does not answer now" in answer.text


def test_the_page_neither_waits_for_the_writer_nor_holds_it_up(site: Site, visit: Visit) -> None:
    """What the user has not seen yet cannot be recorded meanwhile, and is not shown."""
    key = site.add("a")
    assert visit.get("/").status_code == 200
    with site.writing() as writer:
        writer.execute("UPDATE studies SET attempts = 2")
        assert "Latest studies" in visit.get("/").text
        refused = visit.get(f"/study/{key}")
        assert refused.status_code == 503
        assert "views cannot be recorded in the audit trail" in refused.text
        fetched = visit.get(f"/study/{key}/report/1", **{"sec-fetch-dest": "empty"})
        assert fetched.text.startswith("Nothing is shown now")
    assert visit.get(f"/study/{key}").status_code == 200


def test_drift_is_shown_by_measure_and_as_an_alarm(site: Site, visit: Visit) -> None:
    """Too few studies are no comparison."""
    assert "No study has been read yet" in visit.get("/drift").text
    with site.store() as store:
        for seen in (*studies(BASELINE, 0), *studies(MIN_RECENT, 1, uncertain=20.0)):
            put_drift(store.database, seen, "")
    assert "Alarm" in visit.get("/").text
    text = visit.get("/drift").text
    levels = re.findall(r'data-label="Level"><span class="tag \w+">(\w+)<', text)
    assert levels == ["steady", "alarm", *["steady"] * 4]
    assert "watch from 0.1, alarm from 0.25" in text
    assert "findings of the edge alone" in text


def test_drift_of_the_images_is_shown_before_that_of_the_candidates(
    site: Site, visit: Visit
) -> None:
    with site.store() as store:
        for seen in (*images(BASELINE, 0), *images(LAST_IMAGES, 1, offset_hu=50.0)):
            put_drift(store.database, seen, "")
    text = visit.get("/drift").text
    rows = re.findall(r'data-label="Measure">([\w ]+)[^$]*?class="tag \w+">(\w+)<', text)
    assert ("air around the patient", "alarm") in rows
    assert len(rows) == 5
    assert "studies outside 1.00" in text


def test_long_lists_are_cut_into_pages_that_are_counted(site: Site) -> None:
    """Each has its own place, which the links of the others leave; the last page is not passed."""
    pending = "INSERT INTO pending VALUES (?, 'pending', 1, 0, 3, ?, 'the cloud is gone', '')"
    with open_store(site.folders.state / DATABASE, ["pacs"]) as store:
        exports = store.extension(ExportStore)
        for number in range(53):
            step, name = Step.QUARANTINED if number < 52 else Step.DONE, f"r{number:02}"
            key = f"{number:032x}"
            store.adopt(key, step, (name,), iter([name]), {})
            store.adopt(f"1{number:031x}", Step.CLAIMED, ("w",), iter([f"w{number}"]), {})
            store.database.execute(pending, (key, float(number)))
            (site.folders.quarantine / key / "study" / name).mkdir(parents=True)
            exports.adopt(key, (1,))
            for export in exports.of(key):
                exports.made(export)
        for one in exports.deliveries(DeliveryStep.SENDING):
            exports.ended(one, DeliveryStep.DEAD, f"gone {int(one.study_key, 16):02}")
    put(site.folders.inbox, "arrives", done=False)
    panel = deliveries_panel(site_of(site.with_target()))
    with visiting(site.open_app(panels=[panel])) as visit:
        first = visit.get("/").text
        names = {"queue": 54, "refused": 52, "pending": 53, "dead": 53}
        for name, count in names.items():
            assert f"1 to 50 of {count}<" in first
            assert f'<a href="?{name}=2#{name}">Next</a>' in first
            assert f'id="{name}"' in first
        assert re.findall(r'<dd class="big num">(\d+)</dd>', first) == ["54", "53", "52"]
        later = visit.get("/?queue=2&refused=2&dead=9&note=requeued").text
        assert ("arrives" in first, "arrives" in later) == (False, True)
        assert ("r01</a>" in later, "gone 02" in later, "gone 52" in later) == (True, True, False)
        assert "51 to 53 of 53<" in later
        assert '<a href="?queue=1&amp;refused=2&amp;dead=9#queue">Previous</a>' in later
        assert later.count(">Next</a>") == 1  # of the pending reads
        for odd in ("0", "-1", "x", "٣", "9" * 30):
            assert visit.get(f"/?studies={odd}&refused={odd}").status_code == 200


def test_a_study_names_its_series_and_has_dashes_for_what_was_not_read(
    site: Site, visit: Visit
) -> None:
    """No number stands where nothing was read: not in the list, and not on its own page."""
    header = replace(SEEN.header, series_description="LUNG 1.0 <b>")
    read = site.add("read", report=replace(SEEN, header=header))
    why = "the rule scouts ignores it"
    ignored = replace(REPORT, findings=(), possible=(), status=Status.IGNORED,
                      second_reading_reason=why)  # fmt: skip
    keys = [site.add("ignored", report=ignored), site.add("lost", report=None)]
    rows = visit.get("/").text.split('id="studies"')[1].split("<tr>")

    def cells(key: str) -> dict[str, str]:
        (row,) = [row for row in rows if f'"/study/{key}/view"' in row]
        found = re.findall(r'data-label="(\w[\w ]*)"[^>]*>(.*?)</td>', row, re.DOTALL)
        return {label: re.sub("<[^>]+>", "", cell).strip() for label, cell in found}

    assert "LUNG 1.0 &lt;b&gt;" in cells(read)["Series"]
    assert cells(read)["Findings"] == "1"
    for key in keys:
        found = cells(key)
        blank = {found[one] for one in ("Findings", "Possible", "Second reading", "Time")}
        assert blank == {"\N{EN DASH}"}, key
    assert cells(keys[1])["Series"] == "\N{EN DASH}"
    for path in (f"/study/{keys[0]}", f"/study/{keys[0]}/view"):
        text = visit.get(path).text
        assert "No finding" not in text
        assert "edge only" not in text
    assert why in visit.get(f"/study/{keys[0]}").text


def test_a_version_that_is_not_made_is_shown_and_can_be_made_again(site: Site) -> None:
    with open_store(site.folders.state / DATABASE, ["pacs"]) as store:
        store.adopt("1" * 32, Step.DONE, ("a",), iter(["a"]), {})
        exports = store.extension(ExportStore)
        exports.adopt("1" * 32, (1,))
        exports.not_made(exports.making()[0], "sr cannot be made", is_fault=True)
        panel = deliveries_panel(site_of(site.with_target()))
        with visiting(site.open_app(panels=[panel])) as visit:
            page = visit.get("/").text
            assert "sr cannot be made" in page
            assert ">not made</td>" in page
            assert 'name="version" value="1"' in page
            form = {"study": "1" * 32, "target": "", "version": "1"}
            with pytest.raises(EdgeError, match="no report"):  # its files are not here
                panel.actions["resend"].run(form, Person("Ann"))
