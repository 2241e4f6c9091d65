"""What the service answers, and what it refuses."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeprec
from deeprec.data import Interactions
from deeprec.http import Engine, EventStore, Limits, Service, ServiceOptions, create_app
from deeprec.http.engine import Ask
from deeprec.http.guard import Guard
from deeprec.http.run import is_loopback, run
from deeprec.pipeline import Pipeline


def _items(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [each["item_id"] for each in answer.json()["items"]]


def test_a_user_gets_what_the_pipeline_says(serving: Any, folder: Path) -> None:
    client, made = serving(folder), Pipeline.load(folder)
    for user in (1, 2, 3):
        assert _items(client.get(f"/v1/recommend/{user}?k=7")) == made.recommend([user], 7)["item_id"].to_list()
    body = {"user_id": 1, "k": 5, "allow": list(range(1, 100)), "deny": [1, 2, 3], "exclude_seen": False}
    expected = made.recommend([1], 5, allow=list(range(1, 100)), deny=[1, 2, 3], exclude_seen=False)
    assert _items(client.post("/v1/recommend", json=body)) == expected["item_id"].to_list()


def test_a_model_folder_is_served_as_the_model_recommends(serving: Any, model_folder: Path) -> None:
    client, model = serving(model_folder), deeprec.load(model_folder)
    for user in (1, 5, 9):
        assert _items(client.get(f"/v1/recommend/{user}?k=8")) == model.recommend([user], 8)["item_id"].to_list()
    history = [3, 4, 5]
    answer = client.post("/v1/recommend", json={"history": history, "k": 8})
    assert _items(answer) == model.recommend_for_history(history, 8)["item_id"].to_list()
    pairs = [[1, 2], [3, 4]]
    scores = client.post("/v1/score", json={"pairs": pairs}).json()["scores"]
    assert scores == pytest.approx(model.score([tuple(pair) for pair in pairs]).tolist(), abs=1e-5)
    near = _items(client.get("/v1/similar/3?k=4"))
    assert near == model.similar_items([3], 4)["similar_item_id"].to_list()


def test_a_sequence_model_reads_what_was_done_last(serving: Any, data: Interactions, tmp_path: Path) -> None:
    options = {"epochs": 1, "dim": 8} if "dim" in deeprec.models.SASRec().config.__dict__ else {"epochs": 1}
    model = deeprec.models.SASRec(**options).fit(data, protocol="next-item", baselines=False)
    client = serving(model.save(tmp_path / "sasrec"))
    first = _items(client.get("/v1/recommend/1?k=5"))
    client.post("/v1/feedback", json={"events": [{"user_id": 1, "item_id": first[0]}]})
    assert first[0] not in _items(client.get("/v1/recommend/1?k=5"))


def test_events_are_visible_to_the_next_request(serving: Any, folder: Path) -> None:
    client = serving(folder)
    before = _items(client.get("/v1/recommend/7?k=5"))
    events = [{"user_id": "7", "item_id": item, "kind": "like"} for item in before[:2]]
    assert client.post("/v1/feedback", json={"events": events}).status_code == 201
    assert not set(before[:2]) & set(_items(client.get("/v1/recommend/7?k=5")))
    assert _items(client.get("/v1/users/7/events")) == [str(item) for item in before[:2]]
    assert client.delete("/v1/users/7/events").json() == {"forgotten": 2}
    assert _items(client.get("/v1/recommend/7?k=5")) == before


def test_somebody_new_becomes_known_by_their_events(serving: Any, folder: Path) -> None:
    client, made = serving(folder), Pipeline.load(folder)
    nobody = client.get("/v1/recommend/nobody?k=5").json()
    assert (nobody["is_known"], nobody["fallback"], len(nobody["items"])) == (False, "unknown", 5)
    client.post("/v1/feedback", json={"events": [{"user_id": "nobody", "item_id": item} for item in (4, 8)]})
    known = client.get("/v1/recommend/nobody?k=5").json()
    assert (known["is_known"], known["fallback"]) == (True, None)
    assert [each["item_id"] for each in known["items"]] == made.recommend_for_history([4, 8], 5)["item_id"].to_list()


def test_an_event_with_the_same_id_is_kept_once(serving: Any, folder: Path) -> None:
    client = serving(folder)
    event = {"user_id": 1, "item_id": 2, "id": "a"}
    assert client.post("/v1/feedback", json={"events": [event, event]}).json() == {"kept": 1}
    assert client.post("/v1/feedback", json={"events": [event]}).json() == {"kept": 0}
    assert client.get("/v1/info").json()["events"] == 1


def test_a_history_of_unknown_items_gets_what_is_popular(serving: Any, folder: Path) -> None:
    answer = serving(folder).post("/v1/recommend", json={"history": ["x", 10**12], "k": 4})
    assert len(_items(answer)) == 4
    assert answer.json()["unknown_items"] == ["x", str(10**12)]
    assert answer.json()["fallback"] == "unknown"


def test_items_that_cannot_be_had_come_to_nobody(serving: Any, folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "events.sqlite"
    client = serving(folder, state=state)
    before = _items(client.get("/v1/recommend/3?k=5"))
    client.post("/v1/availability", json={"items": before[:1], "available": False})
    assert before[0] not in _items(client.get("/v1/recommend/3?k=5"))
    client.__exit__(None, None, None)
    again = EventStore(state)
    assert again.unavailable() == {str(before[0])}
    again.close()


def test_it_says_why(serving: Any, folder: Path) -> None:
    items = serving(folder).get("/v1/recommend/3?k=5&explain=true").json()["items"]
    assert all(each["sources"] and {"because", "features", "is_explored"} <= each.keys() for each in items)


def test_every_stage_is_shown(serving: Any, folder: Path) -> None:
    client = serving(folder)
    answer = client.get("/v1/recommend/3?k=5&explain=true").json()
    names = ["source: ease", "source: popularity", "source: item-to-item", "ranking: fusion"]
    assert [stage["stage"] for stage in answer["stages"]] == names
    assert answer["stages"][-1]["items"] == [{"item_id": i["item_id"], **_columns(i)} for i in answer["items"]]


def _columns(item: Any) -> Any:
    kept = {"item_id", "score", "sources", "because", "features", "is_explored"}
    return {name: value for name, value in item.items() if name not in kept}


def test_a_history_is_that_of_the_data_and_then_the_events(serving: Any, folder: Path) -> None:
    client, made = serving(folder), Pipeline.load(folder)
    client.post("/v1/feedback", json={"events": [{"user_id": 3, "item_id": 140}]})
    met = made.item_ids.decode(made.state.history.lists.taken(made.user_ids.encode([3])).items).tolist()
    assert _items(client.get("/v1/users/3/history?last=4")) == [*met[-3:], "140"]


def test_the_page_is_one_file_that_asks_nobody_else(serving: Any, folder: Path) -> None:
    answer = serving(folder).get("/")
    assert answer.status_code == 200
    assert "text/html" in answer.headers["content-type"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/recommend/1?k=0", None, 422, "query.k"),
        ("GET", "/v1/recommend/1?k=1000000000", None, 422, "k must be <= 200"),
        ("GET", "/v1/recommend/1?k=ten", None, 422, "query.k"),
        ("POST", "/v1/recommend", {"k": 3}, 422, "user_id or history is needed"),
        ("POST", "/v1/recommend", {"user_id": 1, "kk": 3}, 422, "body.kk"),
        ("POST", "/v1/recommend", {"user_id": 1, "k": 10**30}, 422, "k must be"),
        ("POST", "/v1/recommend", {"user_id": [1]}, 422, "user_id"),
        ("POST", "/v1/recommend", [], 422, "body"),
        ("GET", "/v1/similar/none?k=3", None, 404, "unknown item"),
        ("POST", "/v1/score", {"pairs": [[1]]}, 422, "pairs"),
        ("POST", "/v1/feedback", {"events": []}, 422, "events"),
        ("POST", "/v1/feedback", {"events": [{"user_id": 1}]}, 422, "item_id"),
        ("POST", "/v1/reload", {"folder": "none"}, 409, "still serving what was there"),
        ("POST", "/v1/reload", {"folder": "/etc"}, 409, "folder must lie below"),
        ("POST", "/v1/reload", {"folder": "../.."}, 409, "folder must lie below"),
        ("POST", "/v1/rollback", None, 409, "nothing to roll back to"),
        ("GET", "/v2/recommend", None, 404, "Not Found"),
        ("PUT", "/v1/recommend", None, 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    serving: Any, folder: Path, method: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = serving(folder).request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.text


@pytest.mark.parametrize(
    "content",
    [
        rb'{"events": [{"user_id": "\ud800", "item_id": 1}]}',
        b'{"events": [{"user_id": 1' + b"0" * 5000 + b', "item_id": 1}]}',
        b'{"events": [{"user_id": 1, "item_id": 1, "time": 1e300}]}',
        b'{"events": [{"user_id": true, "item_id": null}]}',
    ],
)
def test_odd_events_are_refused(serving: Any, folder: Path, content: bytes) -> None:
    answer = serving(folder).post("/v1/feedback", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"user_id": NaN}', b"[" * 100_000, b'{"user_id": 1e999}']
)
def test_what_is_no_json_is_refused(serving: Any, folder: Path, content: bytes) -> None:
    answer = serving(folder).post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


def test_a_request_of_ten_megabytes_is_refused(serving: Any, folder: Path) -> None:
    client = serving(folder)
    assert client.post("/v1/recommend", content=b"x" * (10 << 20)).status_code == 413

    def pieces() -> Any:  # without a length
        for _ in range(160):
            yield b"x" * (1 << 16)

    assert client.post("/v1/recommend", content=pieces()).status_code == 413
    assert client.get("/v1/recommend/1").status_code == 200


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20))
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
FIELDS = st.sampled_from(
    ["user_id", "history", "k", "allow", "deny", "explain", "exclude_seen", "pairs", "events", "items", "available"]
)
PATHS = ("/v1/recommend", "/v1/score", "/v1/feedback", "/v1/availability")


def test_a_thousand_malformed_requests_are_no_fault_of_the_server(serving: Any, folder: Path) -> None:
    client = serving(folder)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(PATHS), st.dictionaries(FIELDS, VALUES, max_size=5) | VALUES)
    def ask(path: str, body: Any) -> None:
        answer = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, body, answer.text)

    ask()

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(min_size=1, max_size=30), st.text(max_size=10))
    def get(user: str, k: str) -> None:
        from urllib.parse import quote

        user = user.encode("utf-8", "replace").decode()
        k = k.encode("utf-8", "replace").decode()
        assert client.get(f"/v1/recommend/{quote(user, safe='')}?k={quote(k, safe='')}").status_code < 500

    get()


# -- guards ------------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_everywhere_but_for_health(serving: Any, folder: Path) -> None:
    client = serving(folder, limits=Limits(api_key="secret"))
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    for path in ("/v1/recommend/1", "/metrics", "/openapi.json", "/v1/info"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": "secrets"}).status_code == 401
        assert client.get(path, headers={"x-api-key": "secret"}).status_code == 200
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_client_has_a_rate(serving: Any, folder: Path) -> None:
    client = serving(folder, limits=Limits(requests_per_second=0.01, burst=3))
    assert [client.get("/v1/recommend/1").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = client.get("/v1/recommend/1")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/health").status_code == 200


def test_tokens_come_back_with_time_and_clients_are_bounded() -> None:
    clock = [0.0]
    guard = Guard(None, Limits(requests_per_second=2, burst=2), lambda *_: None, lambda: clock[0])  # type: ignore[arg-type]
    assert [guard._wait("a", 2) for _ in range(3)] == [0, 0, 0.5]
    clock[0] = 0.5
    assert guard._wait("a", 2) == 0
    assert guard._wait("b", 2) == 0
    for number in range(10_050):
        guard._wait(str(number), 2)
    assert len(guard._tokens) == 10_000


def test_others_are_let_in_with_a_key_alone() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [True] * 3 + [
        False
    ] * 2
    with pytest.raises(ValueError, match="lets others in; give a key"):
        run(None, host="0.0.0.0", limits=Limits())  # type: ignore[arg-type]


# -- time-outs, queues, exchange ---------------------------------------------------------------------------------------


def test_a_late_answer_is_what_is_popular(serving: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serving(folder, timeout=0.05)
    usual = Engine.recommend
    monkeypatch.setattr(Engine, "recommend", lambda *args: time.sleep(0.3) or usual(*args))
    answer = client.get("/v1/recommend/1?k=5").json()
    assert answer["fallback"] == "timeout"
    assert len(answer["items"]) == 5
    met = client.app.state.service.engine.pipeline.state.history.lists.taken([0]).items
    seen = {client.app.state.service.engine.items[item] for item in met.tolist()}
    assert not seen & {each["item_id"] for each in answer["items"]}
    assert 'deeprec_fallbacks_total{why="timeout"} 1.0' in client.get("/metrics").text


def test_a_full_queue_says_so(serving: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serving(folder, max_waiting=1, max_batch=1)
    gate = threading.Event()
    usual = Engine.recommend
    monkeypatch.setattr(Engine, "recommend", lambda *args: gate.wait(20) and usual(*args))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.get("/v1/recommend/1").status_code)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for _ in range(500):
        if len(answers) >= 3:
            break
        time.sleep(0.01)
    assert set(answers) == {503}
    gate.set()
    for thread in threads:
        thread.join()
    assert answers.count(200) >= 1


def test_requests_that_wait_are_computed_together(folder: Path) -> None:
    service = Service(folder, EventStore(":memory:"), ServiceOptions(max_batch=8, warm_up=5))
    service.start()
    gate, sizes = threading.Event(), []
    usual = service.batcher._compute
    service.batcher._compute = lambda asks: (gate.wait(10), sizes.append(len(asks)), usual(asks))[2]
    futures = [service.batcher.submit(Ask(str(user), k=5)) for user in range(1, 18)]
    gate.set()
    listings = [future.result(20) for future in futures]
    assert max(sizes) == 8
    assert sum(sizes) == 17
    made = Pipeline.load(folder)
    for user, listing in zip(range(1, 18), listings, strict=True):
        assert listing.items == made.recommend([user], 5)["item_id"].to_list()
    service.close()


def test_one_request_that_fails_leaves_the_others(folder: Path) -> None:
    service = Service(folder, EventStore(":memory:"), ServiceOptions(warm_up=5))
    service.start()
    gate = threading.Event()
    usual = service.batcher._compute

    def compute(asks: Any) -> Any:
        gate.wait(10)
        if any(ask.user == "bad" for ask in asks):
            raise RuntimeError("bad")
        return usual(asks)

    service.batcher._compute = compute
    futures = {user: service.batcher.submit(Ask(user)) for user in ("1", "bad", "2")}
    gate.set()
    assert len(futures["1"].result(20).items) == len(futures["2"].result(20).items) == 10
    with pytest.raises(RuntimeError, match="bad"):
        futures["bad"].result(20)
    service.close()


def test_a_new_model_comes_and_goes_without_a_failed_request(serving: Any, folder: Path, model_folder: Path) -> None:
    client = serving(folder)
    first = client.get("/v1/info").json()["version"]
    ends, statuses = threading.Event(), []

    def ask() -> None:
        user = 1
        while not ends.is_set():
            statuses.append(client.get(f"/v1/recommend/{user}?k=5").status_code)
            user = user % 200 + 1

    thread = threading.Thread(target=ask)
    thread.start()
    for place in [model_folder, folder] * 5:
        assert client.post("/v1/reload", json={"folder": str(place)}).status_code == 200
    back = client.post("/v1/rollback").json()
    ends.set()
    thread.join()
    assert back["kind"] == "ease"
    assert client.get("/v1/info").json()["version"] == back["version"] != first
    assert set(statuses) == {200}
    assert len(statuses) >= 10


def test_nothing_is_ready_before_the_warm_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    usual = Engine.load.__func__
    monkeypatch.setattr(Engine, "load", classmethod(lambda *args, **options: gate.wait(20) and usual(*args, **options)))
    service = Service(folder, EventStore(":memory:"), ServiceOptions(warm_up=5))
    with TestClient(create_app(service)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert client.get("/v1/recommend/1").status_code == 503
        gate.set()
        for _ in range(500):
            if client.get("/ready").status_code == 200:
                break
            time.sleep(0.02)
        assert client.get("/v1/recommend/1").status_code == 200


def test_metrics_count_and_give_quantiles(serving: Any, folder: Path) -> None:
    client = serving(folder)
    for user in range(1, 21):
        client.get(f"/v1/recommend/{user}")
    text = client.get("/metrics").text
    assert 'deeprec_requests_total{route="/v1/recommend/{user_id}",status="200"} 20.0' in text
    assert 'deeprec_request_quantile_seconds{quantile="0.99",route="/v1/recommend/{user_id}"}' in text
    assert "deeprec_ready 1.0" in text
    assert "deeprec_model{" in text


def test_openapi_names_every_path(serving: Any, folder: Path) -> None:
    paths = serving(folder).get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/recommend/{user_id}", "/v1/similar/{item_id}", "/v1/score", "/v1/feedback"} <= set(
        paths
    )


def test_a_click_model_alone_is_refused(tmp_path: Path, data: Interactions) -> None:
    import polars as pl

    rows = pl.DataFrame({"a": ["x", "y"] * 100, "label": [0, 1, 1, 0] * 50})
    schema = deeprec.data.FeatureSchema((deeprec.data.Categorical("a"),))
    place = deeprec.models.LR(epochs=1).fit(rows, schema, baselines=False).save(tmp_path / "lr")
    with pytest.raises(ValueError, match="a model is needed that recommends items to a user, got lr"):
        Engine.load(place)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch must be >= 1, got 0"):
        ServiceOptions(max_batch=0)
    with pytest.raises(ValueError, match="timeout must be > 0"):
        ServiceOptions(timeout=0)
    with pytest.raises(ValueError, match="burst"):
        Limits(burst=0)
