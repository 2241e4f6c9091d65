"""Protocols, metrics and result cards: how a figure is made, and when two figures may be compared."""

from __future__ import annotations

from deeprec._hardware import hardware
from deeprec.evaluate.card import Card, compare, read_card, summarise, versions
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.evaluator import evaluate, figures, rank
from deeprec.evaluate.metrics import METRICS
from deeprec.evaluate.off_policy import ESTIMATORS, Interval, OffPolicyEstimate, mean_rewards, off_policy_value
from deeprec.evaluate.protocols import PROTOCOLS, Protocol, protocol, protocol_from_dict
from deeprec.evaluate.ranking import Ranking, Scorer
from deeprec.evaluate.table import add_to_table, require_table, table_of_means, table_row

__all__ = [
    "ESTIMATORS",
    "METRICS",
    "PROTOCOLS",
    "Card",
    "ClickProtocol",
    "Interval",
    "OffPolicyEstimate",
    "Protocol",
    "Ranking",
    "Scorer",
    "add_to_table",
    "compare",
    "evaluate",
    "figures",
    "hardware",
    "mean_rewards",
    "off_policy_value",
    "protocol",
    "protocol_from_dict",
    "rank",
    "read_card",
    "require_table",
    "summarise",
    "table_of_means",
    "table_row",
    "versions",
]
