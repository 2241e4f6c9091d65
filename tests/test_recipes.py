"""Recipes by name: shipped with the package, and in agreement with the cards of the result pages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.reproduce import mean_figures
from deeprec import recipes
from deeprec.evaluate import ClickProtocol, protocol

RESULTS = Path(__file__).resolve().parents[1] / "results"


def _cards(name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / name).glob("seed-*.json"))]


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_says_what_its_cards_say(name: str) -> None:
    recipe = recipes.recipe(name)
    assert {"figures": recipe.figures, "runs": recipe.runs} == ({"figures": {}, "runs": 0} | mean_figures(name))
    config = json.loads(json.dumps(dataclasses.asdict(recipe.config())))
    for card in _cards(name):
        assert card["model"] == recipe.model
        # What the class has now and the card has not came later, and then has no effect by default.
        assert {key: config[key] for key in card["config"] if key in config} == {
            key: value for key, value in card["config"].items() if key in config
        }
        options = recipe.protocol_options(card["seed"])
        rule = ClickProtocol(**options) if options["name"] == "click" else protocol(**options)
        for key in ("name", "test_share", "validation_share", "seed"):
            assert rule.as_dict()[key] == card["protocol"][key], key


def test_every_folder_of_cards_has_its_recipe() -> None:
    folders = {path.parent.relative_to(RESULTS).as_posix() for path in RESULTS.glob("*/*/seed-*.json")}
    assert folders <= set(recipes.names())
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert all(f"../deeprec/recipes/{name}.json" in page for name in folders)


def test_names_may_be_short_where_one_is_meant() -> None:
    assert recipes.recipe("frappe/deepfm").name == "frappe-click/deepfm"
    assert recipes.recipe("ml-1m/v-cfn").name == "ml-1m-rating/v-cfn"
    with pytest.raises(ValueError, match=r"unknown name 'frappe/depfm'; did you mean 'frappe-click/deepfm'\?"):
        recipes.recipe("frappe/depfm")
    with pytest.raises(ValueError, match="it could be criteo-10k-click/lr or criteo-mini-click/lr"):
        recipes.recipe("criteo/lr")


def test_given_options_win_and_take_the_meaning_of_others() -> None:
    pretrained = recipes.recipe("ml-1m-ncf/neumf-32-pretrained")
    assert pretrained.config({"epochs": 7}).epochs == 7
    assert pretrained.config().pretrain_gmf_l2 == 0.0015
    alone = pretrained.config({"pretrain": False})
    assert not alone.pretrain
    assert alone.pretrain_gmf_l2 == 0
    assert alone.factors == 32
    with pytest.raises(ValueError, match="pretrain_epochs has no effect here"):
        pretrained.config({"pretrain": False, "pretrain_epochs": 3})
    with pytest.raises(ValueError, match="unknown option 'epoch'"):
        pretrained.config({"epoch": 3})


def test_a_seed_draws_what_the_recipe_repeats() -> None:
    assert recipes.recipe("ml-1m-rating/v-cfn").protocol_options(4)["seed"] == 4
    assert recipes.recipe("ml-100k-rating/v-cfn").reading(2) == {"fold": "u2"}
    assert "seed" not in recipes.recipe("frappe-click/deepfm").protocol_options(2)
