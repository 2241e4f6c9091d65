"""What a model does not use is refused by name, with what would use it; nothing is ignored in silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deeprec import models
from deeprec.config import config_from_dict, ineffective, taken_options, unused_options
from deeprec.data import synthetic
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.evaluate import ClickProtocol, read_card
from deeprec.train import fit

RESULTS = Path(__file__).resolve().parents[2] / "results"


def _other_value(config: Any, field: dataclasses.Field[Any]) -> Any:
    """A value of the field's type that is not its default."""
    default = field.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return 0.5 if field.name == "weight_averaging" else default * 2 + 1
    choices = {"lr_schedule": ("linear", "constant"), "optimizer": ("sgd", "adam"), "reduction": ("sum", "mean"),
               "precision": ("bfloat16", "float32"), "judged_by": ("both", "headline"),
               "user_inputs": (("id",),), "item_inputs": (("id",),), "encoders": (("text",),)}  # fmt: skip
    return next(value for value in choices[field.name] if value != default)


@pytest.mark.parametrize("name", models.names())
def test_options_that_a_model_never_uses(name: str) -> None:
    kind = models.config_class(name)
    for field in dataclasses.fields(kind):
        if field.name in unused_options(kind):
            with pytest.raises(ValueError, match=rf"{field.name} has no effect here.*leave it out \(.*takes? it\)"):
                models.create(name, **{field.name: _other_value(kind, field)})
            models.create(name, **{field.name: field.default})  # says nothing that does not hold


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neumf", {"pretrain_lr": 0.1}, "pretrain_lr has no effect here, got 0.1; leave it out, or take pretrain=True"),
        ("neumf", {"layers": (8, 4), "num_layers": 5}, "num_layers has no effect here, got 5.*layers="),
        ("neumf", {"layers": (8, 4), "layout": "paper"}, "layout has no effect"),
        ("neumf", {"layers": (8, 4), "gmf_factors": 4, "factors": 16}, "factors has no effect"),
        ("mlp", {"layers": (8, 4), "factors": 16}, "factors has no effect"),
        ("autorec", {"layer_epochs": 5}, "layer_epochs has no effect.*pretrain=True"),
        ("autorec", {"lr_decay": 0.5}, "lr_decay has no effect.*such as adam"),
        ("autorec", {"optimizer": "lbfgs", "lr": 0.5}, "lr has no effect.*such as rprop"),
        ("cfn", {"noise_std": 0.5}, "noise_std has no effect.*gaussian > 0"),
        ("cfn", {"hide": 0.0, "alpha": 2.0}, "alpha has no effect.*hide, gaussian or salt_pepper"),
        ("cdae", {"optimizer": "adam", "adagrad_start": 0.5}, "adagrad_start has no effect.*optimizer=adagrad"),
        ("cdae", {"variant": "m1", "activation": "tanh"}, "activation must be identity with variant=m1"),
        ("deepfm", {"l1": 0.1}, "l1 has no effect.*optimizer=ftrl; others have weight_decay"),
        ("deepfm", {"adagrad_start": 0.5}, "adagrad_start has no effect"),
        ("deepfm", {"hidden": (), "dropout": 0.1}, "dropout has no effect.*hidden layers"),
        ("dnn", {"hidden": (), "batch_norm": True}, "batch_norm has no effect"),
        ("lr", {"weight_decay": 0.1}, "weight_decay has no effect.*another optimizer than ftrl"),
        ("lr", {"lr_schedule": "plateau"}, "lr_schedule has no effect"),
        ("wide-deep", {"wide_optimizer": "sgd", "wide_l2": 0.5}, "wide_l2 has no effect.*wide_optimizer=ftrl"),
    ],
)
def test_options_without_effect_beside_the_others(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("neumf", {"pretrain": True, "pretrain_lr": 0.1, "pretrain_epochs": 3, "precision": "bfloat16"}),
        ("autorec", {"inner": (4,), "pretrain": True, "layer_epochs": 5, "pretrain_epochs": 3, "pretrain_lr": 0.1}),
        ("cfn", {"gaussian": 0.1, "noise_std": 0.5}),
        ("cdae", {"variant": "m1"}),
        ("deepfm", {"optimizer": "ftrl", "l1": 0.1}),
        ("wide-deep", {"wide_l1": 0.1, "lr_schedule": "linear", "weight_decay": 0.1}),
        ("nfm", {"hidden": (), "dropout": 0.2, "batch_norm": False}),
    ],
)
def test_options_with_an_effect_are_taken(name: str, options: dict[str, Any]) -> None:
    config = models.create(name, **options).config
    assert config_from_dict(type(config), dataclasses.asdict(config)) == config
    if hasattr(config, "shallow") and config.pretrain:
        assert config.shallow().epochs == config.pretrain_epochs


def test_every_model_declares_what_it_has() -> None:
    for name in models.names():
        kind = models.config_class(name)
        known = {field.name for field in dataclasses.fields(kind)}
        assert {option for option, _ in ineffective(kind, kind())} | set(unused_options(kind)) <= known
        assert {
            option for owner in kind.__mro__ for rule in vars(owner).get("conditions", ()) for option in rule.options
        } <= known
        assert set(taken_options(kind)) == known - set(unused_options(kind))


def test_an_option_of_other_models_names_them() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'hide'; leave it out \(.*cfn.* takes? it\)"):
        models.GMF(hide=0.1)
    with pytest.raises(ValueError, match="did you mean 'factors'"):
        models.GMF(facotrs=4)


def test_a_saved_model_with_an_option_that_had_no_effect_still_loads() -> None:
    saved = {**dataclasses.asdict(models.NeuMF().config), "pretrain_lr": 0.5, "factors": 4}
    restored = config_from_dict(models.config_class("neumf"), saved)
    assert (restored.factors, restored.pretrain_lr) == (4, 0.001)  # type: ignore[attr-defined]


def test_cards_of_the_repository_are_valid_settings() -> None:
    cards = [read_card(path) for path in RESULTS.rglob("*.json") if '"schema_version"' in path.read_text()]
    assert cards
    for card in cards:
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in card.config.items()}
        models.config_class(card.model)(**lists)


def test_fit_names_keywords_that_it_does_not_have() -> None:
    data = synthetic(num_users=30, num_items=40, num_interactions=300)
    for model, keyword, message in (
        (models.GMF(), {"epochs": 3}, r"option of the model: models.create\('gmf', epochs=3\)"),
        (models.GMF(), {"schema": "rows.yaml"}, r"it goes with .*afm, .*dcn-v2"),
        (models.LR(), {"report_best_on_test": True}, r"it goes with .*autorec, .*cdae"),
        (models.LR(), {"sead": 3}, "did you mean 'seed'"),
    ):
        with pytest.raises(TypeError, match=message):
            model.fit(data, **keyword)


@pytest.mark.parametrize("name", ["popularity", "item-knn", "ease"])
def test_models_without_epochs_choose_none(name: str) -> None:
    data = synthetic(num_users=30, num_items=40, num_interactions=300)
    for keyword in ({"select": "ndcg@10"}, {"report_best_on_test": True}):
        with pytest.raises(ValueError, match=f"fit: {name} does not use {next(iter(keyword))}; .*gmf"):
            fit(models.create(name), data, **keyword)


def test_resume_needs_a_folder() -> None:
    data = synthetic(num_users=30, num_items=40, num_interactions=300)
    log = load_clicks("synthetic", rows=300, fields=2, numerics=1)
    for model, source in ((models.GMF(), data), (models.LR(), log)):
        with pytest.raises(ValueError, match="resume needs out"):
            model.fit(source, resume=True)


def test_a_log_that_is_cut_is_not_cut_again(tmp_path: Path) -> None:
    frame, schema = synthetic_clicks(rows=500, fields=2, numerics=1)
    log = load_clicks(frame, schema, directory=tmp_path / "log", shares=(0.2, 0.1), seed=3)
    for given, message in (
        ({"directory": tmp_path / "other"}, "directory would change nothing"),
        ({"on_bad": "skip"}, "on_bad would change nothing"),
        ({"separator": ";"}, "separator would change nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            load_clicks(tmp_path / "log", **given)
    for rule, message in (
        (ClickProtocol(test_share=0.3), r"test_share=0.3 has no effect.*parts are made already"),
        (ClickProtocol(validation_share=0.3), r"validation_share=0.3 has no effect"),
        (ClickProtocol(seed=4), "seed=4 has no effect"),
        (ClickProtocol(holdout="tail"), "holdout='tail' has no effect"),
        (ClickProtocol(holdout="official"), "holdout='official' has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(models.LR(epochs=1), log, protocol=rule)
    fit(models.LR(epochs=1), log, protocol=ClickProtocol(validation_share=0.2, seed=3))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    pl.DataFrame({"item_id": list(range(40)), "kind": ["a", "b"] * 20}).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("neumf", "--item-features", "FILE"), "neumf does not use --item-features; leave it out (it goes with "),
        (("deepfm", "--user-features", "FILE"), "deepfm does not use --user-features"),
        (("cfn", "--item-features", "FILE"), "does not use --item-features with these options"),
        (("cfn", "features=kind", "--user-features", "FILE"), "does not use --user-features with these options"),
        (("cfn", "side=user", "features=kind", "--item-features", "FILE"), "does not use --item-features with these"),
        (("gmf", "--on-bad", "skip"), "gmf does not use --on-bad"),
        (("gmf", "--log", "FILE"), "gmf does not use --log"),
        (("deepfm", "--best-on-test"), "deepfm does not use --best-on-test"),
        (("gmf", "--data-dir", "FILE"), "--data-dir is where named data sets are looked for, got --data synthetic"),
        (("lr", "--data-dir", "FILE"), "--data-dir is where named data sets are looked for, got --data synthetic"),
        (("popularity", "--select", "hr@10"), "popularity does not use --select"),
        (("popularity", "epochs=3"), "epochs has no effect here"),
        (("gmf", "hide=0.1"), "unknown key 'hide' for GMFConfig; leave it out ("),
        (("gmf", "protocol.test_share=0.3"), "test_share has no effect"),
    ],
)
def test_the_command_line_refuses_what_it_would_ignore(words: tuple[str, ...], message: str, features: Path) -> None:
    from typer.testing import CliRunner

    from deeprec.cli.app import app

    line = ["train", *(str(features) if word == "FILE" else word for word in words)]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "400", "TERM": "dumb"})
    assert done.exit_code == 2, done.output
    assert message in done.stderr
