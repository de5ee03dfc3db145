"""FL-TAC: one very-low-rank adapter per local task, clustered on the server, averaged inside each cluster.

Source: S. Ping, Y. Mao, Y. Liu, X.-P. Zhang, W. Ding. FL-TAC: Enhanced Fine-Tuning in Federated Learning via Low-Rank,
Task-Specific Adapter Clustering. ICLR 2024 workshop on LLM agents, arXiv 2404.15384, algorithm 1.

Where we differ from the paper by default: newcomers send, once, how steep every number of B is on their data at the common start,
and that is what is clustered (docs/decisions/014); slots of one client never share a cluster; rows keep their identity over rounds;
clusters are averaged by sample counts (as the authors' code does; the paper's listing is uniform); AdamW instead of plain
gradient descent. ``features="factors", constraint="none", weighting="uniform", head_features=True`` is the paper's server step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import Unpack

from fedquilt import assign, reduce, sample
from fedquilt.assign.features import Features
from fedquilt.errors import ConfigError
from fedquilt.local import Training, optimiser
from fedquilt.method import Family, Method
from fedquilt.reduce.mean import Weighting


def fltac(
    *,
    tasks: Annotated[int, Field(ge=1)],
    features: Features = "fisher",
    constraint: Literal["cannot-link", "none"] = "cannot-link",
    head_features: bool = False,
    weighting: Weighting = "samples",
    estimate_tasks: bool = False,
    first_effort: float = 1.0,
    choice: Literal["server", "clients"] = "server",
    participation: sample.Participation = 1.0,
    adapter: Family = "lora",
    **training: Unpack[Training],
) -> Method:
    """Per-task adapters, k-means with K = ``tasks``, mean inside each cluster.

    Args:
        tasks: number of clusters K; to be given where clients have data of their own.
        features: what is compared, see :mod:`fedquilt.assign.features`; ``b_factors`` for adapters and nothing else.
        constraint: ``cannot-link``: slots of one client are different tasks and never share a cluster; ``none``: plain k-means.
        head_features: whether the head's tensors are compared, too.
        estimate_tasks: ``tasks`` is only the most there may be; the number is estimated every round and logged.
        first_effort: factor on the local steps of a slot's first round: a wrong first merge can lock in.
        choice: who says which cluster a slot is in. ``clients``: each finds its own from centres that are made of sums alone
            (:mod:`fedquilt.assign.chosen`), which secure aggregation needs.
    """
    assigning: assign.Assign = assign.kmeans(
        tasks, features=features, constraint=constraint, head=head_features, estimate=estimate_tasks
    )
    if choice == "clients":
        if features != "fisher" or head_features or estimate_tasks:
            raise ConfigError(
                "clients choose by features = 'fisher' among a known number of clusters",
                where="method.choice",
                fix="leave features, head_features and estimate_tasks out",
            )
        assigning = assign.chosen(tasks, constraint=constraint)
    return Method(
        "fltac",
        optimiser(training),
        adapter=adapter,
        slots="task",
        assign=assigning,
        reduce=reduce.mean(weighting),
        sample=sample.share(participation),
        first_effort=first_effort,
    )
