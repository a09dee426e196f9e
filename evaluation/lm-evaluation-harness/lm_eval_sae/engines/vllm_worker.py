"""vLLM's worker with interventions inside the model, where torch.compile, CUDA graphs and every rank have them.

vLLM loads the class by its name (`worker_cls`). `additional_config["lm_eval_sae"]` says which layers can be changed and
how many features of each (`Served`); as it is part of vLLM's compile-cache key, graphs with and without it are kept
apart. Which features, and to what, comes with each request (`steering.requests`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from lm_eval_sae.engines.vllm_engine import CONFIG_KEY
from lm_eval_sae.steering.intervention import FeatureIntervention
from lm_eval_sae.steering.requests import Served, intervention_key

WORKERS = {True: "vllm.v1.worker.cpu_worker.CPUWorker", False: "vllm.v1.worker.gpu_worker.Worker"}  # by is_cpu()

PlatformWorker: Any = resolve_obj_by_qualname(WORKERS[current_platform.is_cpu()])


class SteeredLayer(nn.Module):
    """A decoder layer of vLLM's whose two outputs together are the residual stream x.

    vLLM returns x as (MLP output, residual) and adds them in the next norm: the features are read from the sum, or as
    published from the first half alone, and the change goes into that half.

    Args:
        layer: that is steered.
        intervention: a row for each intervention; row 0 is that of a baseline.
        rows: the row of each token of the batch, [tokens or more], which the worker writes before each step.
    """

    def __init__(self, layer: nn.Module, intervention: FeatureIntervention, rows: Tensor) -> None:
        super().__init__()
        self.layer, self.intervention = layer, intervention
        self.register_buffer("rows", rows)
        # Positions that went through each row.
        self.register_buffer("positions", torch.zeros(len(intervention.value), dtype=torch.int64, device=rows.device))

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        mlp_out, residual = self.layer(*args, **kwargs)  # [tokens, d_in] each
        rows = self.rows[: mlp_out.shape[0]]
        x = mlp_out.float() + self.intervention.reads_residual[rows] * residual.float()
        change = self.intervention.change(x, rows)
        # Part of the graph that ran, and so the proof that it did.
        self.positions.index_add_(0, rows, torch.ones_like(rows))
        return (mlp_out.float() + change).to(mlp_out.dtype), residual


class Rows:
    """Which intervention is in which row of a worker's layers.

    A row is used again for another intervention when no request of the step needs it.

    Args:
        layers: that are steered, by index; all have the same number of rows.
        served: reads interventions.
    """

    def __init__(self, layers: Mapping[int, SteeredLayer], served: Served) -> None:
        self.layers, self.served = layers, served
        self.row_of = {"": 0}  # by key of the intervention; the one that was not needed for longest comes first
        count = min((len(layer.positions) for layer in layers.values()), default=0)
        self.free = list(range(count - 1, 0, -1))
        # Positions of interventions that have lost their row, by layer.
        self.counts: dict[int, dict[str, int]] = {index: {} for index in layers}

    def of(self, interventions: Sequence[tuple[str, Any]]) -> list[int]:
        """The row of each (key, `extra_args`), for a step in which these are all that run."""
        needed = dict(interventions)
        for key in needed:
            self.row_of[key] = self.row_of.pop(key) if key in self.row_of else self._load(needed, key)
        return [self.row_of[key] for key, _ in interventions]

    def _load(self, needed: Mapping[str, Any], key: str) -> int:
        if not self.free:
            self._give_up(next(other for other in self.row_of if other and other not in needed))
        row = self.free.pop()
        steering = self.served.read(needed[key])
        features = steering.layers() if steering else {}
        for index, layer in self.layers.items():
            layer.intervention.load(features.get(index, ()), row)
        return row

    def _give_up(self, key: str) -> None:
        for index, counts in self.positions([key]).items():
            self.counts[index][key] = counts[key]
        row = self.row_of.pop(key)
        for layer in self.layers.values():
            layer.positions[row] = 0
        self.free.append(row)

    def positions(self, keys: Sequence[str]) -> dict[int, dict[str, int]]:
        """By layer, the token positions that went through each intervention since the engine started."""
        found: dict[int, dict[str, int]] = {}
        for index, layer in self.layers.items():
            of_row = dict(enumerate(layer.positions.tolist()))
            before = self.counts[index]
            found[index] = {key: before.get(key, 0) + of_row.get(self.row_of.get(key), 0) for key in keys}
        return found


class SteeringWorker(PlatformWorker):
    """The platform's own worker, with the layers of `Served` wrapped before anything is traced."""

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        config = self.vllm_config
        served = Served.of(config.additional_config[CONFIG_KEY])
        self.rows = torch.zeros(config.scheduler_config.max_num_batched_tokens, dtype=torch.int64, device=self.device)
        layers, steered = self.get_model().model.layers, {}
        for index, places in served.layers.items():
            if not any(True for _ in layers[index].parameters()):
                continue  # another pipeline rank's
            d_in = self.model_config.hf_text_config.hidden_size
            # As many rows as requests can run at once, and the baseline's.
            table = FeatureIntervention(d_in, places, config.scheduler_config.max_num_seqs + 1).to(self.device)
            layers[index] = steered[index] = SteeredLayer(layers[index], table, self.rows)
        self.table = Rows(steered, served)
        self.interventions: dict[str, tuple[str, Any]] = {}  # of each request: the key, and what `Rows.of` reads
        if steered:  # a pipeline rank may have none
            self._place_rows_before_each_step()

    def _place_rows_before_each_step(self) -> None:
        runner = self.model_runner
        name = "prepare_inputs" if self.use_v2_model_runner else "_prepare_inputs"
        original: Callable[..., Any] = getattr(runner, name)

        def prepare(scheduler_output: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            """The runner's own, which fixes the order of the requests in the batch; vLLM's second runner names both."""
            prepared = original(scheduler_output, batch, *args, **kwargs)
            if self.use_v2_model_runner:
                self._place_rows(batch.req_ids, batch.num_scheduled_tokens)
            else:
                self._place_rows(runner.input_batch.req_ids, batch)
            return prepared

        setattr(runner, name, prepare)

    def _place_rows(self, requests: Iterable[str], tokens: Sequence[int]) -> None:
        rows = np.repeat(np.array(self.table.of([self.interventions[request] for request in requests])), tokens)
        host = torch.from_numpy(rows.astype(np.int64))
        if self.device.type == "cuda":
            host = host.pin_memory()  # so that the copy waits for nothing; torch keeps it until it is done
        self.rows[: len(host)].copy_(host, non_blocking=True)
        self.rows[len(host) :].zero_()  # padding

    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.finished_req_ids:
            self.interventions.pop(request, None)
        for new in scheduler_output.scheduled_new_reqs:
            arguments = new.sampling_params and new.sampling_params.extra_args
            self.interventions[new.req_id] = intervention_key(arguments), arguments
        return super().execute_model(scheduler_output)

    def steered_positions(self, keys: Sequence[str]) -> dict[int, dict[str, int]]:
        """`Rows.positions` of this rank's layers."""
        return self.table.positions(keys)
