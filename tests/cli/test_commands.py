"""The commands as a user types them, on the small synthetic model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import deeprec as package
from deeprec.cli import display, options, running
from deeprec.cli.app import _COMMANDS
from deeprec.evaluate import PROTOCOLS, read_card
from deeprec.train.loggers import NAMES

RESULTS = Path(__file__).resolve().parents[2] / "results"


def _error(done) -> str:
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_train_shows_epochs_figures_files_and_the_next_command(trained) -> None:
    out, printed = trained
    for expected in (
        "gmf epochs=2 factors=4",
        "120 users, 300 items",
        "99 seeded negatives",
        "epoch 1/2  loss 0.",
        "validation hr@10",
        "/s",
        "ndcg@10",
        "Written to",
        f"deeprec recommend {out} --user 1 -k 10",
        f"deeprec evaluate {out}",
    ):
        assert expected in printed
    written = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "card.json", "curves.png", "run.json", "titles.parquet"} <= written


def test_card_holds_what_the_issue_asks_for(trained) -> None:
    card = json.loads((trained[0] / "card.json").read_text())
    assert (card["model"], card["seed"]) == ("gmf", 1)
    assert card["config"]["factors"] == 4
    assert {"name", "sha256"} <= set(card["data"])
    assert card["protocol"]["negatives"] == "seeded"
    assert 0 <= card["metrics"]["hr@10"] <= 1
    assert {"seconds", "versions", "hardware"} <= set(card)


def test_evaluate_repeats_the_figures_of_the_card(trained, deeprec) -> None:
    done = deeprec("evaluate", trained[0], "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"] == pytest.approx(read_card(trained[0]).metrics)


def test_evaluate_by_another_protocol_keeps_the_held_out_rows(trained, deeprec) -> None:
    done = deeprec("evaluate", trained[0], "--protocol", "full", "protocol.cutoffs=5,10", "--json")
    found = json.loads(done.stdout)
    assert "hr@5" in found["metrics"]
    assert found["protocol"]["candidates"] == "all"
    assert found["protocol"]["seed"] == read_card(trained[0]).protocol["seed"]
    assert "Not comparable with the card" in deeprec("evaluate", trained[0], "--protocol", "full").output


def test_evaluate_on_other_data_is_refused(trained, deeprec) -> None:
    assert "SHA-256" in _error(deeprec("evaluate", trained[0], "--data", "synthetic"))


def test_recommend_lists_titles_for_several_users(trained, deeprec) -> None:
    done = deeprec("recommend", trained[0], "--user", 1, "--user", 2, "-k", 3)
    assert done.exit_code == 0, done.output
    assert "For user 1" in done.output
    assert "For user 2" in done.output
    assert "title" in done.output
    rows = json.loads(deeprec("recommend", trained[0], "-u", 1, "-u", 2, "-k", 3, "--json").stdout)
    assert [row["user_id"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row["rank"] for row in rows] == [1, 2, 3] * 2
    assert all(row["title"] for row in rows)


def test_recommend_serves_a_new_user_from_a_history(trained, deeprec) -> None:
    rows = json.loads(deeprec("recommend", trained[0], "--history", "1,2", "--history", "3", "-k", 4, "--json").stdout)
    assert len(rows) == 4
    assert not {1, 2, 3} & {row["item_id"] for row in rows}


def test_recommend_serves_many_histories_from_a_table(trained, deeprec, tmp_path) -> None:
    frame = pl.DataFrame({"session_id": ["b", "a", "b"], "item_id": [1, 2, 3], "timestamp": [9, 5, 1]})
    frame.write_csv(tmp_path / "events.csv")
    words = ("recommend", trained[0], "--histories", tmp_path / "events.csv", "-k", 300)
    done = deeprec(*words, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    met = {"a": {2}, "b": {1, 3}}
    for session, items in met.items():
        own = {row["item_id"] for row in rows if row["session_id"] == session}
        assert not own & items
        again = json.loads(deeprec(*words, "--json", "--include-seen").stdout)
        assert {row["item_id"] for row in again if row["session_id"] == session} == own | items
    written = deeprec(*words, "--output", tmp_path / "lists.parquet")
    assert f"{len(rows)} rows written" in written.output
    assert pl.read_parquet(tmp_path / "lists.parquet")["item_id"].to_list() == [row["item_id"] for row in rows]
    assert "For session b" in deeprec("recommend", trained[0], "--histories", tmp_path / "events.csv", "-k", 2).output
    frame.with_columns(item_id=pl.Series([1, 2, 99999])).write_csv(tmp_path / "events.csv")
    assert "99999" in _error(deeprec(*words))
    assert deeprec(*words, "--unknown", "skip").exit_code == 0


def test_recommend_takes_the_items_that_may_and_may_not_come(trained, deeprec, tmp_path) -> None:
    def listed(*words) -> list[int]:
        done = deeprec("recommend", trained[0], "-k", 100, "--json", *words)
        assert done.exit_code == 0, done.output
        return [row["item_id"] for row in json.loads(done.stdout)]

    left = listed("--user", 1)
    allowed, denied = sorted(left)[:9], sorted(left)[3:5]
    frame = pl.DataFrame({"price": 1, "item_id": allowed})
    frame.write_parquet(tmp_path / "allowed.parquet")
    frame.write_csv(tmp_path / "allowed.csv")
    frame.write_csv(tmp_path / "allowed.tsv", separator="\t")
    (tmp_path / "allowed.txt").write_text("\n".join(map(str, allowed)) + "\n\n")
    (tmp_path / "allowed").write_text("\r\n".join(map(str, allowed)))
    typed = ",".join(map(str, denied))
    expected = [item for item in left if item in allowed and item not in denied]
    for name in ("allowed.parquet", "allowed.csv", "allowed.tsv", "allowed.txt", "allowed"):
        assert listed("--user", 1, "--allow", tmp_path / name, "--deny", typed) == expected
    words = ("--deny", denied[0], "--deny", denied[1], "--allow", ",".join(map(str, allowed * 300)))
    assert listed("--user", 1, *words) == expected
    history = listed("--history", "1,2", "--allow", tmp_path / "allowed.txt", "--deny", denied[0])
    assert set(history) == set(allowed) - {1, 2, denied[0]}
    done = deeprec("recommend", trained[0], "--user", 1, "--allow", denied[0], "--deny", denied[0])
    assert "No item is left to recommend" in done.output
    frame.rename({"item_id": "movie"}).write_csv(tmp_path / "named.csv")
    for words, message in (
        (("--allow", tmp_path / "named.csv"), "--allow"),
        (("--allow", tmp_path / "named.csv"), "must have a column item_id, got price, movie; rename it"),
        (("--deny", tmp_path / "nowhere.csv"), "nowhere.csv"),
        (("--deny", "99999"), "deny: every item id must be among the"),
        (("--allow", "abc"), "whole numbers such as 1, got abc"),
    ):
        assert message in _error(deeprec("recommend", trained[0], "--user", 1, *words))


def test_recommend_writes_lists_for_all_users_and_goes_on(trained, deeprec, tmp_path) -> None:
    directory, _ = trained
    path = tmp_path / "lists.csv"
    done = deeprec("recommend", directory, "--all", "--output", path, "-k", 3)
    assert done.exit_code == 0, done.output
    assert f"360 rows written to {path}" in done.stdout
    frame = pl.read_csv(path)
    assert frame.columns == ["user_id", "rank", "item_id", "score"]
    few = tmp_path / "users.csv"
    pl.DataFrame({"user_id": [7, 999, 3]}).write_csv(few)
    words = ("recommend", directory, "--users", few, "-k", 3)
    assert "1 unknown: 999; pass unknown='popularity' or 'skip' (--unknown popularity)" in _error(deeprec(*words))
    assert json.loads(deeprec(*words, "--unknown", "skip", "--json").stdout)[0]["user_id"] == 7
    assert "For user 999, unknown: what is popular" in deeprec(*words, "--unknown", "popularity").output
    output = tmp_path / "some.jsonl"
    assert deeprec(*words, "--unknown", "popularity", "--output", output, "--resume").exit_code == 0
    assert pl.read_ndjson(output)["fallback"].to_list() == [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--all",), "--all goes with --output; "),
        (("--all", "--user", "1", "--output", "x.csv"), "one of --user ID, --users FILE, --all, --history"),
        (("--user", "1", "--resume"), "--resume goes with --output"),
        (("--history", "1", "--output", "x.csv"), "--output goes with --user or --users or --all"),
        (("--all", "--output", "x.csv", "--json"), "--json prints, --output FILE.jsonl writes"),
        (("--all", "--output", "x.txt"), "output must end in .parquet"),
        (("--user", "1", "--unknown", "popular"), "did you mean 'popularity'?"),
    ],
)
def test_options_of_recommend_that_do_not_fit_are_refused(trained, deeprec, words, message) -> None:
    assert message in _error(deeprec("recommend", trained[0], *words))


def test_damaged_titles_leave_the_ids(trained, deeprec, tmp_path) -> None:
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    (copy / "titles.parquet").write_bytes(b"no parquet")
    done = deeprec("recommend", copy, "--user", 1, "--json")
    assert done.exit_code == 0
    assert "title" not in json.loads(done.stdout)[0]


def test_figures_go_into_tables(trained, deeprec, tmp_path) -> None:
    directory, _ = trained
    rows, means = tmp_path / "rows.csv", tmp_path / "means.json"
    assert f"written to {rows}" in deeprec("evaluate", directory, "--table", rows).output
    deeprec("evaluate", directory, "--table", rows)
    other = deeprec("evaluate", directory, "protocol.ties=authors", "--table", rows, "--json")
    assert json.loads(other.stdout)["metrics"]
    frame = pl.read_csv(rows)
    assert frame["protocol"].to_list() == ["ncf", "ncf ties=authors"]
    assert frame["options"][0] == "epochs=2 batch_size=512 lr=0.005 patience=5 factors=4"
    assert frame["hr@10"][0] == read_card(directory).metrics["hr@10"]
    assert deeprec("compare", directory, "--table", means).exit_code == 0
    assert json.loads(means.read_text())[0]["hr@10"] == frame["hr@10"][0]
    assert "must end in .csv or .json" in _error(deeprec("evaluate", directory, "--table", tmp_path / "rows.txt"))


def test_a_recipe_trains_on_other_data_and_adds_a_row(deeprec, tmp_path, small) -> None:
    words = ("train", "--recipe", "ml-1m/gmf-32", "--data", "synthetic", *small, "epochs=1", "factors=4")
    out, rows = tmp_path / "run", tmp_path / "rows.csv"
    done = deeprec(*words, "--out", out, "--table", rows)
    assert done.exit_code == 0, done.output
    assert "recipe    ml-1m-ncf/gmf-32: hr@10 0.7" in done.output
    card = read_card(out)
    assert (card.model, card.seed, card.select, card.protocol["name"]) == ("gmf", 1, "ndcg@10", "ncf")
    assert card.config["factors"] == 4  # given
    assert card.config["l2"] == 0.0015  # of the recipe
    assert pl.read_csv(rows)["data"].to_list() == ["synthetic"]
    again = deeprec("train", "gmf", *words[1:], "--protocol", "full", "--seed", 0, "--out", tmp_path / "other")
    assert again.exit_code == 0, again.output
    card = read_card(tmp_path / "other")
    assert (card.seed, card.protocol["name"]) == (0, "full")


def test_a_recipe_reads_its_own_data_as_its_card_says(deeprec, tmp_path) -> None:
    if not os.environ.get("DEEPREC_DATA") or package.data.find("ml-1m") is None:
        pytest.skip("DEEPREC_DATA has no ml-1m")
    done = deeprec("train", "--recipe", "ml-1m-ranking/popularity", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    kept = read_card(RESULTS / "ml-1m-ranking" / "popularity" / "seed-1.json")
    card = read_card(tmp_path / "run")
    assert card.metrics == kept.metrics
    assert card.data["sha256"] == kept.data["sha256"]


def test_recipes_are_listed_and_wrong_ones_named(deeprec) -> None:
    assert "frappe-click/deepfm" in deeprec("recipes").output
    listed = {each["name"]: each for each in json.loads(deeprec("recipes", "--json").stdout)}
    assert listed["frappe-click/deepfm"]["figures"]["auc"] > 0.98
    assert "is one of deepfm, got gmf" in _error(deeprec("train", "gmf", "--recipe", "frappe/deepfm"))
    assert "did you mean 'frappe-click/deepfm'" in _error(deeprec("train", "--recipe", "frappe/depfm"))
    assert "a model or --recipe is needed" in _error(deeprec("train"))


def test_compare_shows_runs_and_spread_over_seeds(trained, deeprec, tmp_path, small) -> None:
    again = tmp_path / "again"
    assert deeprec("train", "gmf", "--protocol", "ncf", "--seed", 2, "--out", again,
                   "epochs=2", "factors=4", *small).exit_code == 0  # fmt: skip
    done = deeprec("compare", trained[0], again)
    assert done.exit_code == 0, done.output
    assert "mean and spread" in done.output
    assert "±" in done.output
    found = json.loads(deeprec("compare", trained[0], again, "--json").stdout)
    assert found["summary"][0]["seeds"] == [1, 2]


def test_compare_refuses_another_protocol(trained, deeprec, tmp_path) -> None:
    values = json.loads((trained[0] / "card.json").read_text())
    values["protocol"]["ties"] = "authors"
    other = tmp_path / "card.json"
    other.write_text(json.dumps(values))
    assert "protocol ties: 'pessimistic' / 'authors'" in _error(deeprec("compare", trained[0], other))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "neufm"), "did you mean 'neumf'"),
        (("train", "neumf", "--protocol", "nfc"), "did you mean 'ncf'"),
        (("train", "neumf", "--data", "sinthetic"), "did you mean 'synthetic'"),
        (("train", "neumf", "epohcs=3"), "did you mean 'epochs'"),
        (("train", "neumf", "epochs=0"), "epochs"),
        (("train", "neumf", "data.nun_users=3"), "did you mean 'num_users'"),
        (("train", "neumf", "protocol.ties=autors"), "did you mean 'authors'"),
        (("train", "neumf", "--config", "nowhere.toml"), "no file nowhere.toml"),
        (("train", "neumf", "--data", "nowhere.csv"), "nowhere.csv"),
        (("models", "gmff"), "did you mean 'gmf'"),
        (("evaluate", "nowhere"), "no model in nowhere"),
        (("recommend", "nowhere", "--user", "1"), "no model in nowhere"),
        (("compare", "nowhere"), "no card at nowhere"),
    ],
)
def test_user_error_is_one_line_with_a_remedy(deeprec, words, message) -> None:
    assert message in _error(deeprec(*words))


def test_wrong_ids_are_named(trained, deeprec) -> None:
    assert "whole numbers such as 1, got abc" in _error(deeprec("recommend", trained[0], "--user", "abc"))
    assert "99999" in _error(deeprec("recommend", trained[0], "--user", 99999))
    assert "99999" in _error(deeprec("recommend", trained[0], "--history", "1,99999"))
    who = (
        "one of --user ID, --users FILE, --all, --history ITEM,ITEM, --histories FILE, --tags TAG,TAG, --features FILE "
        "is needed"
    )
    assert who in _error(deeprec("recommend", trained[0]))


def test_training_options_do_not_fit_evaluate(trained, deeprec) -> None:
    assert "option of training" in _error(deeprec("evaluate", trained[0], "epochs=3"))
    assert "train anew" in _error(deeprec("evaluate", trained[0], "protocol.seed=3"))


def test_out_that_is_a_file_is_a_clear_error(deeprec, tmp_path, small) -> None:
    (tmp_path / "file").write_text("")
    assert "writable directory" in _error(deeprec("train", "gmf", "--out", tmp_path / "file", *small))


def test_debug_shows_the_traceback(deeprec) -> None:
    done = deeprec("train", "neufm", "--debug")
    assert isinstance(done.exception, ValueError)


def test_resume_of_a_finished_run_does_nothing(trained, deeprec, small) -> None:
    before = (trained[0] / "card.json").read_bytes()
    words = ("train", "gmf", "--protocol", "ncf", "--seed", 1, "--out", trained[0], "epochs=2", "factors=4", *small)
    done = deeprec(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert "already finished" in done.output
    assert (trained[0] / "card.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", 2), "seed is 1 there and 2 here"),
        (("epochs=3",), "config.epochs is 2 there and 3 here"),
        (("factors=8",), "config.factors is 4 there and 8 here"),
        (("--protocol", "full"), "protocol.candidates is 99 there and 'all' here"),
        (("--select", "ndcg@10"), "select is 'hr@10' there and 'ndcg@10' here"),
        (("--best-on-test",), "best_on_test is False there and True here"),
        (("data.num_users=121",), "data.sha256"),
    ],
)
def test_resume_of_another_finished_run_is_refused(trained, deeprec, small, change, message) -> None:
    before = (trained[0] / "card.json").read_bytes()
    settings = {"--protocol": "ncf", "--seed": 1, "epochs": 2, "factors": 4, **dict(w.split("=") for w in small)}
    if change[0].startswith("--"):
        settings[change[0]] = change[1] if len(change) > 1 else ""
    else:
        settings |= dict(word.split("=") for word in change)
    words = []
    for key, value in settings.items():
        words += ([key, value] if value else [key]) if key.startswith("--") else [f"{key}={value}"]
    error = _error(deeprec("train", "gmf", "--out", trained[0], "--resume", *words))
    assert "holds a finished run of other settings" in error
    assert message in error
    assert "--out" in error
    assert (trained[0] / "card.json").read_bytes() == before


def test_interrupted_training_names_resume_and_goes_on(trained, deeprec, tmp_path, small, monkeypatch) -> None:
    out = tmp_path / "run"
    words = ("train", "gmf", "--protocol", "ncf", "--seed", 1, "--out", out, "epochs=2", "factors=4", *small)
    show = display.Display.show

    def interrupt(self, state) -> None:
        show(self, state)
        if state.metrics is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(display.Display, "show", interrupt)
        stopped = deeprec(*words)
    assert stopped.exit_code == running.INTERRUPTED
    assert "after 1 finished epochs" in stopped.output
    assert "--resume" in stopped.output
    resumed = deeprec(*words, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/2" not in resumed.output
    assert read_card(out).metrics == read_card(trained[0]).metrics
    assert (out / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_loggers_write_the_curves_too_and_go_on_with_the_run(deeprec, tmp_path, small, monkeypatch) -> None:
    out = tmp_path / "run"
    words = ("train", "gmf", "--protocol", "ncf", "--out", out, "epochs=2", "factors=4", *small)
    words = (*words, "--logger", "csv", "--logger", "csv")
    show = display.Display.show

    def interrupt(self, state) -> None:
        show(self, state)
        if state.metrics is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(display.Display, "show", interrupt)
        assert deeprec(*words).exit_code == running.INTERRUPTED
    done = deeprec(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert "metrics.csv" in done.output
    curve = pl.read_csv(out / "metrics.csv")
    assert curve["epoch"].to_list() == [1, 2]
    assert curve["train/loss"].is_not_null().all()
    assert "validation/hr@10" in curve.columns


def test_a_logger_that_is_not_there_is_said_before_the_data_is_read(deeprec, tmp_path, monkeypatch) -> None:
    words = ("train", "gmf", "--data", tmp_path / "nowhere.csv", "--out", tmp_path / "run", "--logger")
    assert "logger: 'cvs' is none; did you mean 'csv'" in _error(deeprec(*words, "cvs"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "WandbLogger: Weights & Biases must be installed" in _error(deeprec(*words, "wandb"))
    assert not (tmp_path / "run").exists()


def test_models_lists_every_model_and_the_options_of_one(deeprec) -> None:
    listed = deeprec("models").output
    assert all(name in listed for name in package.models.names())
    shown = deeprec("models", "neumf").output
    assert "num_negatives=4  a whole number\n    negatives drawn for each positive, anew every epoch, >= 1.\n" in shown
    assert "pretrain_lr=0.001" in shown
    assert "has an effect with pretrain=True" in shown
    assert max(map(len, shown.splitlines())) <= 80
    facts = json.loads(deeprec("models", "neumf", "--json").stdout)
    assert facts["gmf_factors"] == {
        "type": "int",
        "default": 0,
        "meaning": "width of the GMF embeddings; 0 means `factors`",
    }
    assert "layers=400,400,400" not in shown
    assert "hidden=400,400,400  whole numbers" in deeprec("models", "deepfm").output


def test_the_list_of_commands_says_what_each_says_of_itself(deeprec) -> None:
    listed = " ".join(deeprec("--help").output.split())
    for name, (_, summary) in _COMMANDS.items():
        assert f" {name} {summary}" in listed
        assert summary in " ".join(deeprec(name, "--help").output.split()), name
    assert "No such command 'trian'. Did you mean 'train'?" in deeprec("trian").output


def test_the_names_in_help_texts_are_those_there_are() -> None:
    assert (*PROTOCOLS,) == options.PROTOCOLS
    assert options.LOGGERS == NAMES


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--version"], ["models"], ["recipes"], ["data", "list"],
        *([name, "--help"] for name in _COMMANDS),
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_that_need_no_torch_do_not_wait_for_it(words) -> None:
    code = f"""
import sys
from deeprec.cli.app import app
try:
    app({words!r}, prog_name="deeprec")
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "matplotlib", "pandas", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_and_data_answer_in_json(deeprec) -> None:
    assert json.loads(deeprec("doctor", "--json").stdout)["deeprec"] == package.__version__
    assert isinstance(json.loads(deeprec("data", "list", "--json").stdout), list)
    assert "did you mean" in deeprec("data", "info", "ml-1mm").output


def test_module_runs_as_a_process(tmp_path, small) -> None:
    out = tmp_path / "run"
    words = ["train", "gmf", "--protocol", "ncf", "--out", str(out), "epochs=1", *small]
    done = subprocess.run([sys.executable, "-m", "deeprec", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "deeprec", "train", "neufm"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: model: unknown name 'neufm'; did you mean 'neumf'?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("next-item", "next-item: leave one out, next item after the ordered history, ranked against all items"),
        ("cold-items", "cold-items: items, ranked against the items of their part, pessimistic ties"),
    ],
)
def test_protocols_train_and_evaluate_by_name(deeprec, tmp_path, small, name: str, said: str) -> None:
    out = tmp_path / "run"
    done = deeprec("train", "popularity", "--protocol", name, "--out", out, *small[:3])
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert read_card(out).protocol["name"] == name
    again = deeprec("evaluate", out, "--json")
    assert json.loads(again.stdout)["metrics"] == pytest.approx(read_card(out).metrics)
    other = json.loads(deeprec("evaluate", out, "--protocol", "full", "--json").stdout)
    assert other["protocol"]["holdout"] == read_card(out).protocol["holdout"]
    assert name in "".join(deeprec("train", "--help").output.split())  # a line may end within it


def test_a_moment_divides_by_option(deeprec, tmp_path, small) -> None:
    out = tmp_path / "run"
    words = ("train", "popularity", "--protocol", "next-item", "protocol.holdout=time", "--out", out, *small[:3])
    done = deeprec(*words)
    assert done.exit_code == 0, done.output
    assert "protocol  next-item: time, next item after" in done.output
    assert read_card(out).protocol["validation"] == "share"
    assert "not comparable" not in deeprec("compare", out, out).output


def test_cards_of_another_task_are_not_compared(trained, deeprec, tmp_path, small) -> None:
    out = tmp_path / "run"
    assert deeprec("train", "popularity", "--protocol", "next-item", "--out", out, *small[:3]).exit_code == 0
    assert "protocol task: 'ranking' / 'next-item'" in _error(deeprec("compare", trained[0], out))
