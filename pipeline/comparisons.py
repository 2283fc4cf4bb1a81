"""How MLflow's UI compares an experiment's arms: current runs only, grouped by arm, means over seeds.

It is one of MLflow's shared views, whose content lies in a tag of the experiment; a link opens it.
"""

import json
from typing import Any

from pipeline.catalogue import HEADLINES

COLUMNS = [f"metrics.`{name}`" for name in HEADLINES]
BY_ARM = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
STATE = {"searchFilter": "tags.current = 'yes'", "groupBy": BY_ARM, "selectedColumns": COLUMNS, "columnOrder": COLUMNS,
         "columnWidths": dict.fromkeys(COLUMNS, 170)}
TAGS = {"mlflow.sharedViewState.arms": json.dumps(STATE),
        "mlflow.experimentKind": "custom_model_development"}  # trainings, no chats: what the UI then shows of it
PLACE = "/#/experiments/{}/runs?viewStateShareKey=arms&workflowType=machine_learning"


def places(client: Any) -> dict[str, str]:
    """{experiment: where MLflow's UI compares its arms, below the UI's address}."""
    return {found.name: PLACE.format(found.experiment_id) for found in client.search_experiments()
            if set(TAGS) <= set(found.tags)}
