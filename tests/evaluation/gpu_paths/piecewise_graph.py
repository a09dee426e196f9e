"""The piecewise compiled graph that vLLM makes on GPUs, on a CPU:   python piecewise_graph.py JOB RESULT

vLLM's CPU platform compiles the model in one piece; here it keeps the mode VLLM_COMPILE, and what that mode expects of
a GPU is left out. The result has one more entry, "pieces": for each piece of a graph that was split in this process,
whether it is one of the operations it was split at, and the buffers of steering that it reads or writes.
"""

import os
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from steered_job import run_job, write_result  # noqa: E402
from torch.fx import GraphModule  # noqa: E402
from vllm.compilation import backends  # noqa: E402
from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass  # noqa: E402
from vllm.compilation.piecewise_backend import PiecewiseBackend  # noqa: E402
from vllm.config import CompilationMode, VllmConfig  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402

from lm_eval_sae.steering.intervention import BUFFERS  # noqa: E402

check_and_update_config = CpuPlatform.check_and_update_config.__func__
find_range_for_shape = PiecewiseBackend._find_range_for_shape
split_graph = backends.split_graph
pieces: list[dict[str, Any]] = []


def keep_piecewise(cls: type[CpuPlatform], config: VllmConfig) -> None:
    """The platform's own, without its change of the mode."""
    compilation = config.compilation_config
    mode = compilation.mode
    check_and_update_config(cls, config)
    if mode == CompilationMode.VLLM_COMPILE:
        compilation.mode = mode
        compilation.inductor_compile_config.pop("dce", None)


def find_range(self: PiecewiseBackend, shape: int) -> Any:
    """vLLM's own; without sizes for CUDA graphs the list is None, which it takes for no range at all."""
    self.compile_sizes = self.compile_sizes or []
    return find_range_for_shape(self, shape)


def split_and_look(graph: GraphModule, *args: Any, **kwargs: Any) -> tuple[GraphModule, list[Any]]:
    """vLLM's own, noting what each piece holds of steering."""
    split, items = split_graph(graph, *args, **kwargs)
    for item in items:
        names = [node.name for node in item.graph.graph.nodes if node.op == "placeholder"]
        buffers = {name.split("_buffers_")[-1].strip("_") for name in names if "_buffers_" in name}
        steering = sorted(buffers & {"rows", "positions", *BUFFERS})
        pieces.append({"splitting": item.is_splitting_graph, "steering": steering})
    return split, items


if __name__ == "__main__":
    CpuPlatform.check_and_update_config = classmethod(keep_piecewise)
    PiecewiseBackend._find_range_for_shape = find_range
    FixFunctionalizationPass.__call__ = lambda self, graph: None  # it looks up an operation of the GPU build
    backends.split_graph = split_and_look
    write_result({**run_job(), "pieces": pieces})
